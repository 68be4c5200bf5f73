"""`Channels`: the ASGI application that serves channels below a mount."""

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
from starlette_channels.server.drain import Drain, Drainer
from starlette_channels.server.http import Pages
from starlette_channels.server.readiness import Readiness
from starlette_channels.server.signals import STOP_SIGNALS
from starlette_channels.server.workers import refuse_several_workers
from starlette_channels.transports.asgi_websocket import discard_incoming, serve_websocket, warn_about_server
from starlette_channels.transports.longpoll.endpoint import LongPolling
from starlette_channels.transports.longpoll.transport import LongPoll
from starlette_channels.wire.messages import Payload
from starlette_channels.wire.serializers import V1, V2, Serializer

logger: logging.Logger = logging.getLogger("starlette_channels.connection")
transport_logger: logging.Logger = logging.getLogger("starlette_channels.transport")

TESTING = "starlette_channels.testing"
"""The ASGI extension that marks connections of `starlette_channels.testing`."""

A = TypeVar("A")
ClaimHandshake: TypeAlias = Callable[[], None]
"""The fast lane's function in the ASGI scope by which it learns that the application is channels."""
Attach: TypeAlias = Callable[[MakeConnection, Bounds, ErrorLog], bool]
"""The fast lane's function in the ASGI scope that takes over an accepted WebSocket."""


