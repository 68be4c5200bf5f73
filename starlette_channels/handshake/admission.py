"""Who is let in: what is checked of a handshake, in Phoenix's order, and what `connect` says of it."""

import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec
from starlette.exceptions import HTTPException, WebSocketException
from starlette.types import Scope

from starlette_channels.connection.connection import Connection
from starlette_channels.connection.expiry import Expiry, Lifetimes
from starlette_channels.connection.registry import Service
from starlette_channels.connection.transport import Transport
from starlette_channels.exceptions import ConnectError, ExpiredToken
from starlette_channels.handshake.arrivals import PendingHandshake
from starlette_channels.handshake.auth_token import SUBPROTOCOL, long_poll_token
from starlette_channels.handshake.handshake import Handshake, Refused, begin, choose_subprotocol, read_auth_token
from starlette_channels.handshake.origins import OriginCheck
from starlette_channels.runtime.callables import check_function, name_of
from starlette_channels.runtime.cancellation import alone, is_crash
from starlette_channels.runtime.tasks import OutOfTime, within
from starlette_channels.wire.messages import shown
from starlette_channels.wire.serializers import DEFAULT_VERSION, Serializer, TextOnly, negotiate

logger: logging.Logger = logging.getLogger("starlette_channels.connection")

A = TypeVar("A")
Connect: TypeAlias = Callable[[Handshake], Coroutine[Any, Any, A]]

Connected: TypeAlias = Callable[[Transport], Connection]
"""Makes the connection of a client that was let in."""


class Admission:
    """Lets clients in, or raises `Refused`."""

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
        """Return what `connect` will see, if the page it comes from may connect."""
        handshake = begin(scope, path_params)
        self._check_origin(handshake)
        return handshake

    def arrival(self) -> PendingHandshake:
        """Return a client on its way in: admit it in the `with` block, and make its connection at the end."""
        return PendingHandshake(self._service)

    async def admit_websocket(
        self, arrival: PendingHandshake, scope: Scope, path_params: Mapping[str, Any]
    ) -> tuple[Connected, str | None]:
        """Return what makes the connection of a WebSocket, and its subprotocol."""
        handshake = self.begin(scope, path_params)
        if self._auth_token:
            read_auth_token(handshake)
        subprotocol = choose_subprotocol(self._subprotocols, handshake.offered_subprotocols)
        try:
            return await self._admit(arrival, handshake, self._serializers), subprotocol
        except Refused as refusal:
            refusal.subprotocol = subprotocol
            raise

    async def admit_session(self, arrival: PendingHandshake, handshake: Handshake) -> Connected:
        """Return what makes the connection of a client that polls."""
        if self._auth_token:
            handshake.auth_token = long_poll_token(handshake.headers)
        return await self._admit(arrival, handshake, self._text_only)

    async def _admit(
        self, arrival: PendingHandshake, handshake: Handshake, serializers: Sequence[Serializer]
    ) -> Connected:
        self._check_open()
        vsn = handshake.params.get("vsn", DEFAULT_VERSION)
        serializer = negotiate(vsn, serializers)
        if serializer is None:
            raise Refused(403, f"no serializer for version {shown(vsn)}")
        arrival.take_place()
        assigns, socket_id, seconds = await self._ask_in_time(handshake)
        self._check_open()
        arrival.identify(socket_id)
        app = handshake.scope.get("app")

        def connected(transport: Transport) -> Connection:
            connection = Connection(self._service, transport, serializer, assigns, socket_id, app, arrival.since)
            connection.log_open(handshake.params)
            if seconds is not None and self._service.lifetimes is not None:
                self._service.lifetimes.watch(connection, seconds)
            return connection

        return connected

    def _check_open(self) -> None:
        if self._service.closing:
            raise Refused(503, "shutting down", retry_after=self._service.retry_after)

    async def _ask_in_time(self, handshake: Handshake) -> tuple[Any, str | None, float | None]:
        seconds = self._service.limits.connect_seconds
        try:
            return await within(seconds, self._service.counts, self._ask(handshake))
        except OutOfTime:
            raise Refused(503, f"connect took more than {seconds:g} seconds", code="connect_timeout") from None

    async def _ask(self, handshake: Handshake) -> tuple[Any, str | None, float | None]:
        """Ask `connect` who the client is; return that, by what name it is known, and how long it may stay."""
        lifetimes = self._service.lifetimes
        try:
            assigns = await self._connect(handshake)
            seconds = None if lifetimes is None else lifetimes.seconds_left(assigns)
            if seconds is not None and seconds <= 0:
                raise ExpiredToken("expired")
            return assigns, self._identify(assigns), seconds
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
    """Return what `connect` refuses with by what it raised; `None` if that is a crash."""
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
