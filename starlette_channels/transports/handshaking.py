"""uvicorn's WebSocket protocol, which does the handshake and calls the application, with a way out of it.

Every other WebSocket application stays with it. When the channels have accepted a client, they attach to its
connection, and uvicorn's objects for it are let go.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS, Request

from starlette_channels.connection import Connection
from starlette_channels.limits import Bounds
from starlette_channels.mishaps import Mishaps
from starlette_channels.transport import Transport
from starlette_channels.transports.closing import Closing
from starlette_channels.transports.handshake_log import be_discreet
from starlette_channels.transports.lane import Lane
from starlette_channels.transports.pulse import pulse_of_this_loop

UNSENT_BYTES = 1 << 18

_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Linux and macOS have it

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


def bound_what_waits_in_the_system(transport: asyncio.Transport) -> None:
    """Have the system refuse what is behind `UNSENT_BYTES` that a client has not taken, where it can do that.

    Else it takes megabytes for each client that does not read, which are old when they arrive, and which a thousand of
    such clients take away from all sockets of the machine.
    """
    connection = transport.get_extra_info("socket")
    if _LOWAT is not None and connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # the client has gone
            connection.setsockopt(socket.IPPROTO_TCP, _LOWAT, UNSENT_BYTES)


class Handshaking(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, with an extension through which channels take the connection over.

    Handshakes are logged without their query, in which there may be a token, and not at all with `--no-access-log`.
    """

    _unread: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and mind what is logged."""
        be_discreet(self.logger, access_log=self.config.access_log)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and wait for nothing."""
        super().connection_lost(exc)
        self.__dict__.pop("scope", None)  # through the extension it leads back to this object

    async def send(self, message: Any) -> None:
        """Send what the application says; a refused handshake is an answered one, which uvicorn 0.54 forgets."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

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
            self.scope["extensions"] = {
                **extensions,
                "starlette_channels": {"attach": self.attach, "refuse": self.refuse},
            }

    def attach(self, connect: Callable[[Transport], Connection], limits: Bounds, mishaps: Mishaps) -> bool:
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
        del self.scope
        transport = self.transport
        bound_what_waits_in_the_system(transport)
        self.transport: asyncio.Transport = Detached()
        lane = Lane(
            transport,
            self.loop,
            pulse_of_this_loop(self.loop),
            limits,
            mishaps,
            min(self.config.ws_max_size, limits.message_bytes),
            self.connections,
            self.tasks,
        )
        self.connections.discard(self)
        transport.set_protocol(lane)
        lane.start(connect)
        return True

    def refuse(self, code: int, reason: str) -> bool:
        """Close the accepted connection, without uvicorn, and return whether that could be done.

        uvicorn would read and parse whatever the client sends for another 10 seconds.
        """
        if not self.handshake_complete or self.close_sent or self.transport.is_closing():
            return False
        self.stop_keepalive()
        del self.scope
        transport = self.transport
        self.transport = Detached()
        self.connections.discard(self)
        Closing(transport, self.loop, self.connections).start(code, reason)
        return True


class Detached(asyncio.Transport):
    """What is left to uvicorn's object of a connection that it does not own any more."""

    def close(self) -> None:
        """Do nothing: the connection goes on."""

    def is_closing(self) -> bool:
        """Say yes, so that nothing more is tried."""
        return True
