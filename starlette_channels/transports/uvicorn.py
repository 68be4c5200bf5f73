"""The fast lane's way in under uvicorn: `uvicorn app:app --ws starlette_channels.transports.uvicorn:FastLane`.

The handshake, the ASGI call and every other WebSocket application stay with uvicorn's own class, which this one
extends. When the channels have accepted a client, they attach to its connection, and uvicorn's objects for it are let
go.
"""

import asyncio
import functools
import gc
import logging
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS, Request

from starlette_channels.connection import Connection
from starlette_channels.limits import Bounds
from starlette_channels.mishaps import Mishaps
from starlette_channels.transport import Transport
from starlette_channels.transports.handshake_log import be_discreet
from starlette_channels.transports.lane import Lane
from starlette_channels.transports.pulse import pulse_of_this_loop
from starlette_channels.transports.turnstile import turnstile_of

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


@functools.cache  # once for each process
def spare_what_is_loaded() -> None:
    """Have the garbage collector look no longer through modules and classes: that takes 10 to 100 ms each time.

    When the first client comes, the application has loaded what it needs. What is there stays usable, and is freed when
    nothing refers to it. A server in a thread is a guest in its process, and leaves it as it is.
    """
    if threading.current_thread() is threading.main_thread():
        gc.collect()
        gc.freeze()


class FastLane(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, with an extension through which channels take the connection over.

    permessage-deflate is off: it costs tens of kilobytes for each connection, and compresses a broadcast for each
    client. Handshakes are logged without their query, in which there may be a token, and not at all with
    `--no-access-log`.
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
        be_discreet(self.logger, access_log=config.access_log)
        spare_what_is_loaded()
        self._early: list[bytes] = []
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection over from uvicorn's object for HTTP, which would wait for the garbage collector."""
        predecessor: Any = cast("asyncio.Transport", transport).get_protocol()
        if hasattr(predecessor, "parser"):
            predecessor.parser = None
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
        if self.handshake_initiated:
            self._take(data)
        else:
            self._early.append(data)
            if len(self._early) == 1:
                turnstile_of(self.loop).enter(self._shake_hands)

    def _shake_hands(self) -> None:
        early, self._early = self._early, []
        if self.transport.is_closing():
            return
        self._read_request(early[0])
        for data in early[1:]:  # while it waited for its turn
            self.data_received(data)

    def _read_request(self, data: bytes) -> None:
        quick = not self.logger.isEnabledFor(logging.DEBUG)  # else websockets logs what it reads
        request = read_request(data) if quick else None
        if request is None:
            super().data_received(data)
        else:
            self._unread = data
            self.handle_connect(request)

    def _take(self, data: bytes) -> None:
        if self._unread:  # the parser of websockets has to see the request after all
            self.conn.receive_data(self._unread)
            self.conn.events_received()
            self._unread = b""
        super().data_received(data)

    def handle_connect(self, event: Any) -> None:
        """Call the application, and offer it the extension."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            extensions: dict[str, Any] = dict(self.scope.get("extensions") or {})
            self.scope["extensions"] = {**extensions, "starlette_channels": {"attach": self.attach}}

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


class Detached(asyncio.Transport):
    """What is left to uvicorn's object of a connection that it does not own any more."""

    def close(self) -> None:
        """Do nothing: the connection goes on."""

    def is_closing(self) -> bool:
        """Say yes, so that nothing more is tried."""
        return True
