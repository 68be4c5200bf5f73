"""The fast lane's way in under uvicorn: `uvicorn app:app --ws starlette_channels.transports.uvicorn:FastLane`.

The handshake, the ASGI call and every other WebSocket application stay with uvicorn's own class, which this one
extends. When the channels have accepted a client, they attach to its connection, and uvicorn's objects for it are let
go.
"""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS, Request

from starlette_channels.connection import Connection
from starlette_channels.limits import Bounds
from starlette_channels.transport import Transport
from starlette_channels.transports.lane import Lane
from starlette_channels.transports.pulse import pulse_of_this_loop

_HEADER = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+: [!-~](?:[\t -~]*[!-~])?\r\n"
_PLAIN = re.compile(rb"GET ([!-~]+) HTTP/1\.1\r\n((?:%b)+)\r\n" % _HEADER)
"""A request without anything that `websockets` might refuse, or read in a way of its own."""


def read_request(data: bytes) -> Request | None:
    """Read a handshake that uvicorn has read before, and written out again, as `websockets` would in twice the time.

    `None` says that the request is not that plain.
    """
    plain = _PLAIN.fullmatch(data) if len(data) < MAX_LINE_LENGTH else None
    if plain is None:
        return None
    lines = plain[2].decode().split("\r\n")[:-1]
    headers = Headers([(name, value) for name, _, value in (line.partition(": ") for line in lines)])
    if len(lines) > MAX_NUM_HEADERS or "Transfer-Encoding" in headers or "Content-Length" in headers:
        return None
    return Request(plain[1].decode(), headers)


class FastLane(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, with an extension through which channels take the connection over.

    permessage-deflate is off: it costs tens of kilobytes for each connection, and compresses a broadcast for each
    client.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        config.ws_per_message_deflate = False
        super().__init__(config, server_state, app_state, _loop)
        self._unread = b""

    def data_received(self, data: bytes) -> None:
        """Take the request, and then what comes for other applications than channels, or before these attach."""
        if self._unread:  # the parser of websockets has to see the request after all
            self.conn.receive_data(self._unread)
            self.conn.events_received()
            self._unread = b""
        elif not self.handshake_initiated and not self.logger.isEnabledFor(logging.DEBUG):  # websockets would log it
            request = read_request(data)
            if request is not None:
                self._unread = data
                self.handle_connect(request)
                return
        super().data_received(data)

    def handle_connect(self, event: Any) -> None:
        """Call the application, and offer it the extension."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            extensions: dict[str, Any] = dict(self.scope.get("extensions") or {})
            self.scope["extensions"] = {**extensions, "starlette_channels": {"attach": self.attach}}

    def attach(self, connect: Callable[[Transport], Connection], limits: Bounds, counts: Counter[str]) -> bool:
        """Take the accepted connection over, and return whether that could be done; the ASGI call may return then.

        It cannot be done once messages have come, or while the client is behind with reading.
        """
        untouched = self.queue.empty() and not self.frames and not getattr(self.conn.reader, "buffer", b"")
        if (
            not (self.handshake_complete and untouched and self.writable.is_set())
            or self.close_sent
            or self.transport.is_closing()
        ):
            return False
        self.stop_keepalive()
        del self.scope  # through the extension it leads back to this object, which would have to wait for the collector
        transport = self.transport
        self.transport: asyncio.Transport = Detached()
        lane = Lane(
            transport,
            self.loop,
            pulse_of_this_loop(self.loop),
            limits,
            counts,
            min(self.config.ws_max_size, limits.message_bytes),
            self.connections,
            self.tasks,
        )
        self.connections.discard(self)
        transport.set_protocol(lane)
        lane.start(connect)
        return True


class Detached(asyncio.Transport):
    """What is left to uvicorn's object of a connection that it does not own any more."""

    def close(self) -> None:
        """Do nothing: the connection goes on."""

    def is_closing(self) -> bool:
        """Say yes, so that nothing more is tried."""
        return True
