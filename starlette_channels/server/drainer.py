"""Sends the clients of one `Channels` away before the server stops."""

import logging

import anyio

from starlette_channels.connection.registry import Service
from starlette_channels.pubsub.hub import Hub
from starlette_channels.server.drain import Drain, batches
from starlette_channels.transports import CLOSE_SECONDS

logger: logging.Logger = logging.getLogger("starlette_channels.connection")

RESTART = 1012
"""The close code of a server that goes; clients come back after it."""


class Drainer:
    """Closes the connections in batches, once their handlers have answered, and lets nobody in any more."""

    def __init__(self, service: Service, drain: Drain) -> None:
        self._service = service
        self._drain = drain
        self._impatience: anyio.Event | None = None
        self._over: anyio.Event | None = None

    async def drain(self, *, at_once: bool = False) -> None:
        """Send all clients away, in batches or at once, and return when their channels have ended, or have had time.

        While it goes on, another call waits for its end; one for doing it at once makes it so.
        """
        if self._over is not None:
            if at_once and self._impatience is not None:
                self._impatience.set()
            await self._over.wait()
            return
        self._over, self._impatience = over, impatience = anyio.Event(), anyio.Event()
        try:
            await self._send_away(at_once, impatience)
        finally:
            self._over = self._impatience = None
            over.set()

    async def leave_loop(self) -> None:
        """Close the connections of this event loop, which is about to end, and wait for their end.

        Clients of other event loops stay, and nobody is refused.
        """
        await self._wait_patiently(self._service.broker.hub())

    def hurry(self) -> None:
        """Close all connections now, and cancel their handlers; `terminate` still has its time."""
        if self._impatience is not None:
            self._impatience.set()
        for client in tuple(self._service.connections):
            client.hub.run(client.close, RESTART, "restart")
            client.hub.run(client.abort)

    async def _send_away(self, at_once: bool, impatience: anyio.Event) -> None:
        clients = tuple(self._service.connections)
        here = self._service.broker.hub()
        self._service.close(self._drain.restart_seconds or self._drain.interval_seconds, here)
        logger.log(logging.INFO if clients else logging.DEBUG, "Draining %d connections", len(clients))
        began, first = anyio.current_time(), 0
        for batch in batches(len(clients), self._drain, at_once=at_once):
            if not at_once:
                with anyio.move_on_after(began + batch.at - anyio.current_time()):
                    await impatience.wait()
            for client, wait in zip(clients[first:], batch.waits, strict=False):
                client.hub.run(client.drain, RESTART, f"restart retry_after={wait:.2f}")
            first += len(batch.waits)
        await self._wait_patiently(here)

    async def _wait_patiently(self, here: Hub) -> None:
        with anyio.move_on_after(2 * (self._service.limits.shutdown_seconds + CLOSE_SECONDS), shield=True) as patience:
            await self._wait_for_ends(here)
        if patience.cancelled_caught:
            logger.warning("%d connections have not ended in time", len(self._service.connections))

    async def _wait_for_ends(self, here: Hub) -> None:
        """Wait for those who are left; among them may be some that were being let in when it began.

        In tests, there may be others, whose event loops are not this one.
        """
        while left := [client for client in tuple(self._service.connections) if client.hub is here]:
            for client in left:
                client.drain(RESTART, "restart")
            for client in left:
                await client.closed()
