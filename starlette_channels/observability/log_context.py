"""Which client and which topic a log record is about.

Handlers, what they await and the tasks that they start know it by a context variable. It is set only once somebody
wants to know: until a `LogContext` has been made, it costs a look at a flag for each message.
"""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from starlette_channels.wire.messages import shown

NOTHING = "-"


class Scene(NamedTuple):
    """Where something happens."""

    topic: str
    socket_id: str | None
    connection: int


class HasScene(Protocol):
    """What handlers run for."""

    @property
    def scene(self) -> Scene:
        """Where that is."""
        ...


class Here:
    """Where the running code is."""

    __slots__ = ("_variable", "wanted")

    def __init__(self) -> None:
        self.wanted: bool = False
        """Whether anybody asks."""
        self._variable: ContextVar[tuple[HasScene, object] | None] = ContextVar("starlette_channels_here", default=None)

    def enter(self, actor: HasScene, letter: object) -> None:
        """Let the running code, and what it starts, be about a letter to somebody."""
        self._variable.set((actor, letter))

    def describe(self) -> Mapping[str, str]:
        """Return where the running code is, as texts that a log line may have."""
        found = self._variable.get()
        if found is None:
            return {}
        actor, letter = found
        topic, socket_id, connection = actor.scene
        event = getattr(letter, "event", None)
        texts = {"topic": _text(topic), "connection": str(connection)}
        if event is not None:
            texts["event"] = _text(event)
        if socket_id is not None:
            texts["socket_id"] = _text(socket_id)
        return texts


HERE = Here()


class LogContext(logging.Filter):
    """Gives each record the attributes `topic`, `event`, `socket_id` and `connection`, for a formatter to show.

    Add it to a handler of `logging`, so that the records of all loggers pass it, yours included. Outside handlers of
    channels, and for what is not there, they are `-`. What an attribute of that name is already, it stays.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        HERE.wanted = True

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes; no record is left out but by `name`, as with any filter."""
        known = self.current()
        for attribute in ("topic", "event", "socket_id", "connection"):
            if not hasattr(record, attribute):
                setattr(record, attribute, known.get(attribute, NOTHING))
        return bool(super().filter(record))

    @staticmethod
    def current() -> Mapping[str, str]:
        """Return those of the four that there are now, for loggers that are not `logging`'s.

        It is empty outside handlers, and before the first `LogContext` was made.
        """
        return HERE.describe()


def _text(value: object) -> str:
    text = shown(value)
    return text[1:-1] if isinstance(value, str) and text[0] == text[-1] else text
