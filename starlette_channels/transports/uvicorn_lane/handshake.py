"""The handshake of the fast lane: from the upgrade request to the connection of a client.

Channels claim the handshake through the ASGI extension. Then the protocol of this module answers the request, and
passes the accepted connection on to a lane. Every other WebSocket application gets uvicorn's own protocol object.
"""

import asyncio
import functools
import gc
import logging
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import Enum, auto
from typing import Any, cast
from urllib.parse import unquote

from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected, get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from starlette_channels.connection.connection import Connection
from starlette_channels.connection.transport import Transport
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.transports.uvicorn_lane.accept_queue import handshake_queue_of
from starlette_channels.transports.uvicorn_lane.access_log import log_handshake
from starlette_channels.transports.uvicorn_lane.closing import Closing
from starlette_channels.transports.uvicorn_lane.connection import Lane
from starlette_channels.transports.uvicorn_lane.early_data import EARLY_BYTES, EarlyBytes, has_hung_up
from starlette_channels.transports.uvicorn_lane.http_response import (
    DefaultHeaders,
    phrase,
    refusal,
    switching_protocols,
)
from starlette_channels.transports.uvicorn_lane.idle_sweep import idle_sweep_of
from starlette_channels.transports.uvicorn_lane.upgrade_request import UpgradeRequest, read_any_upgrade, read_upgrade
from starlette_channels.transports.uvicorn_lane.uvicorn_websocket import UvicornWebSocket

logger: logging.Logger = logging.getLogger("starlette_channels.transport")
server_logger: logging.Logger = logging.getLogger("uvicorn.error")

FAILURES = ErrorLog(Counter())
"""Errors of the application around the channels, such as its middleware: clients may cause them again and again."""

UNSENT_BYTES = 1 << 18

_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # only on Linux and macOS

_default_headers = DefaultHeaders()


@functools.cache  # once for each process
def freeze_gc() -> None:
    """Exempt the loaded modules and classes from garbage collection: each collection takes 10 to 100 ms less.

    Done at the first handshake, when the application is loaded. A server in a thread leaves the process as it is.
    """
    if threading.current_thread() is threading.main_thread():
        gc.collect()
        gc.freeze()


def limit_unsent_buffer(transport: asyncio.Transport) -> None:
    """Limit the unsent bytes that the system buffers for a client to `UNSENT_BYTES`.

    Otherwise it buffers megabytes for each client that does not read: they are old when they arrive, and a thousand
    such clients use up the memory for all sockets of the machine.
    """
    connection = transport.get_extra_info("socket")
    if _LOWAT is not None and connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # the client has gone
            connection.setsockopt(socket.IPPROTO_TCP, _LOWAT, UNSENT_BYTES)


class HandshakeState(Enum):
    """The state of a handshake."""

    RECEIVING = auto()
    """The request has not arrived yet."""
    QUEUED = auto()
    """The request waits in the handshake queue."""
    CALLED = auto()
    """The application has been called, and may be any."""
    CLAIMED = auto()
    """The application is channels."""
    REFUSING = auto()
    """The status of a refusal is known, its body is not."""
    ACCEPTED = auto()
    """The 101 is sent."""
    PASSED_ON = auto()
    """Another protocol object has the connection."""
    CLOSED = auto()
    """The connection is closed, or the client has gone."""


