"""Query strings with brackets: connection parameters as phoenix.js encodes and Plug decodes them."""

import re
from collections.abc import Mapping
from typing import Any, TypeAlias, cast
from urllib.parse import quote_plus, unquote_to_bytes

Params: TypeAlias = dict[str, Any]
"""Decoded parameters: strings, and nested dicts and lists of strings."""

MAX_PAIRS = 1_000
MAX_DEPTH = 32
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_NOT_PLAIN = frozenset("%+[")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def _unquote(text: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise ValueError("a malformed percent escape")
    return unquote_to_bytes(text.replace("+", " ")).decode()


def _path(key: str) -> list[str]:
    """Split `a[b][]` into `a`, `b` and the empty string; a key with unbalanced brackets is a plain name."""
    name, bracket, rest = key.partition("[")
    if not name or not bracket:
        return [key]
    rest = bracket + rest
    steps = _BRACKETS.findall(rest)
    return [name, *steps] if "".join(f"[{step}]" for step in steps) == rest else [key]


def _put(node: Params, path: list[str], value: str) -> None:
    """Store a value at its path; a later value replaces an earlier one of another shape."""
    here: Any = node
    for step, after in zip(path, [*path[1:], None], strict=True):
        fresh: Any = value if after is None else [] if after == "" else {}
        if isinstance(here, list):  # only `[]` leads into a list, and each adds an item
            here.append(fresh)  # pyright: ignore[reportUnknownMemberType] - a list of anything
            here = fresh
        elif after is None:
            here[step] = value
        else:
            if not isinstance(here.get(step), type(fresh)):
                here[step] = fresh
            here = here[step]


def decode_query(query: str) -> Params:
    """Decode a query string into nested parameters.

    `a[b]=1` is `{"a": {"b": "1"}}`, `a[]=x&a[]=y` is `{"a": ["x", "y"]}`, `a[0]=x` is `{"a": {"0": "x"}}` (which is
    how phoenix.js sends a list), the last of equal keys wins, a key without `=` is empty, empty pairs are skipped.
    Raises `ValueError` for malformed percent escapes, invalid UTF-8, more than 1,000 pairs or more than 32 levels.
    """
    params: Params = {}
    pairs = [pair for pair in query.split("&") if pair]
    if len(pairs) > MAX_PAIRS:
        raise ValueError("too many parameters")
    if query.isascii() and _NOT_PLAIN.isdisjoint(query):
        return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    for pair in pairs:
        key, _, value = pair.partition("=")
        path = _path(_unquote(key))
        if len(path) > MAX_DEPTH:
            raise ValueError("parameters nested too deeply")
        _put(params, path, _unquote(value))
    return params


def encode_query(params: Mapping[str, Any]) -> str:
    """Encode nested parameters as a query string; `None` is left out.

    The inverse of `decode_query`, except for lists of lists or of dicts, which a query string cannot express.
    """
    return "&".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in _flatten("", params))


def _flatten(key: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        inner = cast("Mapping[str, object]", value).items()
        return [pair for name, item in inner for pair in _flatten(f"{key}[{name}]" if key else name, item)]
    if isinstance(value, list | tuple):
        return [pair for item in cast("list[object]", value) for pair in _flatten(f"{key}[]", item)]
    return [] if value is None else [(key, str(value))]
