"""Token buckets, without a clock of their own.

A bucket is one number: the time at which it will be full again. What is in it now follows from that, so a bucket that
nobody draws from needs nothing, and a thousand clients share one `Meter`. (Others call this the generic cell rate
algorithm.)
"""

from math import inf

from msgspec import Struct

from starlette_channels.arguments import check_fields

FULL = 0.0
"""A bucket from which nothing has been drawn."""


class Rate(Struct, frozen=True):
    """So many a second in the long run, and so many at once after a rest: `Rate(10, burst=200)`."""

    per_second: float
    """How many a second in the long run."""

    burst: int
    """How many at once, after a rest."""

    def __post_init__(self) -> None:
        """Refuse what is no rate."""
        check_fields(self, above_zero=("per_second", "burst"), off="; None in place of a Rate switches the limit off")


UNLIMITED = Rate(inf, 1_000_000)


class Meter:
    """Draws from buckets of one size. Times are in seconds, of a clock that does not go back."""

    __slots__ = ("_each", "_room")

    def __init__(self, rate: Rate) -> None:
        self._each = 1 / rate.per_second
        self._room = (rate.burst + 0.5) * self._each  # the half is for what is lost in rounding

    def draw(self, full_at: float, now: float, number: int = 1) -> float | None:
        """Return the bucket as it is with so many less in it, or `None` if it has not so many."""
        if full_at < now or full_at - now > self._room:  # by another clock, as in another event loop of trio
            full_at = now
        full_at += number * self._each
        return full_at if full_at - now <= self._room else None

    def wait(self, full_at: float, now: float, number: int = 1) -> float:
        """Return the seconds until there are so many in the bucket."""
        return max(0.0, full_at + number * self._each - self._room - now)
