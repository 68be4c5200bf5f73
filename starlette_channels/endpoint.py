"""`Channels`: the ASGI app that is mounted."""

import functools
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Generic, TypeAlias, TypeVar, overload

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from starlette_channels.arguments import check_type
from starlette_channels.channels.checks import check_list
from starlette_channels.channels.definition import Channel
from starlette_channels.connection.expiry import Expiry
from starlette_channels.connection.registry import Service
from starlette_channels.handshake.admission import Admission, Connect, MakeConnection, PendingHandshake
from starlette_channels.handshake.origins import CheckOrigin, OriginCheck
from starlette_channels.handshake.paths import TransportPath
from starlette_channels.handshake.refusal import Refused, log_refusal, refuse_websocket
from starlette_channels.limits import Bounds, Limits
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.observability.log_options import LogOptions
from starlette_channels.observability.statistics import Statistics
from starlette_channels.presence.presence import Presence
from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.commands import Disconnect, Kick
from starlette_channels.pubsub.engines.url import MEMORY
from starlette_channels.pubsub.hub import Hub
from starlette_channels.server.drain import Drain
from starlette_channels.server.drainer import Drainer
from starlette_channels.server.http import Pages
from starlette_channels.server.readiness import Readiness
from starlette_channels.server.signals import STOP_SIGNALS
from starlette_channels.server.workers import refuse_several_workers
from starlette_channels.transports.asgi_websocket import forget_what_comes, serve_websocket, warn_about_server
from starlette_channels.transports.longpoll.endpoint import LongPolling
from starlette_channels.transports.longpoll.transport import LongPoll
from starlette_channels.wire.messages import Payload
from starlette_channels.wire.serializers import V1, V2, Serializer

logger: logging.Logger = logging.getLogger("starlette_channels.connection")
transport_logger: logging.Logger = logging.getLogger("starlette_channels.transport")

TESTING = "starlette_channels.testing"
"""The ASGI extension by which the client for tests is known."""

