"""The auth token of phoenix.js, which is sent outside the URL: its place in the request, and its encoding.

Source: `maybe_auth_token_from_header` in Phoenix's `transports/websocket.ex` and `transports/long_poll.ex`. On purpose
different: both base64 alphabets are accepted, padded or not, because the prefix names one and JavaScript writes the
other.
"""

import base64
from collections.abc import Mapping, Sequence

PREFIX = "base64url.bearer.phx."
SUBPROTOCOL = "phoenix"
"""The subprotocol that clients offer in addition to the token: browsers require that the server chooses one."""

LONG_POLL_HEADER = "x-phoenix-authtoken"

_STANDARD = str.maketrans("-_", "+/")


def take_token(offered: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the offered subprotocols into the token and the others; without exactly one token, `None` and all of them.

    Raises `ValueError` if it is not base64 of UTF-8.
    """
    tokens = [one for one in offered if one.startswith(PREFIX)]
    if len(tokens) != 1:
        return None, list(offered)
    return decode_token(tokens[0].removeprefix(PREFIX)), [one for one in offered if one != tokens[0]]


def decode_token(text: str) -> str:
    """Decode base64 of either alphabet, padded or not. Raises `ValueError`."""
    digits = text.rstrip("=").translate(_STANDARD)
    return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True).decode()


def encode_token(token: str) -> str:
    """Return the subprotocol that carries a token."""
    return PREFIX + base64.urlsafe_b64encode(token.encode()).rstrip(b"=").decode()


def long_poll_token(headers: Mapping[str, str]) -> str | None:
    """Return the token of a request that opens a long-polling session: a header, without an encoding."""
    return headers.get(LONG_POLL_HEADER)
