"""What has been read of one client and has yet to be dealt with: others have their turn in between.

It exists only for a client that sends much at once, or more than there is time for.
"""

from collections import deque
from collections.abc import Iterable

from starlette_channels.transports.uvicorn_lane.frames import Event, FrameReader


class ReadBuffer:
    """Bytes, and what came before them, taken apart already."""

    __slots__ = ("_at", "_data", "events")

    def __init__(self, events: Iterable[Event] = (), data: bytes = b"") -> None:
        self.events: deque[Event] = deque(events)
        """What has been taken apart; the owner takes from its left."""
        self._data = data
        self._at = 0

    def add(self, data: bytes) -> None:
        """Put bytes behind everything."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def read(self, reader: FrameReader) -> None:
        """Take one slice of the bytes apart, which may complete something or not."""
        if self._at < len(self._data):
            self._at = reader.read(self._data, self._at, self.events)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left."""
        return not self.events and self._at >= len(self._data)
