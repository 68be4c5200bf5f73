"""Number ranges: sets of whole numbers with few holes, stored as ranges."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]
"""The first number, and the last."""


class NumberRanges:
    """A set of whole numbers; memory and time grow with the number of holes."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self.update(ranges)

    def __iter__(self) -> Iterator[Range]:
        return iter(tuple(zip(self._firsts, self._lasts, strict=True)))

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def __repr__(self) -> str:
        return f"NumberRanges({list(self)})"

    def smallest(self) -> int:
        """Return the smallest number; raises `IndexError` if the set is empty."""
        return self._firsts[0]

    def largest(self) -> int:
        """Return the largest number; raises `IndexError` if the set is empty."""
        return self._lasts[-1]

    def add(self, first: int, last: int) -> None:
        """Add all numbers from `first` to `last`, both included."""
        if first > last:
            return
        start = bisect_left(self._lasts, first - 1)
        end = bisect_right(self._firsts, last + 1)
        if start < end:
            first, last = min(first, self._firsts[start]), max(last, self._lasts[end - 1])
        self._firsts[start:end] = [first]
        self._lasts[start:end] = [last]

    def update(self, ranges: Iterable[Range]) -> None:
        """Add ranges."""
        for first, last in ranges:
            self.add(first, last)

    def remove(self, first: int, last: int) -> None:
        """Remove all numbers from `first` to `last`, both included."""
        start = bisect_left(self._lasts, first)
        end = bisect_right(self._firsts, last)
        if start >= end:
            return
        left = [
            part for part in ((self._firsts[start], first - 1), (last + 1, self._lasts[end - 1])) if part[0] <= part[1]
        ]
        self._firsts[start:end] = [part[0] for part in left]
        self._lasts[start:end] = [part[1] for part in left]

    def without(self, others: "NumberRanges") -> "NumberRanges":
        """Return the difference: the numbers of this set that are not in the other one."""
        left = NumberRanges(self)
        for first, last in others:
            left.remove(first, last)
        return left

    def within(self, first: int, last: int) -> "NumberRanges":
        """Return the numbers of this set from `first` to `last`, both included."""
        return NumberRanges(
            (max(first, start), min(last, end)) for start, end in self if end >= first and start <= last
        )
