"""The send queue of a client that is behind with reading, from which policies may drop frames."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from starlette_channels.channels.backpressure import Place
from starlette_channels.wire.messages import Frame, OutgoingFrame, as_frame

T = TypeVar("T")


class SendQueue(Generic[T]):
    """Frames in order, each with its size in bytes; bounded as far as the policies of their channels allow.

    Dropped frames are counted: `dropped_stale` if a later frame has the same key, `dropped_oldest` if the queue was
    full. All operations take constant time.
    """

    __slots__ = ("_ageing", "_counts", "_frames", "_latest", "_limit", "_number", "bytes")

    def __init__(self, limit: int, counts: Counter[str]) -> None:
        self.bytes: int = 0
        self._limit = limit
        self._counts = counts
        self._number = 0
        self._frames: OrderedDict[int, tuple[T, int, Place | None]] = OrderedDict()
        self._latest: dict[Place, int] = {}
        self._ageing: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def is_full(self) -> bool:
        """Whether more bytes are queued than the limit."""
        return self.bytes > self._limit

    def add(self, frame: T, size: int, place: Place | None = None) -> None:
        """Append a frame; drop the frame that it replaces, and the oldest ones while the queue is full.

        Raises `TypeError` for an unhashable key.
        """
        older = None if place is None or place.key is None else self._latest.get(place)  # raises for an unhashable key
        self._number += 1
        self._frames[self._number] = frame, size, place
        self.bytes += size
        if place is None:
            return
        if place.key is None:
            self._ageing.append(self._number)
        else:
            self._latest[place] = self._number
            if older is not None:
                self._drop(older, "dropped_stale")
        while self.is_full and self._ageing:
            self._drop(self._ageing.popleft(), "dropped_oldest")

    def pop(self) -> T:
        """Remove and return the oldest frame; raises `KeyError` if there is none."""
        number, (frame, size, place) = self._frames.popitem(last=False)
        self.bytes -= size
        if place is not None and place.key is None:
            self._ageing.popleft()  # it is the oldest of them: dropping begins there, too
        elif place is not None and self._latest.get(place) == number:
            del self._latest[place]
        return frame

    def drain(self) -> list[T]:
        """Remove and return all frames."""
        frames = [frame for frame, _, _ in self._frames.values()]
        self.clear()
        return frames

    def clear(self) -> None:
        """Remove all frames."""
        self._frames.clear()
        self._latest.clear()
        self._ageing.clear()
        self.bytes = 0

    def _drop(self, number: int, code: str) -> None:
        _, size, _ = self._frames.pop(number)
        self.bytes -= size
        self._counts[code] += 1


class OneByOne:
    """Outlet that writes to the clients one by one."""

    def spread(self, writers: Sequence[Callable[[Frame], None]], frame: OutgoingFrame) -> None:
        """Write a frame to every client."""
        frame = as_frame(frame)
        for write in writers:
            write(frame)


ONE_BY_ONE = OneByOne()
