"""Topic patterns: `"exact"`, `"prefix*"` and `"room:{room_id}"`."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

NO_PARAMS: Mapping[str, str] = MappingProxyType({})
_SEGMENT = re.compile(r"\{([^{}]*)\}")


class Match(NamedTuple):
    """The match of a topic with a pattern."""

    subtopic: str
    """The topic after the pattern's fixed prefix: "lobby" for `room:lobby` with `room:*`, "" for an exact topic."""

    params: Mapping[str, str]
    """The text of the named segments."""

    decoded: Mapping[str, Any] | None = None
    """The named segments decoded to the annotations of the join handler; `None` if all of them are `str`."""


class Pattern:
    """A topic pattern: fixed text, `{name}` for one segment without a colon, and at the end `*` for any rest.

    As in Phoenix, `room:*` matches `room:` but not `room`, and `foo*` needs no colon. Raises `ValueError` if the
    pattern is malformed.
    """

    __slots__ = ("_regex", "_wild", "names", "prefix", "text")

    def __init__(self, text: str) -> None:
        head = text.removesuffix("*")
        if not text:
            raise ValueError("topic pattern '': it would match no topic; name one, as in 'room:*', or '*' for all")
        if "*" in head:
            raise ValueError(f"topic pattern {text!r}: a `*` is allowed only at the end, as in 'room:*'")
        names = _SEGMENT.findall(head)
        if any(not name.isidentifier() for name in names) or re.search(r"[{}]", _SEGMENT.sub("", head)):
            raise ValueError(f"topic pattern {text!r}: write a segment as {{name}}, with a name that Python allows")
        if len(set(names)) != len(names):
            raise ValueError(f"topic pattern {text!r}: two segments have the same name")
        if any(":" not in between for between in _SEGMENT.split(head)[2:-1:2]):
            raise ValueError(f"topic pattern {text!r}: two segments need a colon between them")
        self.text: str = text
        self.names: tuple[str, ...] = tuple(names)
        self.prefix: str = head.split("{", 1)[0]
        self._wild = head != text
        self._regex = self._compile(head) if names else None

    def _compile(self, head: str) -> re.Pattern[str]:
        pieces = _SEGMENT.split(head)  # text, name, text, name, ..., text
        parts = [re.escape(piece) if i % 2 == 0 else f"(?P<{piece}>[^:]+)" for i, piece in enumerate(pieces)]
        return re.compile("".join(parts) + (".*" if self._wild else ""), re.DOTALL)

    def match(self, topic: str) -> Match | None:
        """Return the match of a topic, or `None`."""
        if self._regex is not None:
            found = self._regex.fullmatch(topic)
            return found and Match(topic[len(self.prefix) :], found.groupdict())
        if self._wild:
            return Match(topic[len(self.prefix) :], NO_PARAMS) if topic.startswith(self.prefix) else None
        return Match("", NO_PARAMS) if topic == self.text else None

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"
