"""Drain: how clients are sent away before a server stops, batch by batch, and when they are asked to come back.

Source: the drainer of `Phoenix.Socket`. That clients are told when to come back is ours.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import anyio
from msgspec import Struct

from starlette_channels.arguments import check_fields
from starlette_channels.connection.registry import Service
from starlette_channels.pubsub.hub import Hub
from starlette_channels.transports import CLOSE_SECONDS

logger: logging.Logger = logging.getLogger("starlette_channels.connection")

RESTART = 1012
"""The close code of a server that stops; clients reconnect after it."""


class Drain(Struct, frozen=True, kw_only=True):
    """The pace at which clients are disconnected before the server stops: `Channels(drain=Drain(batch_size=500))`.

    `batch_size` and `interval_seconds` are the pace at which clients leave, and so the pace at which they come back,
    here or to another server. Raises `ValueError` unless both are above zero.
    """

    batch_size: int = 1_000
    """Connections closed at a time; more if otherwise not all were closed within `timeout_seconds`."""

    interval_seconds: float = 1.0
    """Seconds from one batch to the next. The clients of a batch reconnect spread over the same time."""

    timeout_seconds: float = 15.0
    """Seconds for all batches. Afterwards handlers, and then `terminate`, have `Limits.shutdown_seconds` each."""

    restart_seconds: float | None = None
    """Seconds until this server is back, if there is no other one. `None`: there are other servers.

    With a time, all clients are closed at once, and reconnect after that time, at the same pace.
    """

    def __post_init__(self) -> None:
        """Raise `ValueError` for values out of bounds."""
        check_fields(self, above_zero=("batch_size", "interval_seconds"))


class DrainBatch(NamedTuple):
    """Clients that are closed together."""

    at: float
    """Seconds after the drain has begun."""

    waits: Sequence[float]
    """For each client, the seconds after which it is asked to come back."""


def batches(clients: int, drain: Drain, *, at_once: bool = False) -> Iterator[DrainBatch]:
    """Divide a number of clients into batches; `at_once`, into one."""
    pause = drain.interval_seconds / drain.batch_size
    if at_once or drain.restart_seconds is not None:
        absence = drain.restart_seconds or 0.0
        yield DrainBatch(0.0, [absence + number * pause for number in range(clients)])
        return
    most = max(1, int(drain.timeout_seconds / drain.interval_seconds))
    size = max(drain.batch_size, math.ceil(clients / most))
    for number, first in enumerate(range(0, clients, size)):
        waits = [position * drain.interval_seconds / size for position in range(min(size, clients - first))]
        yield DrainBatch(number * drain.interval_seconds, waits)


class Drainer:
    """Drains one `Channels`: refuses new clients, and closes connections in batches, after pending replies."""

    def __init__(self, service: Service, drain: Drain) -> None:
        self._service = service
        self._drain = drain
        self._at_once: anyio.Event | None = None
        self._closed: anyio.Event | None = None

    async def drain(self, *, at_once: bool = False) -> None:
        """Close all connections, in batches or at once; return when their channels have ended, or their time is over.

        A second call waits for the end of the first; with `at_once` it makes the first one close the rest at once.
        """
        if self._closed is not None:
            if at_once and self._at_once is not None:
                self._at_once.set()
            await self._closed.wait()
            return
        self._closed, self._at_once = closed, at_once_event = anyio.Event(), anyio.Event()
        try:
            await self._close_batches(at_once, at_once_event)
        finally:
            self._closed = self._at_once = None
            closed.set()

    async def drain_loop(self) -> None:
        """Close the connections of this event loop, which is about to end, and wait for their end.

        Clients of other event loops stay, and new ones are let in.
        """
        await self._wait_until_closed(self._service.broker.hub())

    def abort(self) -> None:
        """Close all connections now, and cancel their handlers; `terminate` still has its time."""
        if self._at_once is not None:
            self._at_once.set()
        for client in tuple(self._service.connections):
            client.hub.run(client.close, RESTART, "restart")
            client.hub.run(client.abort)

    async def _close_batches(self, at_once: bool, at_once_event: anyio.Event) -> None:
        clients = tuple(self._service.connections)
        here = self._service.broker.hub()
        self._service.close(self._drain.restart_seconds or self._drain.interval_seconds, here)
        logger.log(logging.INFO if clients else logging.DEBUG, "Draining %d connections", len(clients))
        began, first = anyio.current_time(), 0
        for batch in batches(len(clients), self._drain, at_once=at_once):
            if not at_once:
                with anyio.move_on_after(began + batch.at - anyio.current_time()):
                    await at_once_event.wait()
            for client, wait in zip(clients[first:], batch.waits, strict=False):
                client.hub.run(client.drain, RESTART, f"restart retry_after={wait:.2f}")
            first += len(batch.waits)
        await self._wait_until_closed(here)

    async def _wait_until_closed(self, here: Hub) -> None:
        with anyio.move_on_after(2 * (self._service.limits.shutdown_seconds + CLOSE_SECONDS), shield=True) as patience:
            # Some may have been let in meanwhile. In tests, others may belong to other event loops.
            while left := [client for client in tuple(self._service.connections) if client.hub is here]:
                for client in left:
                    client.drain(RESTART, "restart")
                for client in left:
                    await client.closed()
        if patience.cancelled_caught:
            logger.warning("%d connections have not ended in time", len(self._service.connections))