A = TypeVar("A")
Claim: TypeAlias = Callable[[], None]
"""The fast lane's function in the ASGI scope by which it learns that the application is channels."""
Attach: TypeAlias = Callable[[MakeConnection, Bounds, ErrorLog], bool]
"""The fast lane's function in the ASGI scope that takes over an accepted WebSocket."""


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
    `expiry` says how long who `connect` returned may stay, and how that goes on. A `presence` named here hears of other
    processes from the start of the application, and its counts are in `statistics`. `drain` says how clients are sent
    away before the server stops.
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
        expiry: Expiry[dict[str, Any]] | None = None,
        presence: Presence | Sequence[Presence] = (),
        longpoll: LongPoll | bool = False,
        limits: Limits | None = None,
        drain: Drain | bool = True,
        log: LogOptions | None = None,
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
        expiry: Expiry[A] | None = None,
        presence: Presence | Sequence[Presence] = (),
        longpoll: LongPoll | bool = False,
        limits: Limits | None = None,
        drain: Drain | bool = True,
        log: LogOptions | None = None,
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
        expiry: Expiry[Any] | None = None,
        presence: Presence | Sequence[Presence] = (),
        longpoll: LongPoll | bool = False,
        limits: Limits | None = None,
        drain: Drain | bool = True,
        log: LogOptions | None = None,
    ) -> None:
        check_type(broker, (str, Broker), "Channels(broker=", 'give an address, as in broker="redis://localhost"')
        check_list(serializers, object, "Channels(serializers", "serializers=[V2(), V1()]")
        if subprotocols is not None:
            check_list(subprotocols, str, "Channels(subprotocols", 'subprotocols=["phoenix"]')
        check_type(auth_token, bool, "Channels(auth_token=", "it is True or False; `connect` looks at the token itself")
        if expiry is not None:
            check_type(expiry, Expiry, "Channels(expiry=", "write expiry=Expiry(at=...)")
        check_type(longpoll, (bool, LongPoll), "Channels(longpoll=", "write longpoll=True, or LongPoll(...)")
        check_type(drain, (bool, Drain), "Channels(drain=", "write drain=Drain(...), True or False")
        if not isinstance(presence, Presence):
            check_list(presence, Presence, "Channels(presence", "presence=[lobby, rooms], or one presence")
        broker_of_all = broker if isinstance(broker, Broker) else Broker(broker)
        self._service = Service(channels, broker_of_all, limits or Limits(), log)
        origins = OriginCheck(check_origin)
        self._admission = Admission(
            self._service,
            connect,
            socket_id,
            tuple(serializers) or (V2(), V1()),
            subprotocols,
            origins,
            auth_token,
            expiry,
        )
        self._path = TransportPath(path, "Channels(path")
        self._longpoll = self._make_longpoll(LongPoll() if longpoll is True else longpoll or None)
        self._pages = Pages(self._path, origins, self._service)
        self._misses_lifespan = drain is not False or broker_of_all.is_shared
        self._drainer = Drainer(self._service, drain if isinstance(drain, Drain) else Drain())
        self._minds_signals = drain is not False
        self._presences = (presence,) if isinstance(presence, Presence) else tuple(presence)
        self._readiness = Readiness(broker_of_all, self._presences, self._service.counts)
        warn_about_server()
        if broker == MEMORY:
            refuse_several_workers()

    # What applications call.

    def broadcast(self, topic: str, event: str, payload: Payload) -> None:
        """Send an event to everyone on a topic, from anywhere: a route, a task, another thread.

        It returns at once, and a topic without subscribers is no error. Raises `TypeError` if the payload cannot be
        encoded, and `ValueError` for the events that are the protocol's or Presence's own: those that begin with
        `phx_` or `chan_reply_`, `presence_state` and `presence_diff`.
        """
        self._service.broker.broadcast(topic, event, payload)

    def disconnect(self, socket_id: str, *, code: int = 1001, reason: str = "disconnected") -> None:
        """Close all connections whose `socket_id` this is, in whatever process; their channels end, as `"closed"`.

        Clients see both code and reason. They come back, older versions of phoenix.js not after 1000, and `connect`
        decides again. It means who is connected now, or whose `connect` is running. Processes that cannot be reached
        do it within ten seconds of being reachable again, for up to an hour; the page on engines says what that does
        not cover.

        Raises `ValueError` for a code that a server may not send, and for a reason of over 123 bytes in UTF-8. It may
        be called from any thread, returns at once, and an id that nobody has is no error.
        """
        self._service.broker.command(socket_id, Disconnect(code, reason))

    def kick(self, socket_id: str, topic: str, *, reason: str | None = None) -> None:
        """End the channel of this very topic on all connections whose `socket_id` this is, in whatever process.

        The client gets the event `kicked`, `{"reason": ...}`, if there is a reason, and `phx_close`: it stays away
        until it joins anew, which the join handler may refuse. A handler that is running may finish, for as long as
        `Limits.shutdown_seconds`; what waits behind it is answered `unmatched topic`. `terminate` gets `"kicked"`. It
        reaches other processes as `disconnect` does, and means who is on the topic or joining it now. It may be called
        from any thread, returns at once, and nobody being there is no error.
        """
        self._service.broker.command(socket_id, Kick(topic, reason))

    def statistics(self) -> Statistics:
        """Return what there is and what has gone wrong; it costs a few microseconds and a loop over the connections."""
        connections = self._service.connections.copy()
        counts = self._service.counts + self._service.broker.counts
        for presence in self._presences:
            counts.update(presence.counts)
        return Statistics(
            connections=len(connections),
            channels=sum(connection.channels for connection in connections),
            topics=self._service.broker.topics,
            counts=dict(counts),
        )

    async def ready(self, _: Request) -> Response:
        """Answer 200 if clients may be sent here, else 503; for load balancers: `Route("/ready", channels.ready)`.

        That is so from when the engine is connected and each `Presence` of `Channels(presence=...)` has heard from the
        other processes, or 10 seconds after the start, until the server is to stop. With `memory://` it is so at once.
        """
        return self._pages.readiness(self._readiness.check)

    async def drain(self) -> None:
        """Send all clients away, as before the server stops, and return when that is done.

        New connections are refused with 503, new joins with `restarting`, `ready` answers 503. Connections are closed
        in batches, as `Drain` says, each once what its client has sent is answered. A second call waits for the first.
        `lifespan` does this on SIGTERM; call it for servers that do not let it, or to take a server out of service.
        """
        await self._drainer.drain()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:
        """Send clients away when the server is to stop: `Starlette(lifespan=channels.lifespan)`.

        On SIGTERM the clients are drained before the server hears of it: see `drain`. On SIGINT (Ctrl-C), under
        uvicorn's `--reload`, and if the lifespan ends without a signal, that is done at once instead of in batches. A
        second signal cancels handlers that are at work. With `Channels(drain=False)` the signals are the server's.

        While it ends, nobody is let in. Afterwards the application is as it was before: it may run its lifespan again,
        in this event loop or another one, or be used without, as in tests. Of several lifespans that run at a time in
        different event loops, only the last one disconnects the broker; the others end the connections of their own.
        """
        self._misses_lifespan = False
        hub = self._service.broker.hub()
        self._service.begin_lifespan(hub)
        self._readiness.begin()
        with STOP_SIGNALS.held_for(self._drainer, hub) if self._minds_signals else nullcontext():
            try:
                yield
            finally:
                await self._end_lifespan(hub)

    async def _end_lifespan(self, hub: Hub) -> None:
        others = self._service.end_lifespan(hub)
        if hub in others:
            return  # one around this one, in the same event loop: that one sends the clients away
        if others:
            await self._drainer.leave_loop()
            return
        try:
            await self._drainer.drain(at_once=True)
            await self._service.broker.close()
        finally:
            self._service.open()

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
        extensions: dict[str, Any] = scope.get("extensions") or {}
        claim: Claim | None = extensions.get("starlette_channels", {}).get("claim")
        if claim is not None:
            claim()
        await receive()  # websocket.connect
        if self._misses_lifespan:
            self._warn_of_lifespan(scope)
        with self._admission.pending() as pending:
            make_connection = await self._answer_handshake(pending, scope, receive, send)
        if make_connection is not None and not self._attach(scope, make_connection):
            await serve_websocket(receive, send, make_connection, self._service.limits, self._service.error_log)

    async def _answer_handshake(
        self, pending: PendingHandshake, scope: Scope, receive: Receive, send: Send
    ) -> MakeConnection | None:
        """Accept or refuse a WebSocket; return the maker of its connection if it is accepted."""
        make_connection = None
        try:
            path_params = self._path.match(scope)
            if path_params is None:
                raise Refused(404, "no such path")
            make_connection, subprotocol = await self._admission.admit_websocket(pending, scope, path_params)
        except Refused as refusal:
            log_refusal(refusal, self._service.error_log)
            answer = refuse_websocket(scope, send, refusal)
            if refusal.close is not None:
                forget_what_comes(receive)
        else:
            answer = send({"type": "websocket.accept", "subprotocol": subprotocol})
        try:
            await answer
        except Exception as error:  # noqa: BLE001 - servers raise various errors when the client has gone
            logger.debug("The client was gone before its answer: %r", error)
            return None
        return make_connection

    def _attach(self, scope: Scope, make_connection: MakeConnection) -> bool:
        """Attach to the connection of the server if it is the fast lane, so that the ASGI call can return."""
        extensions: dict[str, Any] = scope.get("extensions") or {}
        attach: Attach | None = extensions.get("starlette_channels", {}).get("attach")
        _log_transport(fast=attach is not None)
        return attach is not None and attach(make_connection, self._service.limits, self._service.error_log)

    def _warn_of_lifespan(self, scope: Scope) -> None:
        """Say once that nobody runs the lifespan; the client for tests does not, and knows it."""
        if TESTING in (scope.get("extensions") or {}):
            return
        self._misses_lifespan = False
        logger.warning(
            "The lifespan of Channels is not run, so clients are not sent away in order when the server stops%s: write"
            " Starlette(lifespan=channels.lifespan), or FastAPI(...); Channels(drain=False) does without",
            ", nor does the broker say goodbye" if self._service.broker.is_shared else "",
        )

    def _make_longpoll(self, options: LongPoll | None) -> LongPolling | None:
        if options is None:
            return None
        return LongPolling(options, self._service, self._admission)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        polled = None if self._longpoll is None else self._longpoll.path.match(scope)
        if self._longpoll is not None and polled is not None:
            if self._misses_lifespan:
                self._warn_of_lifespan(scope)
            await self._longpoll(scope, polled, receive, send)
        else:
            response = await self._pages(scope)
            await response(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        async with self.lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()  # lifespan.shutdown
        await send({"type": "lifespan.shutdown.complete"})


@functools.cache  # once for each process
def _log_transport(*, fast: bool) -> None:
    if fast:
        transport_logger.info("Channels take the fast lane")
    else:
        transport_logger.info(
            "Channels are served through receive and send; under uvicorn, there is a fast lane: "
            "--ws starlette_channels.transports.uvicorn:FastLane"
        )
