"""From an HTTP request to a connection: what `connect` sees, and how a client is refused."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from starlette.requests import HTTPConnection
from starlette.types import Scope, Send

from starlette_channels.handshake.auth_token import take_token
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.wire.messages import shown
from starlette_channels.wire.query import Params, decode_query

logger: logging.Logger = logging.getLogger("starlette_channels.connection")

Refuse: TypeAlias = Callable[[int, str], bool]
"""What the fast lane offers in the ASGI scope to close a WebSocket; see `transports.handshaking`."""


class Handshake(HTTPConnection):
    """The request that opens a connection, as `connect` sees it, with whatever middleware has put into it.

    Beside Starlette's attributes (`headers`, `cookies`, `session`, `user`, `state`, `app`, ...) it has `params` and
    `auth_token`.
    """

    def __init__(self, scope: Scope, path_params: Mapping[str, Any]) -> None:
        super().__init__(scope)
        self.offered_subprotocols: list[str] = list(scope.get("subprotocols", ()))
        """The subprotocols that the client offers, without the one that carries an auth token."""
        self.auth_token: str | None = None
        """The `authToken` of the client's options, with `Channels(auth_token=True)`; nobody has verified it yet."""
        self._path_params = path_params
        self._params: Params | None = None

    @property
    def params(self) -> Params:
        """The query string with its brackets decoded, as phoenix.js writes it, and the path variables, which win.

        Raises `ValueError` if the query string is malformed; the endpoint has answered 400 before `connect` runs.
        """
        if self._params is None:
            query: bytes = self.scope.get("query_string", b"")
            self._params = {**decode_query(query.decode()), **self._path_params}
        return self._params


class Refused(Exception):
    """The handshake ends with this HTTP status and body; reason and advice are for the log, the code for the counters.

    The reason may quote the client; the advice may not. `retry_after` says in how many seconds another try may be worth
    it. With `close`, a WebSocket is accepted and closed with that code and the body instead.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        body: str = "",
        code: str = "connect_refused",
        advice: str = "",
        retry_after: int | None = None,
        close: int | None = None,
    ) -> None:
        super().__init__(status, reason)
        self.advice: str = advice
        self.status: int = status
        self.reason: str = reason
        self.body: str = body
        self.code: str = code
        self.close: int | None = close
        self.subprotocol: str | None = None
        """That which the server accepts, for a WebSocket that is accepted and closed."""
        self.headers: dict[str, str] = {} if retry_after is None else {"retry-after": str(retry_after)}


def begin(scope: Scope, path_params: Mapping[str, Any]) -> Handshake:
    """Return what `connect` will see; `path_params` are the variables below the mount. Raises `Refused`."""
    handshake = Handshake(scope, {**scope.get("path_params", {}), **path_params})
    try:
        _ = handshake.params
    except ValueError as error:
        raise Refused(400, f"malformed query string: {error}") from None
    return handshake


def note_refusal(refusal: Refused, error_log: ErrorLog) -> None:
    """Count and log that a client was refused."""
    reason = shown(refusal.reason) + (refusal.advice and f": {refusal.advice}")
    error_log.note(
        refusal.code,
        logger,
        "Connection refused with %d: %s",
        refusal.close or refusal.status,
        reason,
        cause=refusal.__cause__,
    )


def choose_subprotocol(ours: Sequence[str] | None, offered: Sequence[str]) -> str | None:
    """Return the first of our subprotocols that the client offers, or `None` if there are none or it offers none.

    Raises `Refused` if it offers only others.
    """
    if ours is None or not offered:
        return None
    chosen = next((one for one in ours if one in offered), None)
    if chosen is None:
        raise Refused(403, "no common subprotocol")
    return chosen


def read_auth_token(handshake: Handshake) -> None:
    """Take the auth token of a WebSocket out of the offered subprotocols. Raises `Refused` if it is malformed."""
    try:
        handshake.auth_token, handshake.offered_subprotocols = take_token(handshake.offered_subprotocols)
    except ValueError:
        raise Refused(403, "the auth token is not base64", code="malformed_auth_token") from None


async def refuse_websocket(scope: Scope, send: Send, refusal: Refused) -> None:
    """Answer a WebSocket handshake with an HTTP status, or with a close code if the refusal has one.

    Servers without the extension for statuses answer 403.
    """
    extensions: dict[str, Any] = scope.get("extensions") or {}
    if refusal.close is not None:
        await send({"type": "websocket.accept", "subprotocol": refusal.subprotocol})
        refuse: Refuse | None = extensions.get("starlette_channels", {}).get("refuse")
        if refuse is None or not refuse(refusal.close, refusal.body):
            await send({"type": "websocket.close", "code": refusal.close, "reason": refusal.body})
        return
    if "websocket.http.response" not in extensions:
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": refusal.body.encode()})
