"""What waits for a client that is behind with reading, and what of it may be dropped."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from starlette_channels.channels.backpressure import Place
from starlette_channels.wire.messages import Frame, Outgoing, as_frame

T = TypeVar("T")


class SendQueue(Generic[T]):
    """Frames in order, each with its size in bytes; pure, and bounded as far as the policies of their channels allow.

    What is dropped is counted: `dropped_stale` if a later frame stands for the same, `dropped_oldest` if there was no
    room. Everything costs the same however much waits.
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
        """Whether more waits than should, although nothing more may be dropped."""
        return self.bytes > self._limit

    def add(self, frame: T, size: int, place: Place | None = None) -> None:
        """Put a frame behind the others, and drop those that it makes superfluous, or for which there is no room.

        Raises `TypeError` for a key that cannot be one of a dict.
        """
        older = None if place is None or place.key is None else self._latest.get(place)  # raises for no key at all
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
        """Take the oldest frame; raises `KeyError` if there is none."""
        number, (frame, size, place) = self._frames.popitem(last=False)
        self.bytes -= size
        if place is not None and place.key is None:
            self._ageing.popleft()  # what is dropped is the oldest as well, so this is the first of them
        elif place is not None and self._latest.get(place) == number:
            del self._latest[place]
        return frame

    def drain(self) -> list[T]:
        """Take all frames."""
        frames = [frame for frame, _, _ in self._frames.values()]
        self.clear()
        return frames

    def clear(self) -> None:
        """Forget everything."""
        self._frames.clear()
        self._latest.clear()
        self._ageing.clear()
        self.bytes = 0

    def _drop(self, number: int, code: str) -> None:
        _, size, _ = self._frames.pop(number)
        self.bytes -= size
        self._counts[code] += 1


class OneByOne:
    """An outlet for clients each of which has an outbox of its own."""

    def spread(self, writers: Sequence[Callable[[Frame], None]], frame: Outgoing) -> None:
        """Queue a frame for every client."""
        frame = as_frame(frame)
        for write in writers:
            write(frame)


ONE_BY_ONE = OneByOne()
