"""Redaction: parameters and payloads of clients for logs, without secrets, on one line, with a bounded length.

Source of the two ways to filter: `Phoenix.Logger` and its `filter_parameters`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from msgspec import Raw

from starlette_channels.wire.messages import Body

FILTERED = "[FILTERED]"

SECRETS = (
    *("password", "passwd", "passphrase", "secret", "token", "authorization", "bearer", "cookie", "credential"),
    *("api_key", "access_key", "private_key", "session_id", "signature", "jwt", "csrf"),
)
"""A value is secret if its name contains one of these."""

MOST_BYTES = 10_000
"""Payloads above this size are logged as their size only."""

MOST_SHOWN = 500
"""Maximal length of the logged text, in characters."""

DEEPEST = 16

_WORD = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.%"
_SIGNED = re.compile(r"(?<![\w-])[\w-]{6,}\.[\w-]{4,}\.[\w-]{16,}(?:\.[\w-]+)*", re.ASCII)
"""A signed token, such as a JWT, under any name."""
_SCHEME = re.compile(r"\b(bearer|basic|digest)\s+[^\s\"']+", re.IGNORECASE)


class ParameterFilter:
    """Formats parameters for logs, without the values whose names contain one of `filtered`.

    Case, `_` and `-` are ignored. With `kept`, only the values of exactly these names are shown.
    """

    def __init__(self, filtered: Sequence[str], kept: Sequence[str] | None = None) -> None:
        if isinstance(filtered, str) or isinstance(kept, str):
            raise TypeError("filter_parameters and keep_parameters: they are lists of names")
        self._names = tuple(_plain(name) for name in filtered)
        self._kept = None if kept is None else frozenset(kept)
        names = "|".join("[_-]?".join(map(re.escape, re.split("[_-]", name))) for name in filtered)
        self._assigned = None
        if names:
            sign, value = r"""["']?(?:\]|%5D)*\s*(?:[=:]|%3D|%3A)\s*""", r"""(?:"[^"]*"?|'[^']*'?|[^&\s,;}\]]+)"""
            self._assigned = re.compile(rf"((?:{names})[\w-]{{0,30}}{sign}){value}", re.IGNORECASE)

    def show(self, body: Body) -> str:
        """Format an encoded payload; binary payloads as their size."""
        if not isinstance(body, Raw):
            return f"<{len(body)} bytes>"
        size = memoryview(body).nbytes
        if size > MOST_BYTES:
            return f"<{size} bytes of JSON>"
        try:
            return self.show_value(msgspec.json.decode(body))
        except (msgspec.DecodeError, RecursionError):
            return f"<{size} bytes that cannot be decoded>"

    def show_value(self, value: object) -> str:
        """Format a decoded payload."""
        clean = self._discard(value, 0) if self._kept is None else self._keep(value, self._kept, 0)
        text = _printable(msgspec.json.encode(clean).decode())
        return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."

    def _discard(self, value: object, depth: int) -> object:
        if isinstance(value, str):
            return self._clean(value)
        if isinstance(value, Mapping | list) and depth == DEEPEST:
            return "..."
        if isinstance(value, Mapping):
            items = cast("Mapping[str, object]", value).items()
            return {
                self._clean(name): FILTERED if self._is_secret(name) else self._discard(item, depth + 1)
                for name, item in items
            }
        if isinstance(value, list):
            return [self._discard(item, depth + 1) for item in cast("list[object]", value)]
        return value

    def _keep(self, value: object, kept: frozenset[str], depth: int) -> object:
        if not isinstance(value, Mapping | list) or depth == DEEPEST:
            return FILTERED
        if isinstance(value, list):
            return [self._keep(item, kept, depth + 1) for item in cast("list[object]", value)]
        return {
            self._clean(name): self._discard(item, depth + 1) if name in kept else self._keep(item, kept, depth + 1)
            for name, item in cast("Mapping[str, Any]", value).items()
        }

    def _is_secret(self, name: str) -> bool:
        plain = _plain(name)
        return any(secret in plain for secret in self._names)

    def _clean(self, text: str) -> str:
        """Remove secrets inside a text, such as a query string, a header, or JSON in a string."""
        if len(text) > 2 * MOST_SHOWN:
            text = text[: 2 * MOST_SHOWN].rstrip(_WORD)  # not half a token
        text = _SCHEME.sub(rf"\1 {FILTERED}", text)
        if self._assigned is not None:
            text = self._assigned.sub(rf"\1{FILTERED}", text)
        return _SIGNED.sub(FILTERED, text)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
