"""Rate limiter of one connection: the messages, bytes and joins of the client, and its refused messages."""

from starlette_channels.connection.identities import Excess, Identity, Quotas
from starlette_channels.rates import FULL

HEAVY = 16_384
"""Unit of size in characters or bytes: a message counts as one more for each full unit."""


class RateLimiter:
    """The token buckets of one connection, beside those of its identity. Times are those of the event loop's clock."""

    __slots__ = ("_identity", "_joins", "_messages", "_quotas", "_refusals", "prepaid")

    def __init__(self, quotas: Quotas, identity: Identity | None) -> None:
        self.prepaid: int = 0
        """Small messages drawn in advance: a caller may subtract 1 instead of calling `draw`."""
        self._quotas = quotas
        self._identity = identity
        self._messages = FULL
        self._joins = FULL
        self._refusals = FULL

    def draw(self, size: int, now: float, *, is_join: bool) -> Excess | None:
        """Draw a message of this size in characters or bytes; return the excess if it is over a limit."""
        excess = self._draw_join(now) if is_join else None
        if excess is None and size >= HEAVY:
            return self.draw_messages(size // HEAVY + (not is_join), now)
        if is_join:
            return excess
        if self.prepaid:
            self.prepaid -= 1
            return None
        handful = self._quotas.handful
        if handful > 1 and self.draw_messages(handful, now) is None:
            self.prepaid = handful - 1
            return None
        return self.draw_messages(1, now)

    def draw_messages(self, number: int, now: float) -> Excess | None:
        """Draw several messages at once, at most the capacity of the bucket."""
        quotas = self._quotas
        number = min(number, quotas.heaviest)
        bucket = quotas.messages.draw(self._messages, now, number)
        if bucket is None:
            return Excess("too_many_messages", quotas.messages.wait(self._messages, now, number))
        excess = None if self._identity is None else self._identity.draw_messages(number, now)
        if excess is None:
            self._messages = bucket
        return excess

    def draw_bytes(self, before: int, after: int, now: float) -> Excess | None:
        """Draw the growth of a body, from `before` to `after` bytes."""
        heaviest = self._quotas.heaviest
        number = min(after // HEAVY, heaviest) - min(before // HEAVY, heaviest)
        return self.draw_messages(number, now) if number else None

    def draw_refusal(self, number: int, now: float) -> bool:
        """Draw refused messages; return False if there have been too many."""
        bucket = self._quotas.refusals.draw(self._refusals, now, min(number, self._quotas.most_refused))
        if bucket is not None:
            self._refusals = bucket
        return bucket is not None

    def _draw_join(self, now: float) -> Excess | None:
        meter = self._quotas.joins
        bucket = meter.draw(self._joins, now)
        if bucket is None:
            return Excess("too_many_joins", meter.wait(self._joins, now))
        self._joins = bucket
        return None if self._identity is None else self._identity.draw_join(now)
