"""Rate limits: token buckets without a clock of their own, as in the generic cell rate algorithm.

The state of a bucket is one number: the time at which it will be full again. The tokens in it follow from that number
and the time now, so an unused bucket needs no upkeep, and a thousand clients share one `Meter`.
"""

from math import inf

from msgspec import Struct

from starlette_channels.arguments import check_fields

FULL = 0.0
"""The state of a full bucket."""


class Rate(Struct, frozen=True):
    """A rate limit as a token bucket: `Rate(10, burst=200)` allows 200 at once, then 10 per second.

    Raises:
        TypeError: A field is not a number.
        ValueError: A field is 0 or less.
    """

    per_second: float
    """Tokens per second that the bucket regains: the rate in the long run. More than 0."""

    burst: int
    """Size of the bucket: the number that is allowed at once after a pause. At least 1."""

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_fields(self, above_zero=("per_second", "burst"), off="; None in place of a Rate switches the limit off")


UNLIMITED = Rate(inf, 1_000_000)


class Meter:
    """Takes tokens from buckets of one rate. Times are in seconds of a monotonic clock."""

    __slots__ = ("_each", "_room")

    def __init__(self, rate: Rate) -> None:
        self._each = 1 / rate.per_second
        self._room = (rate.burst + 0.5) * self._each  # half a token more, against rounding errors

    def draw(self, full_at: float, now: float, number: int = 1) -> float | None:
        """Take `number` tokens: return the bucket's new state, or `None` if it has too few."""
        if full_at < now or full_at - now > self._room:  # full, or of another clock, as in another event loop of trio
            full_at = now
        full_at += number * self._each
        return full_at if full_at - now <= self._room else None

    def wait(self, full_at: float, now: float, number: int = 1) -> float:
        """Return the seconds until the bucket has `number` tokens."""
        return max(0.0, full_at + number * self._each - self._room - now)
