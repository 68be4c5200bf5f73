"""The handshake of a connection, as `connect` sees it."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

from starlette_channels.handshake.auth_token import take_token
from starlette_channels.handshake.refusal import Refused
from starlette_channels.wire.query import Params, decode_query


class Handshake(HTTPConnection):
    """The HTTP request that opens a connection, with everything that middleware has added to its ASGI scope.

    In addition to Starlette's attributes (`headers`, `cookies`, `session`, `user`, `state`, `app`, ...) it has `params`
    and `auth_token`.
    """

    def __init__(self, scope: Scope, path_params: Mapping[str, Any]) -> None:
        super().__init__(scope)
        self.offered_subprotocols: list[str] = list(scope.get("subprotocols", ()))
        """The subprotocols that the client offers, without the one that carries an auth token."""
        self.auth_token: str | None = None
        """The `authToken` of the client's options, with `Channels(auth_token=True)`. It is not verified yet."""
        self._path_params = path_params
        self._params: Params | None = None

    @property
    def params(self) -> Params:
        """The query string, with nested parameters as phoenix.js writes them, and the path variables, which win.

        Raises `ValueError` if the query string is malformed; the endpoint answers 400 before `connect` runs.
        """
        if self._params is None:
            query: bytes = self.scope.get("query_string", b"")
            self._params = {**decode_query(query.decode()), **self._path_params}
        return self._params


def begin_handshake(scope: Scope, path_params: Mapping[str, Any]) -> Handshake:
    """Read the handshake from an ASGI scope; `path_params` are the variables below the mount.

    Raises `Refused` if the query string is malformed.
    """
    handshake = Handshake(scope, {**scope.get("path_params", {}), **path_params})
    try:
        _ = handshake.params
    except ValueError as error:
        raise Refused(400, f"malformed query string: {error}") from None
    return handshake


def choose_subprotocol(supported: Sequence[str] | None, offered: Sequence[str]) -> str | None:
    """Return the first supported subprotocol that the client offers; `None` if either side has none.

    Raises `Refused` if the client offers only other subprotocols.
    """
    if supported is None or not offered:
        return None
    chosen = next((one for one in supported if one in offered), None)
    if chosen is None:
        raise Refused(403, "no common subprotocol")
    return chosen


def read_auth_token(handshake: Handshake) -> None:
    """Move the auth token from the offered subprotocols to `auth_token`. Raises `Refused` if it is malformed."""
    try:
        handshake.auth_token, handshake.offered_subprotocols = take_token(handshake.offered_subprotocols)
    except ValueError:
        raise Refused(403, "the auth token is not base64", code="malformed_auth_token") from None
