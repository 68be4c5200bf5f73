"""The fast lane's way in under uvicorn: `uvicorn app:app --ws starlette_channels.transports.uvicorn:FastLane`."""

import asyncio
import functools
import gc
import threading
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from starlette_channels.transports.uvicorn_lane.accept_queue import turnstile_of
from starlette_channels.transports.uvicorn_lane.early_data import EarlyBytes, has_hung_up
from starlette_channels.transports.uvicorn_lane.handshake import Handshaking
from starlette_channels.transports.uvicorn_lane.http_slices import SlicedHTTP

__all__ = ["FastLane", "SlicedHTTP"]


@functools.cache  # once for each process
def spare_what_is_loaded() -> None:
    """Have the garbage collector look no longer through modules and classes: that takes 10 to 100 ms each time.

    When the first client comes, the application has loaded what it needs. What is there stays usable, and is freed when
    nothing refers to it. A server in a thread is a guest in its process, and leaves it as it is.
    """
    if threading.current_thread() is threading.main_thread():
        gc.collect()
        gc.freeze()


class FastLane(asyncio.Protocol):
    """A WebSocket protocol for uvicorn that lets channels write to the connections of their clients themselves.

    Here a client waits for its turn, at the cost of a few objects; then uvicorn's own protocol, extended, does the
    handshake. permessage-deflate is off: it costs tens of kilobytes for each connection, and compresses a broadcast for
    each client.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        config.ws_per_message_deflate = False
        spare_what_is_loaded()
        self._arguments = config, server_state, app_state, _loop or asyncio.get_running_loop()
        self._connections: set[Any] = server_state.connections
        self._request: bytes | None = None
        self._early = EarlyBytes()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection over from uvicorn's object for HTTP, which would wait for the garbage collector.

        What h11 has read beyond the request is taken over as well. httptools drops it.
        """
        self._transport = cast("asyncio.Transport", transport)
        predecessor: Any = self._transport.get_protocol()
        if hasattr(predecessor, "parser"):
            predecessor.parser = None
        elif hasattr(predecessor, "conn"):
            self._early.add(predecessor.conn.trailing_data[0])
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Keep the request, and read nothing more until it is answered.

        Of what comes all the same, a little is kept: what TLS had decrypted already, for instance.
        """
        if self._request is not None:
            self._early.add(data)
            return
        self._request = data
        self._transport.pause_reading()
        *_, loop = self._arguments
        turnstile_of(loop).enter(self._go_on)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the client go that has not waited for its turn."""
        self._connections.discard(self)

    def shutdown(self) -> None:
        """Answer at once, with a status that says that the server stops."""
        self._succeed().shutdown()

    def _go_on(self) -> None:
        if self not in self._connections or self._transport.is_closing():
            return
        if has_hung_up(self._transport):
            self._connections.discard(self)
            self._transport.abort()
            return
        successor = self._succeed()
        successor.early = self._early
        assert self._request is not None
        successor.data_received(self._request)

    def _succeed(self) -> Handshaking:
        self._connections.discard(self)
        successor = Handshaking(*self._arguments)
        successor.connection_made(self._transport)
        self._transport.set_protocol(successor)
        return successor
