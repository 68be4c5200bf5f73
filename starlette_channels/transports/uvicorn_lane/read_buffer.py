"""The read buffer: data of one client that is not handled yet, so that other clients have turns in between.

It exists only while a client sends much at once, or more than there is time for.
"""

from collections import deque
from collections.abc import Iterable

from starlette_channels.transports.uvicorn_lane.frames import Event, FrameReader


class ReadBuffer:
    """Unparsed bytes, and the events parsed from the bytes before them."""

    __slots__ = ("_at", "_data", "events")

    def __init__(self, events: Iterable[Event] = (), data: bytes = b"") -> None:
        self.events: deque[Event] = deque(events)
        """Parsed events; the owner pops them from the left."""
        self._data = data
        self._at = 0

    def add(self, data: bytes) -> None:
        """Append bytes."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def read(self, reader: FrameReader) -> None:
        """Parse one slice of the bytes; it need not complete an event."""
        if self._at < len(self._data):
            self._at = reader.read(self._data, self._at, self.events)

    @property
    def is_empty(self) -> bool:
        """Whether no event and no byte is left."""
        return not self.events and self._at >= len(self._data)
