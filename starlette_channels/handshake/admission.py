"""Admission of clients: the checks of a handshake in Phoenix's order, `connect`, and the limits of connections."""

import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeVar

import anyio
import msgspec
from starlette.exceptions import HTTPException, WebSocketException
from starlette.types import Scope

from starlette_channels.connection.connection import Connection
from starlette_channels.connection.expiry import Expiry, Lifetimes
from starlette_channels.connection.registry import Service
from starlette_channels.connection.transport import Transport
from starlette_channels.exceptions import ConnectError, ExpiredToken
from starlette_channels.handshake.auth_token import SUBPROTOCOL, long_poll_token
from starlette_channels.handshake.handshake import Handshake, begin_handshake, choose_subprotocol, read_auth_token
from starlette_channels.handshake.origins import OriginCheck
from starlette_channels.handshake.refusal import Refused
from starlette_channels.runtime.callables import check_function, name_of
from starlette_channels.runtime.cancellation import alone, is_crash
from starlette_channels.runtime.tasks import OutOfTime, within
from starlette_channels.runtime.uptime import uptime
from starlette_channels.wire.messages import shown
from starlette_channels.wire.serializers import DEFAULT_VERSION, Serializer, TextOnly, negotiate

if TYPE_CHECKING:
    from starlette_channels.connection.identities import Identity

logger: logging.Logger = logging.getLogger("starlette_channels.connection")

A = TypeVar("A")
Connect: TypeAlias = Callable[[Handshake], Coroutine[Any, Any, A]]

MakeConnection: TypeAlias = Callable[[Transport], Connection]
"""Makes the connection of an admitted client, for its transport."""

RETRY_SECONDS = 10
"""The `retry-after` of refusals for want of room."""


class Admitted(NamedTuple):
    """The answer of `connect`: the identity, its `socket_id`, and the seconds until it expires."""

    assigns: Any
    socket_id: str | None
    seconds_left: float | None


