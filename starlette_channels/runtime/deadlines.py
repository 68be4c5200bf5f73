"""Deadlines of many things without a timer for each; no clock and no I/O."""

import heapq
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Deadlines(Generic[T]):
    """A priority queue of things by deadline, in whole seconds, rounded up.

    `put` and `remove` take constant time, except for the first thing of a second.
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
        """The earliest deadline, or `None`."""
        while self._seconds and self._seconds[0] not in self._things:
            heapq.heappop(self._seconds)
        return self._seconds[0] if self._seconds else None

    def put(self, thing: T, when: float) -> None:
        """Set the deadline of a thing, replacing an earlier one."""
        self.remove(thing)
        second = math.ceil(when)
        if second not in self._things:
            self._things[second] = {}
            heapq.heappush(self._seconds, second)
        self._things[second][thing] = None
        self._when[thing] = second

    def remove(self, thing: T) -> None:
        """Remove a thing; one without a deadline is no error."""
        second = self._when.pop(thing, None)
        if second is not None:
            del self._things[second][thing]
            if not self._things[second]:
                del self._things[second]

    def take_due(self, now: float) -> list[T]:
        """Remove and return the things that are due, earliest first."""
        due: list[T] = []
        while (second := self.next) is not None and second <= now:
            due += self._things[second]
            for thing in tuple(self._things[second]):
                self.remove(thing)
        return due
