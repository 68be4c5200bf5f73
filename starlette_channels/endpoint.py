"""`Channels`: the ASGI app that is mounted."""

import functools
import inspect
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, overload

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from starlette_channels.auth_tokens import SUBPROTOCOL, long_poll_token
from starlette_channels.broker import Broker
from starlette_channels.brokers.addresses import MEMORY
from starlette_channels.channels import Channel
from starlette_channels.connection import Connection, Service, Transport
from starlette_channels.exceptions import ConnectError
from starlette_channels.handshake import (
    Handshake,
    Refused,
    begin,
    choose_subprotocol,
    note_refusal,
    read_auth_token,
    refuse_websocket,
)
from starlette_channels.limits import Limits
from starlette_channels.messages import Payload, shown
from starlette_channels.metrics import Statistics
from starlette_channels.origins import CheckOrigin, OriginCheck
from starlette_channels.paths import TransportPath, path_below_mount
from starlette_channels.polling import LongPolling
from starlette_channels.serializers import DEFAULT_VERSION, V1, V2, Serializer, TextOnly, negotiate
from starlette_channels.transports.longpoll import LongPoll
from starlette_channels.transports.websocket import serve_websocket, warn_about_server
from starlette_channels.workers import refuse_several_workers

logger: logging.Logger = logging.getLogger("starlette_channels.connection")
transport_logger: logging.Logger = logging.getLogger("starlette_channels.transport")

A = TypeVar("A")
Connect: TypeAlias = Callable[[Handshake], Coroutine[Any, Any, A]]

Attach: TypeAlias = Callable[[Callable[[Transport], Connection], Limits, Counter[str]], bool]
"""What the fast lane offers in the ASGI scope; see `transports.uvicorn`."""

CLIENT_FILES = ("channels.js", "channels.d.ts", "presence.js", "presence.d.ts")


