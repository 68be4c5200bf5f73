"""Log context: the client, topic and event that a log record is about.

A context variable carries it to handlers, to what they await and to the tasks that they start. It is set only after a
`LogContext` was created; before that it costs the check of a flag for each message.
"""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from starlette_channels.wire.messages import shown

NOTHING = "-"


class Scene(NamedTuple):
    """The topic, `socket_id` and connection number of a log context."""

    topic: str
    socket_id: str | None
    connection: int


class HasScene(Protocol):
    """A channel or connection whose handlers are running."""

    @property
    def scene(self) -> Scene:
        """Its log context."""
        ...


class Here:
    """Log context of the running code."""

    __slots__ = ("_variable", "wanted")

    def __init__(self) -> None:
        self.wanted: bool = False
        """Whether a `LogContext` was created."""
        self._variable: ContextVar[tuple[HasScene, object] | None] = ContextVar("starlette_channels_here", default=None)

    def enter(self, actor: HasScene, letter: object) -> None:
        """Set the log context of the running code, and of the tasks it starts, to a message for an actor."""
        self._variable.set((actor, letter))

    def describe(self) -> Mapping[str, str]:
        """Return the log context as texts that are safe in a log line."""
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
    """Logging filter that adds `topic`, `event`, `socket_id` and `connection` to each record, for use in a format.

    Add it to a handler of `logging`, so that it sees the records of all loggers, including yours. Unknown values are
    `-`, as they are outside channel handlers. Existing attributes of the record are not overwritten.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        HERE.wanted = True

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes. Records are filtered by `name` only, as by `logging.Filter`."""
        known = self.current()
        for attribute in ("topic", "event", "socket_id", "connection"):
            if not hasattr(record, attribute):
                setattr(record, attribute, known.get(attribute, NOTHING))
        return bool(super().filter(record))

    @staticmethod
    def current() -> Mapping[str, str]:
        """Return the current values of the four attributes, for loggers other than `logging`.

        Empty outside handlers, and before the first `LogContext` is created.
        """
        return HERE.describe()


def _text(value: object) -> str:
    text = shown(value)
    return text[1:-1] if isinstance(value, str) and text[0] == text[-1] else text
