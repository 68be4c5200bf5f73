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

from starlette_channels.connection.connection import Connection
from starlette_channels.connection.transport import Transport
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.transports.uvicorn_lane.access_log import be_discreet
from starlette_channels.transports.uvicorn_lane.closing import Closing
from starlette_channels.transports.uvicorn_lane.connection import Lane
from starlette_channels.transports.uvicorn_lane.early_data import EARLY_BYTES, EarlyBytes
from starlette_channels.transports.uvicorn_lane.idle_sweep import pulse_of_this_loop

logger: logging.Logger = logging.getLogger("starlette_channels.transport")

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

    early: EarlyBytes
    """What the client has sent behind its request."""

    _unread: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and mind what is logged."""
        self.early = EarlyBytes()
        be_discreet(self.logger, access_log=self.config.access_log)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and wait for nothing."""
        super().connection_lost(exc)
        self.__dict__.pop("scope", None)  # through the extension it leads back to this object

    async def send(self, message: Any) -> None:
        """Send what the application says; a refused handshake is an answered one, which uvicorn 0.54 forgets.

        When it has been accepted, the client is read from again, if channels have not taken it over by then.
        """
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True
        elif message["type"] == "websocket.accept":
            self.loop.call_soon(self._listen)

    def data_received(self, data: bytes) -> None:
        """Take the request, and then what comes for other applications than channels.

        Nothing is read between the two; what comes all the same has to wait for the answer.
        """
        if self.handshake_initiated and not self.handshake_complete:
            self.early.add(data)
        elif self._unread:  # the parser of websockets has to see the request after all
            self.conn.receive_data(self._unread)
            self.conn.events_received()
            self._unread = b""
            super().data_received(data)
        elif self.handshake_initiated or self.logger.isEnabledFor(logging.DEBUG):  # websockets would log the request
            super().data_received(data)
        elif (request := read_request(data)) is not None:
            self._unread = data
            self.handle_connect(request)
        else:
            super().data_received(data)

    def _listen(self) -> None:
        """Go on as uvicorn does with its connections: channels have not taken this one."""
        if self.transport.is_closing():  # what stands for the transport after that says so, too
            return
        if self.early.is_too_much:
            self.transport.abort()
            return
        self.transport.resume_reading()
        if early := self.early.take():
            self.data_received(early)

    def handle_connect(self, event: Any) -> None:
        """Call the application, and offer it the extension."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            extensions: dict[str, Any] = dict(self.scope.get("extensions") or {})
            self.scope["extensions"] = {
                **extensions,
                "starlette_channels": {"attach": self.attach, "refuse": self.refuse},
            }

    def attach(self, connect: Callable[[Transport], Connection], limits: Bounds, error_log: ErrorLog) -> bool:
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
            error_log,
            min(self.config.ws_max_size, limits.message_bytes),
            self.connections,
            self.tasks,
        )
        self.connections.discard(self)
        transport.set_protocol(lane)
        lane.start(connect)
        if self.early.is_too_much:
            text = "Connection closed with 1008: over %d bytes before the handshake was answered"
            error_log.note("early_bytes", logger, text, EARLY_BYTES)
            lane.close(1008, "early_bytes")
        elif early := self.early.take():
            lane.data_received(early)
        lane.listen()
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
        closing = Closing(transport, self.loop, self.connections)
        closing.start(code, reason)
        closing.data_received(self.early.take())
        return True


class Detached(asyncio.Transport):
    """What is left to uvicorn's object of a connection that it does not own any more."""

    def close(self) -> None:
        """Do nothing: the connection goes on."""

    def is_closing(self) -> bool:
        """Say yes, so that nothing more is tried."""
        return True