class Channels(Generic[A]):
    """The channels of an application: an ASGI app, to be mounted as `Mount("/socket", app=channels)`.

    It serves the WebSocket at `<mount>/websocket` and the client at `<mount>/channels.js`. `connect` is called once
    for each connection and returns what handlers see as `socket.assigns`; without it that is an empty dict.
    `socket_id` names a connection for `disconnect`. `path` may have variables (`"/ws/{region}"`), which are params as
    the mount's are. Of `subprotocols` the first that the client offers is chosen; a client that offers only others is
    refused. With `longpoll` it serves `<mount>/longpoll`, too, for clients that no WebSocket gets through to.

    `check_origin` says which pages may connect, by the `Origin` header that browsers send: `True`, those of the host
    that is connected to; `False`, any; a list such as `["https://app.example", "//*.app.example"]`; or a function of
    the handshake that returns a bool. `auth_token=True` reads the `authToken` of the client's options for `connect`.
    """

    @overload
    def __init__(
        self: "Channels[dict[str, Any]]",
        channels: Sequence[Channel[dict[str, Any]]],
        *,
        socket_id: Callable[[dict[str, Any]], str | None] | None = None,
        broker: str | Broker = "memory://",
        serializers: Sequence[Serializer] = (),
        path: str = "/websocket",
        subprotocols: Sequence[str] | None = None,
        check_origin: CheckOrigin = True,
        auth_token: bool = False,
        longpoll: LongPoll | bool = False,
        limits: Limits | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        channels: Sequence[Channel[A]],
        *,
        connect: Connect[A],
        socket_id: Callable[[A], str | None] | None = None,
        broker: str | Broker = "memory://",
        serializers: Sequence[Serializer] = (),
        path: str = "/websocket",
        subprotocols: Sequence[str] | None = None,
        check_origin: CheckOrigin = True,
        auth_token: bool = False,
        longpoll: LongPoll | bool = False,
        limits: Limits | None = None,
    ) -> None: ...

    def __init__(
        self,
        channels: Sequence[Channel[Any]],
        *,
        connect: Connect[Any] | None = None,
        socket_id: Callable[[Any], str | None] | None = None,
        broker: str | Broker = "memory://",
        serializers: Sequence[Serializer] = (),
        path: str = "/websocket",
        subprotocols: Sequence[str] | None = None,
        check_origin: CheckOrigin = True,
        auth_token: bool = False,
        longpoll: LongPoll | bool = False,
        limits: Limits | None = None,
    ) -> None:
        if connect is not None and not inspect.iscoroutinefunction(connect):
            raise TypeError("Channels(connect=...): it must be `async def` and take one argument, the handshake")
        self._service = Service(channels, broker if isinstance(broker, Broker) else Broker(broker), limits or Limits())
        self._connect: Connect[Any] = connect or _connect_anybody
        self._socket_id = socket_id
        self._serializers = tuple(serializers) or (V2(), V1())
        self._path = TransportPath(path, "Channels(path")
        self._auth_token = auth_token
        self._subprotocols = [SUBPROTOCOL, *(subprotocols or ())] if auth_token else subprotocols
        self._check_origin = OriginCheck(check_origin)
        self._longpoll = self._make_longpoll(LongPoll() if longpoll is True else longpoll or None)
        self._static = StaticFiles(directory=Path(__file__).parent / "static")
        self._closing = False
        warn_about_server()
        if broker == MEMORY:
            refuse_several_workers()

    # What applications call.

    def broadcast(self, topic: str, event: str, payload: Payload) -> None:
        """Send an event to everyone on a topic, from anywhere: a route, a task, another thread.

        It returns at once, and a topic without subscribers is no error. Raises `TypeError` if the payload cannot be
        encoded.
        """
        self._service.broker.broadcast(topic, event, payload)

    def disconnect(self, socket_id: str) -> None:
        """Close all connections whose `socket_id` this is, with 1001; their channels end, clients reconnect."""
        self.broadcast(socket_id, "disconnect", {})

    def statistics(self) -> Statistics:
        """Return what there is and what has gone wrong; it costs a few microseconds and a loop over the connections."""
        connections = self._service.connections.copy()
        return Statistics(
            connections=len(connections),
            channels=sum(connection.channels for connection in connections),
            topics=self._service.broker.topics,
            counts=dict(self._service.counts + self._service.broker.counts),
        )

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:
        """Close what is open when the application ends: `Starlette(lifespan=channels.lifespan)`.

        Connections are closed with 1012, handlers and `terminate` have their time. uvicorn does the same by itself
        before the lifespan ends; hypercorn and granian end the calls of their connections by then, without a code of
        ours.
        """
        self._closing = False
        try:
            yield
        finally:
            await self._close_all()

    async def _close_all(self) -> None:
        self._closing = True
        connections = tuple(self._service.connections)
        for connection in connections:
            connection.hub.run(connection.close, 1012, "restart")
        with anyio.move_on_after(3 * self._service.limits.shutdown_seconds, shield=True):
            here = self._service.broker.hub()
            for connection in connections:
                if connection.hub is here:  # in tests, connections may have event loops of their own
                    await connection.ended()
        await self._service.broker.close()

    # ASGI.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a WebSocket, the client's files, or the lifespan when this is the whole application."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._lifespan(receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        connected = None
        try:
            connected, subprotocol = await self._shake_hands(scope)
        except Refused as refusal:
            note_refusal(refusal, self._service.counts)
            answer = refuse_websocket(scope, send, refusal)
        else:
            answer = send({"type": "websocket.accept", "subprotocol": subprotocol})
        try:
            await answer
        except Exception as error:  # noqa: BLE001 - servers raise what they like when the client is gone
            logger.debug("The client was gone before its answer: %r", error)
            return
        if connected is not None and not self._take_fast_lane(scope, connected):
            await serve_websocket(receive, send, connected, self._service.limits, self._service.counts)

    def _take_fast_lane(self, scope: Scope, connected: Callable[[Transport], Connection]) -> bool:
        """Attach to the server's connection if it lets us, and free the ASGI call."""
        extensions: dict[str, Any] = scope.get("extensions") or {}
        attach: Attach | None = extensions.get("starlette_channels", {}).get("attach")
        _say_which_transport(attach is not None)
        return attach is not None and attach(connected, self._service.limits, self._service.counts)

    async def _shake_hands(self, scope: Scope) -> tuple[Callable[[Transport], Connection], str | None]:
        """Check all that can be checked before `connect` is asked, in Phoenix's order, and ask it. Raises `Refused`."""
        path_params = self._path.match(scope)
        if path_params is None:
            raise Refused(404, "no such path")
        handshake = self._begin(scope, path_params)
        if self._auth_token:
            read_auth_token(handshake)
        subprotocol = choose_subprotocol(self._subprotocols, handshake.offered_subprotocols)
        return await self._admit(handshake, self._serializers), subprotocol

    def _begin(self, scope: Scope, path_params: Mapping[str, Any]) -> Handshake:
        """Return what `connect` will see, if the page it comes from may connect. Raises `Refused`."""
        handshake = begin(scope, path_params)
        self._check_origin(handshake)
        return handshake

    async def _admit(
        self, handshake: Handshake, serializers: Sequence[Serializer]
    ) -> Callable[[Transport], Connection]:
        """Ask `connect`; return what makes the connection. Raises `Refused`."""
        if self._closing:
            raise Refused(503, "shutting down")
        vsn = handshake.params.get("vsn", DEFAULT_VERSION)
        serializer = negotiate(vsn, serializers)
        if serializer is None:
            raise Refused(403, f"no serializer for version {shown(vsn)}")
        try:
            assigns = await self._connect(handshake)
            socket_id = self._identify(assigns)
        except ConnectError as error:
            raise Refused(error.status, error.reason, error.reason) from None
        except HTTPException as error:
            raise Refused(error.status_code, error.detail, error.detail) from None
        except Refused:
            raise
        except Exception as error:
            raise Refused(500, "connect raised", "Internal Server Error", "connect_crashed") from error
        app = handshake.scope.get("app")

        def connected(transport: Transport) -> Connection:
            logger.info("Connected, protocol version %s", serializer.version)
            return Connection(self._service, transport, serializer, assigns, socket_id, app)

        return connected

    def _identify(self, assigns: Any) -> str | None:
        socket_id: Any = None if self._socket_id is None else self._socket_id(assigns)
        if socket_id is None or isinstance(socket_id, str):
            return socket_id
        raise Refused(403, f"socket_id returned {type(socket_id).__name__}: it must be a string or None")

    def _make_longpoll(self, options: LongPoll | None) -> LongPolling | None:
        if options is None:
            return None
        serializers = tuple(TextOnly(serializer) for serializer in self._serializers)

        async def admit(handshake: Handshake) -> Callable[[Transport], Connection]:
            if self._auth_token:
                handshake.auth_token = long_poll_token(handshake.headers)
            return await self._admit(handshake, serializers)

        return LongPolling(options, self._service.limits, self._service.counts, self._begin, admit)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        polled = None if self._longpoll is None else self._longpoll.path.match(scope)
        if self._longpoll is not None and polled is not None:
            await self._longpoll(scope, polled, receive, send)
        else:
            response = await self._respond(scope)
            await response(scope, receive, send)

    async def _respond(self, scope: Scope) -> Response:
        """Answer a request that is no transport's: with a file of the client, or what there is to say."""
        path = path_below_mount(scope)
        if path.removeprefix("/") in CLIENT_FILES and scope["method"] in ("GET", "HEAD"):
            response = await self._static.get_response(path.removeprefix("/"), scope)
            # Pages of other origins may import the client, and get a new one when the server is upgraded.
            response.headers.update({"access-control-allow-origin": "*", "cache-control": "no-cache"})
            return response
        if self._path.match(scope) is None:
            return PlainTextResponse("Not Found", 404)
        if scope["method"] != "GET":
            return PlainTextResponse("Method Not Allowed", 405, {"allow": "GET"})
        try:
            self._check_origin(Handshake(scope, {}))
        except Refused as refusal:
            note_refusal(refusal, self._service.counts)
            return PlainTextResponse(refusal.body, refusal.status)
        upgrading = "upgrade" in Headers(scope=scope)
        reason = "No WebSocket library: install uvicorn[standard]" if upgrading else "This is for WebSockets"
        # Both headers go together in HTTP/1.1, and neither is allowed in HTTP/2.
        headers = {"upgrade": "websocket", "connection": "upgrade"} if scope.get("http_version") == "1.1" else {}
        return PlainTextResponse(reason, 400, headers)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        async with self.lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()  # lifespan.shutdown
        await send({"type": "lifespan.shutdown.complete"})


@functools.cache  # once for each process
def _say_which_transport(fast: bool) -> None:
    if fast:
        transport_logger.info("Channels take the fast lane")
    else:
        transport_logger.info(
            "Channels are served through receive and send; under uvicorn, there is a fast lane: "
            "--ws starlette_channels.transports.uvicorn:FastLane"
        )


async def _connect_anybody(_: Handshake) -> dict[str, Any]:
    return {}
