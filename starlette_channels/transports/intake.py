"""What has been read of one client and has yet to be dealt with: others have their turn in between.

It exists only for a client that sends much at once, or more than its handlers have time for.
"""

from collections import deque
from collections.abc import Sequence

from starlette_channels.frames import Event, FrameReader

SLICE_BYTES = 1 << 14
"""So much is taken apart at once."""

EVENTS_AT_ONCE = 16
"""So many messages and control frames of one client are dealt with in one turn of the event loop."""


class Intake:
    """Bytes, and what came before them, taken apart already."""

    __slots__ = ("_at", "_data", "_events", "is_scheduled")

    def __init__(self, events: Sequence[Event] = (), data: bytes = b"") -> None:
        self.is_scheduled: bool = False
        self._events: deque[Event] = deque(events)
        self._data = data
        self._at = 0

    def put_back(self, events: Sequence[Event]) -> None:
        """Put events before all others."""
        self._events.extendleft(reversed(events))

    def add(self, data: bytes) -> None:
        """Put bytes behind everything."""
        self._data = self._data[self._at :] + data
        self._at = 0

    def next(self, reader: FrameReader) -> Event | None:
        """Return the next event; `None` if there is nothing left, but perhaps the beginning of a frame."""
        while not self._events and self._at < len(self._data):
            self._events.extend(reader.feed(self._data[self._at : self._at + SLICE_BYTES]))
            self._at += SLICE_BYTES
        return self._events.popleft() if self._events else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left."""
        return not self._events and self._at >= len(self._data)
