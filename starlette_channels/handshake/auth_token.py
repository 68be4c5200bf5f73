"""The auth token of phoenix.js, which keeps a secret out of the URL: where it travels, and how it is written.

Source: `maybe_auth_token_from_header` in Phoenix's `transports/websocket.ex` and `transports/long_poll.ex`. On purpose
different: both base64 alphabets are read, padded or not, because JavaScript writes one and the prefix promises the
other.
"""

import base64
from collections.abc import Mapping, Sequence

PREFIX = "base64url.bearer.phx."
SUBPROTOCOL = "phoenix"
"""What a client offers beside its token, so that there is something to choose; browsers insist on it."""

LONG_POLL_HEADER = "x-phoenix-authtoken"

_STANDARD = str.maketrans("-_", "+/")


def take_token(offered: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the token among the offered subprotocols, and the others; without exactly one token, `None` and all.

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
    """Return the token of the request that opens a long-polling session: there it is a header, written as it is."""
    return headers.get(LONG_POLL_HEADER)
