"""Which of many things are due, without a timer for each: no clock and no I/O."""

import heapq
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Deadlines(Generic[T]):
    """Things with a deadline each, in whole seconds, rounded up: those of one second are due together.

    Putting and removing cost the same however many there are, but for a second that is new.
    """

    __slots__ = ("_seconds", "_things", "_when")

    def __init__(self) -> None:
        self._when: dict[T, int] = {}
        self._things: dict[int, dict[T, None]] = {}
        self._seconds: list[int] = []

    def __len__(self) -> int:
        return len(self._when)

    @property
    def next(self) -> int | None:
        """The earliest deadline, if there is any."""
        while self._seconds and self._seconds[0] not in self._things:
            heapq.heappop(self._seconds)
        return self._seconds[0] if self._seconds else None

    def put(self, thing: T, when: float) -> None:
        """Give a thing its deadline, instead of the one that it may have."""
        self.remove(thing)
        second = math.ceil(when)
        if second not in self._things:
            self._things[second] = {}
            heapq.heappush(self._seconds, second)
        self._things[second][thing] = None
        self._when[thing] = second

    def remove(self, thing: T) -> None:
        """Let a thing go; one that has no deadline is no error."""
        second = self._when.pop(thing, None)
        if second is not None:
            del self._things[second][thing]
            if not self._things[second]:
                del self._things[second]

    def take_due(self, now: float) -> list[T]:
        """Remove what is due, and return it, the earliest first."""
        due: list[T] = []
        while (second := self.next) is not None and second <= now:
            due += self._things[second]
            for thing in tuple(self._things[second]):
                self.remove(thing)
        return due