class PendingHandshake:
    """A handshake that is not answered yet. It counts among the connections, and among those of its identity.

    Both counts are released at the end of the `with` block; the connection must be made before that, in the same step.
    """

    __slots__ = ("_has_place", "_identity", "_service", "since")

    def __init__(self, service: Service) -> None:
        self._service = service
        self._has_place = False
        self._identity: Identity | None = None
        self.since: float = uptime()
        """When it began, by the clock `uptime`: earlier commands to its identity do not concern it."""

    def __enter__(self) -> Self:
        return self

    def take_place(self) -> None:
        """Count it among all connections. Raises `Refused` if there is no room."""
        service = self._service
        most = service.limits.connections
        if len(service.connections) + service.arriving >= most:
            raise Refused(503, f"{most} connections are open", code="too_many_connections", retry_after=RETRY_SECONDS)
        service.arriving += 1
        self._has_place = True

    def identify(self, socket_id: str | None) -> None:
        """Count it among the connections of its identity. Raises `Refused` if there is no room."""
        if socket_id is None:
            return
        identities, most = self._service.identities, self._service.limits.identity_connections
        if identities.connections(socket_id) >= most:
            reason = f"{most} connections of this socket_id are open"
            raise Refused(429, reason, code="too_many_identity_connections", retry_after=RETRY_SECONDS)
        self._identity = identities.enter(socket_id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._has_place:
            self._service.arriving -= 1
        if self._identity is not None:
            self._service.identities.leave(self._identity, anyio.current_time())


class Admission:
    """Admits clients, or raises `Refused`."""

    def __init__(
        self,
        service: Service,
        connect: Connect[Any] | None,
        socket_id: Callable[[Any], str | None] | None,
        serializers: Sequence[Serializer],
        subprotocols: Sequence[str] | None,
        check_origin: OriginCheck,
        auth_token: bool,
        expiry: Expiry[Any] | None,
    ) -> None:
        if connect is not None:
            check_function(connect, "Channels(connect=...)", ("conn",), by_name=False)
        if socket_id is not None:
            check_function(socket_id, "Channels(socket_id=...)", ("assigns",), to_await=False, by_name=False)
        self._service = service
        self._connect: Connect[Any] = connect or _connect_anybody
        self._socket_id = socket_id
        self._serializers = tuple(serializers)
        self._text_only = tuple(TextOnly(serializer) for serializer in serializers)
        self._subprotocols = [SUBPROTOCOL, *(subprotocols or ())] if auth_token else subprotocols
        self._check_origin = check_origin
        self._auth_token = auth_token
        if expiry is not None:
            service.lifetimes = Lifetimes(expiry, self._identify, service.error_log)

    def begin(self, scope: Scope, path_params: Mapping[str, Any]) -> Handshake:
        """Read a handshake, and check its origin."""
        handshake = begin_handshake(scope, path_params)
        self._check_origin(handshake)
        return handshake

    def pending(self) -> PendingHandshake:
        """Return a pending handshake: admit it in its `with` block, and make the connection at the end of the block."""
        return PendingHandshake(self._service)

    async def admit_websocket(
        self, pending: PendingHandshake, scope: Scope, path_params: Mapping[str, Any]
    ) -> tuple[MakeConnection, str | None]:
        """Admit a WebSocket; return the maker of its connection, and its subprotocol."""
        handshake = self.begin(scope, path_params)
        if self._auth_token:
            read_auth_token(handshake)
        subprotocol = choose_subprotocol(self._subprotocols, handshake.offered_subprotocols)
        try:
            return await self._admit(pending, handshake, self._serializers), subprotocol
        except Refused as refusal:
            refusal.subprotocol = subprotocol
            raise

    async def admit_session(self, pending: PendingHandshake, handshake: Handshake) -> MakeConnection:
        """Admit a long-polling session; return the maker of its connection."""
        if self._auth_token:
            handshake.auth_token = long_poll_token(handshake.headers)
        return await self._admit(pending, handshake, self._text_only)

    async def _admit(
        self, pending: PendingHandshake, handshake: Handshake, serializers: Sequence[Serializer]
    ) -> MakeConnection:
        self._check_open()
        vsn = handshake.params.get("vsn", DEFAULT_VERSION)
        serializer = negotiate(vsn, serializers)
        if serializer is None:
            raise Refused(403, f"no serializer for version {shown(vsn)}")
        pending.take_place()
        assigns, socket_id, seconds = await self._call_connect_in_time(handshake)
        self._check_open()
        pending.identify(socket_id)
        app = handshake.scope.get("app")

        def make_connection(transport: Transport) -> Connection:
            connection = Connection(self._service, transport, serializer, assigns, socket_id, app, pending.since)
            connection.log_open(handshake.params)
            if seconds is not None and self._service.lifetimes is not None:
                self._service.lifetimes.watch(connection, seconds)
            return connection

        return make_connection

    def _check_open(self) -> None:
        if self._service.closing:
            raise Refused(503, "shutting down", retry_after=self._service.retry_after)

    async def _call_connect_in_time(self, handshake: Handshake) -> Admitted:
        seconds = self._service.limits.connect_seconds
        try:
            return await within(seconds, self._service.counts, self._call_connect(handshake))
        except OutOfTime:
            raise Refused(503, f"connect took more than {seconds:g} seconds", code="connect_timeout") from None

    async def _call_connect(self, handshake: Handshake) -> Admitted:
        lifetimes = self._service.lifetimes
        try:
            assigns = await self._connect(handshake)
            seconds = None if lifetimes is None else lifetimes.seconds_left(assigns)
            if seconds is not None and seconds <= 0:
                raise ExpiredToken("expired")
            return Admitted(assigns, self._identify(assigns), seconds)
        except Refused:
            raise
        except BaseException as error:
            refused = _refusal(alone(error))
            try:
                if refused is not None:
                    raise refused from None
            finally:
                del refused  # its traceback refers to this frame: a cycle, for the garbage collector
            if not is_crash(error):
                raise
            raise Refused(
                500, f"connect, {name_of(self._connect)}, raised", "Internal Server Error", "connect_crashed"
            ) from error

    def _identify(self, assigns: Any) -> str | None:
        socket_id: Any = None if self._socket_id is None else self._socket_id(assigns)
        if socket_id is None or isinstance(socket_id, str):
            return socket_id
        raise Refused(403, f"socket_id returned {type(socket_id).__name__}: it must be a string or None")


def _refusal(error: BaseException) -> Refused | None:
    """Return the refusal that an exception of `connect` stands for; `None` if it is a crash."""
    match error:
        case ConnectError():
            return Refused(error.status, error.reason, error.reason, close=error.close)
        case HTTPException():
            detail: Any = error.detail  # any JSON with FastAPI's
            text = detail if isinstance(detail, str) else msgspec.json.encode(detail, enc_hook=str).decode()
            return Refused(error.status_code, text, text)
        case WebSocketException():
            return Refused(403, error.reason, error.reason)
        case _:
            return None


async def _connect_anybody(_: Handshake) -> dict[str, Any]:
    return {}