class Channels(Generic[A]):
    """Serve channels as an ASGI application: `Mount("/socket", app=channels)`.

    The WebSocket is at `<mount>/websocket`, the JavaScript client at `<mount>/channels.js`. Run its lifespan, too:
    `Starlette(routes=[...], lifespan=channels.lifespan)`.

    Args:
        channels: The channels, in order of precedence: a topic belongs to the first that has a matching pattern.
        connect: `async def connect(conn: Handshake) -> A`, called once for each new connection. The returned value,
            usually the user, is `socket.assigns` in all handlers. Raise `ConnectError` to refuse the client. Without
            `connect`, everyone may connect, and `assigns` is an empty dict for each connection.
        socket_id: A function that takes the value returned by `connect` and returns an id such as `"user:7"`, or
            `None`. Connections of one id share the limits of an identity, and `disconnect` and `kick` address them.
        broker: The address of the engine that connects processes, such as `"redis://localhost"`, or a `Broker` that
            several `Channels` share. The default `"memory://"` serves a single process.
        serializers: The versions of the wire format that clients may ask for with `vsn`; default `[V2(), V1()]`.
        path: The path of the WebSocket below the mount. It may have variables, as in `"/ws/{region}"`, which
            `connect` finds in `conn.params`.
        subprotocols: WebSocket subprotocols that the server speaks. The first of the client's offers that is among
            them is chosen; a client that offers only others is refused with 403. `None` chooses none.
        check_origin: The pages that may connect, compared with the `Origin` header that browsers send. `True`: pages
            of the same host. A list: those origins, as in `["https://app.example", "//*.app.example"]`. A function:
            pages for whose handshake it returns `True`. `False`: any page.
        auth_token: Whether `conn.auth_token` holds the `authToken` of the JavaScript client.
        expiry: When the identity that `connect` returned expires, and how clients renew it. `None`: never.
        presence: The `Presence` objects of this application. They start with its lifespan, not at the first `track`,
            and `statistics` and `ready` include them.
        longpoll: Whether clients whose network blocks WebSockets may poll at `<mount>/longpoll`: `True`, or options.
        limits: Bounds on what clients may use. The defaults are those of `Limits`.
        drain: How clients are disconnected before the server stops. `True`: with the defaults of `Drain`. `False`:
            they are not, and signals are left to the server.
        log: Log levels and redacted parameters. The defaults are those of `LogOptions`.

    Raises:
        TypeError: An argument has the wrong type; the message says how to write it.
        ValueError: A path, an origin, the broker's address or another argument is malformed; or the broker is
            `"memory://"` and the server runs several worker processes.
        ImportError: The library of the broker's engine is not installed; the message names the extra.
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

    # The API for applications.

    def broadcast(self, topic: str, event: str, payload: Payload) -> None:
        """Send an event to all subscribers of a topic, in all processes. May be called from any thread.

        Returns at once. The payload is encoded once, however many subscribers there are. A topic without subscribers
        is no error.

        Args:
            topic: The topic, as in `"room:7"`.
            event: The name of the event.
            payload: A JSON object (a dict, `Struct`, dataclass or model), or `bytes` for a binary message.

        Raises:
            TypeError: The payload cannot be encoded.
            ValueError: The event is reserved: `phx_...`, `chan_reply_...`, `presence_state` or `presence_diff`.
            SerializerError: The payload is no JSON object, or the text contains lone surrogates; a binary message has
                a topic or event of more than 255 bytes.
        """
        self._service.broker.broadcast(topic, event, payload)

    def disconnect(self, socket_id: str, *, code: int = 1001, reason: str = "disconnected") -> None:
        """Close all connections of a `socket_id`, in all processes. May be called from any thread.

        Applies to connections that are open now, and to those whose `connect` is running. Their channels end with the
        reason `"closed"`. Clients connect again by themselves (older versions of phoenix.js do not after code 1000),
        and `connect` decides anew. Returns at once; an unknown id is no error. A process that cannot be reached now
        follows within ten seconds of being reachable again, for up to an hour.

        Args:
            socket_id: The id that `Channels(socket_id=...)` returned for the connections.
            code: The WebSocket close code that clients see: 3000 to 4999, or one that RFC 6455 lets a server send.
            reason: The close reason that clients see, at most 123 bytes in UTF-8.

        Raises:
            ValueError: The code may not be sent by a server, or the reason is too long.
        """
        self._service.broker.command(socket_id, Disconnect(code, reason))

    def kick(self, socket_id: str, topic: str, *, reason: str | None = None) -> None:
        """Remove a client from one topic, on all connections of a `socket_id`, in all processes.

        Applies to connections that have joined the topic, or are joining it now. The client gets `phx_close`, and
        before it the event `kicked` with `{"reason": reason}` if there is a reason. It may join again, unless the join
        handler refuses. A running handler may finish within `Limits.shutdown_seconds`; messages behind it are answered
        `unmatched topic`. `terminate` gets `"kicked"`. Reaches other processes as `disconnect` does, returns at once,
        and may be called from any thread. An unknown id is no error.

        Args:
            socket_id: The id that `Channels(socket_id=...)` returned for the connections.
            topic: The topic; patterns are not expanded.
            reason: The text for the client.
        """
        self._service.broker.command(socket_id, Kick(topic, reason))

    def statistics(self) -> Statistics:
        """Count connections, channels, topics and mishaps of this process, in a loop over the connections."""
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
        """Answer a readiness probe of a load balancer with 200 or 503: `Route("/ready", channels.ready)`.

        200 once the engine is connected and each `Presence` of `Channels(presence=...)` has heard from the other
        processes, at the latest 10 seconds after the start; with `memory://`, at once. 503 before that, and again from
        the beginning of `drain`.
        """
        return self._pages.readiness(self._readiness.check)

    async def drain(self) -> None:
        """Disconnect all clients in batches, and refuse new ones; returns when all are gone.

        New connections are refused with 503, new joins with `restarting`, and `ready` answers 503. A connection is
        closed once the messages received from it are answered. `Drain` sets the pace. `lifespan` calls this on SIGTERM;
        call it yourself under servers that handle SIGTERM on their own, or to take a server out of service. A second
        call waits for the first.
        """
        await self._drainer.drain()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:
        """Start the broker and presences, and drain clients at shutdown: `Starlette(lifespan=channels.lifespan)`.

        SIGTERM is held back from the server until the clients are drained; see `drain`. On SIGINT (Ctrl-C), under
        uvicorn's `--reload`, and if the lifespan ends without a signal, all clients are closed at once instead of in
        batches. A second signal cancels running handlers. With `Channels(drain=False)`, signals go to the server alone.

        New clients are refused while the lifespan ends. Afterwards it may run again, in this event loop or another one.
        Of several lifespans in different event loops at a time, each closes the connections of its own loop, and the
        last one disconnects the broker.
        """
        self._misses_lifespan = False
        hub = self._service.broker.hub()
        self._service.begin_lifespan(hub)
        self._readiness.begin()
        with STOP_SIGNALS.held_until_drained(self._drainer, hub) if self._minds_signals else nullcontext():
            try:
                yield
            finally:
                await self._end_lifespan(hub)

    async def _end_lifespan(self, hub: Hub) -> None:
        others = self._service.end_lifespan(hub)
        if hub in others:
            return  # nested in another lifespan of the same event loop, which drains the clients
        if others:
            await self._drainer.drain_loop()
            return
        try:
            await self._drainer.drain(at_once=True)
            await self._service.broker.close()
        finally:
            self._service.open()

    # ASGI.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a WebSocket, long-polling, the JavaScript client, or the lifespan if this is the whole application."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._lifespan(receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        extensions: dict[str, Any] = scope.get("extensions") or {}
        claim: ClaimHandshake | None = extensions.get("starlette_channels", {}).get("claim")
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
                discard_incoming(receive)
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
        """Warn once that the lifespan is not run; `starlette_channels.testing` never runs it, so it gets no warning."""
        if TESTING in (scope.get("extensions") or {}):
            return
        self._misses_lifespan = False
        logger.warning(
            "The lifespan of Channels is not run, so clients are not drained when the server stops%s: write"
            " Starlette(lifespan=channels.lifespan) or FastAPI(lifespan=channels.lifespan)%s",
            ", nor is the broker closed" if self._service.broker.is_shared else "",
            "" if self._service.broker.is_shared else "; with Channels(drain=False) it is not needed",
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
            "Channels are served through receive and send of ASGI; uvicorn has a faster transport: "
            "--ws starlette_channels.transports.uvicorn:FastLane"
        )