class FastLane(asyncio.Protocol):
    """A WebSocket protocol for uvicorn: channels write to the connections of their clients without ASGI calls.

    permessage-deflate is off: it costs tens of kilobytes for each connection, and compresses a broadcast for each
    client.
    """

    __slots__ = (
        *(
            "_app_state",
            "_config",
            "_early",
            "_gone",
            "_is_announced",
            "_loop",
            "_raw",
            "_refusal",
            "_request",
            "_scope",
        ),
        *("_server_state", "_state", "_transport", "_uvicorn"),
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        config.ws_per_message_deflate = False
        freeze_gc()
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._state = HandshakeState.RECEIVING
        self._early = EarlyBytes()
        self._request: UpgradeRequest | None = None
        self._raw = b""
        self._scope: dict[str, Any] | None = None
        self._refusal: tuple[int, list[tuple[bytes, bytes]], bytes] = (500, [], b"")
        self._is_announced = False
        self._gone: asyncio.Future[None] | None = None
        self._uvicorn: UvicornWebSocket | None = None

    # Called by the event loop and uvicorn.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the connection from an HTTP protocol.

        Data that h11 has read beyond the request is taken over as well; httptools drops it. Its parser refers back to
        the protocol, so it is removed: no reference cycle.
        """
        self._transport = cast("asyncio.Transport", transport)
        predecessor: Any = self._transport.get_protocol()
        if hasattr(predecessor, "parser"):
            predecessor.parser = None
        elif hasattr(predecessor, "conn"):
            self._early.add(predecessor.conn.trailing_data[0])
        self._server_state.connections.add(cast("Any", self))

    def data_received(self, data: bytes) -> None:
        """Read the request passed on by uvicorn, or keep a bounded part of the data that TLS had decrypted already."""
        if self._state is HandshakeState.RECEIVING:
            self.begin(None if server_logger.isEnabledFor(logging.DEBUG) else read_upgrade(data), data)
        else:
            self._early.add(data)

    def begin(self, request: UpgradeRequest | None, data: bytes) -> None:
        """Queue a request; reading is paused until it is answered."""
        self._request, self._raw = request, data
        if request is not None and request.size < len(data):
            self._raw = data[: request.size]
            self._early.add(data[request.size :])
        self._state = HandshakeState.QUEUED
        self._transport.pause_reading()
        handshake_queue_of(self._loop).enter(self._start)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up: the client has disconnected."""
        self._server_state.connections.discard(cast("Any", self))
        self._state = HandshakeState.CLOSED
        self._scope = None
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def shutdown(self) -> None:
        """Answer 500 if there is no answer yet, and close, because the server stops."""
        if self._state in (HandshakeState.QUEUED, HandshakeState.CALLED, HandshakeState.CLAIMED):
            self._transport.write(refusal(500, [], b"Internal Server Error"))
        self._close()

    # Called by the queue of handshakes.

    def _start(self) -> None:
        if self._state is not HandshakeState.QUEUED or self._transport.is_closing():
            return
        if has_hung_up(self._transport):
            self._server_state.connections.discard(cast("Any", self))
            self._state = HandshakeState.CLOSED
            self._transport.abort()
            return
        request = self._request or read_any_upgrade(self._raw, server_logger)
        if isinstance(request, bytes):
            self._transport.write(request)
            self._close()
            return
        self._request = request
        self._state = HandshakeState.CALLED
        self._scope = self._make_scope(request)
        task = self._spawn(self._call(self._scope))
        if not task.done():
            self._server_state.tasks.add(task)
            task.add_done_callback(self._server_state.tasks.discard)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if sys.version_info >= (3, 12):
            return asyncio.Task(coroutine, loop=self._loop, eager_start=True)
        return self._loop.create_task(coroutine)

    def _make_scope(self, request: UpgradeRequest) -> dict[str, Any]:
        config, transport = self._config, self._transport
        target, _, query = request.target.partition(b"?")
        path, root = target.decode("ascii"), config.root_path
        return {
            "type": "websocket",
            "asgi": {"version": config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if is_ssl(transport) else "ws",
            "server": get_local_addr(transport),
            "client": get_remote_addr(transport),
            "root_path": root,
            "path": root + (unquote(path) if "%" in path else path),
            "raw_path": root.encode("ascii") + target,
            "query_string": query,
            "headers": request.headers,
            "subprotocols": request.subprotocols,
            "state": self._app_state.copy(),
            "extensions": {
                "websocket.http.response": {},
                "starlette_channels": {"claim": self.claim, "attach": self.attach, "refuse": self.refuse},
            },
        }

    async def _call(self, scope: dict[str, Any]) -> None:
        """Call the application."""
        app = cast("Callable[..., Coroutine[Any, Any, object]]", self._config.loaded_app)  # pyright: ignore
        try:
            result = await app(scope, self._receive, self._send)
        except BaseException as error:  # noqa: BLE001 - uvicorn logs them all, and so do we
            self._finish(None, error)
        else:
            self._finish(result, None)

    def _finish(self, result: object, error: BaseException | None) -> None:
        """Handle the end of the call as uvicorn does: log errors, and answer if there is no answer yet."""
        if self._state in (HandshakeState.CALLED, HandshakeState.CLAIMED):
            self._pass_to_uvicorn()
        if self._uvicorn is not None:
            self._uvicorn.finish(result, error)
        elif error is not None:
            if not isinstance(error, ClientDisconnected):
                FAILURES.note("application_failed", server_logger, "Exception in ASGI application\n", cause=error)
        elif result is not None:
            text = "ASGI callable should return None, but returned '%s'."
            FAILURES.note("application_result", server_logger, text, result, level=logging.ERROR)
        if self._state is not HandshakeState.PASSED_ON:
            self._close()

    # Called by the application.

    def claim(self) -> None:
        """Answer the handshake here: the application is channels, and attaches after the accept."""
        if self._state is HandshakeState.CALLED:
            self._state = HandshakeState.CLAIMED

    async def _receive(self) -> dict[str, Any]:
        if self._uvicorn is not None:
            return cast("dict[str, Any]", await self._uvicorn.receive())
        if not self._is_announced:
            self._is_announced = True
            return {"type": "websocket.connect"}
        if self._state is HandshakeState.CALLED:
            return cast("dict[str, Any]", await self._pass_to_uvicorn().receive())
        if self._state is not HandshakeState.CLOSED:
            self._gone = self._gone or self._loop.create_future()
            await asyncio.shield(self._gone)
        return {"type": "websocket.disconnect", "code": 1006}

    async def _send(self, message: Any) -> None:
        if self._uvicorn is not None:
            await self._uvicorn.send(message)
        elif self._state is HandshakeState.CLOSED or (
            self._state is HandshakeState.ACCEPTED and self._transport.is_closing()
        ):
            raise ClientDisconnected
        elif self._state is HandshakeState.CALLED:
            await self._pass_to_uvicorn().send(message)
        else:
            self._answer(message)

    def _answer(self, message: Any) -> None:
        """Answer the handshake with a message of channels."""
        match self._state, message["type"]:
            case HandshakeState.CLAIMED, "websocket.accept":
                self._accept(message)
            case HandshakeState.CLAIMED, "websocket.close":
                self._refuse(403, [], b"")
            case HandshakeState.CLAIMED, "websocket.http.response.start":
                self._state = HandshakeState.REFUSING
                self._refusal = (message["status"], list(message.get("headers", ())), b"")
            case HandshakeState.REFUSING, "websocket.http.response.body":
                status, headers, body = self._refusal
                body += message.get("body", b"")
                if message.get("more_body", False):
                    self._refusal = (status, headers, body)
                else:
                    self._refuse(status, headers, body)
            case _, kind:
                raise RuntimeError(f"Unexpected ASGI message '{kind}'.")

    def _accept(self, message: Any) -> None:
        assert self._request is not None
        self._log("[accepted]", "connection open")
        default_lines = _default_headers.encode(self._server_state.default_headers)
        response = switching_protocols(
            self._request.accept, default_lines, message.get("headers", ()), message.get("subprotocol")
        )
        self._state = HandshakeState.ACCEPTED
        if not self._transport.is_closing():
            self._transport.write(response)

    def _refuse(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self._log(str(status), f"connection rejected ({status} {phrase(status)})")
        self._transport.write(refusal(status, headers, body))
        self._close()

    def _log(self, outcome: str, connection: str) -> None:
        if self._scope is not None and self._config.access_log and server_logger.isEnabledFor(logging.INFO):
            log_handshake(server_logger, self._scope, outcome, connection)

    def _close(self) -> None:
        self._state = HandshakeState.CLOSED
        self._scope = None
        self._transport.close()

    def attach(self, make_connection: Callable[[Transport], Connection], limits: Bounds, error_log: ErrorLog) -> bool:
        """Pass the accepted connection on to a lane; return False if the client has gone. The ASGI call may return."""
        if self._state is not HandshakeState.ACCEPTED or self._transport.is_closing():
            return False
        transport, connections = self._pass_on(), cast("set[Any]", self._server_state.connections)
        limit_unsent_buffer(transport)
        lane = Lane(
            transport,
            self._loop,
            idle_sweep_of(self._loop),
            limits,
            error_log,
            min(self._config.ws_max_size, limits.message_bytes),
            connections,
            self._server_state.tasks,
        )
        transport.set_protocol(lane)
        lane.start(make_connection)
        if self._early.is_too_much:
            text = "Connection closed with 1008: over %d bytes before the handshake was answered"
            error_log.note("early_bytes", logger, text, EARLY_BYTES)
            lane.close(1008, "early_bytes")
        elif early := self._early.take():
            lane.data_received(early)
        lane.listen()
        return True

    def refuse(self, code: int, reason: str) -> bool:
        """Close the accepted connection with a code; return False if the client has gone."""
        if self._state is not HandshakeState.ACCEPTED or self._transport.is_closing():
            return False
        closing = Closing(self._pass_on(), self._loop, cast("set[Any]", self._server_state.connections))
        closing.start(code, reason)
        closing.data_received(self._early.take())
        return True

    def _pass_on(self) -> asyncio.Transport:
        """Release the connection for another protocol object."""
        self._server_state.connections.discard(cast("Any", self))
        self._state = HandshakeState.PASSED_ON
        self._scope = None
        return self._transport

    def _pass_to_uvicorn(self) -> UvicornWebSocket:
        """Pass the connection, and all further messages of the call, to uvicorn's protocol object."""
        scope, transport = self._scope, self._pass_on()
        self._uvicorn = UvicornWebSocket(self._config, self._server_state, self._app_state, self._loop, self._early)
        self._uvicorn.connection_made(transport)
        transport.set_protocol(self._uvicorn)
        self._uvicorn.begin(self._raw, scope, is_announced=self._is_announced)
        return self._uvicorn
