"""Identities: the connections of one `socket_id`, and the rates that they share."""

from typing import NamedTuple

from starlette_channels.limits import Bounds
from starlette_channels.rates import FULL, Meter

MOST_REMEMBERED = 10_000
"""Limit of the identities without connections that are kept because their buckets are not full."""


class Excess(NamedTuple):
    """Excess over a rate limit: the code of the limit, and the seconds until the message would be allowed."""

    code: str
    seconds: float


MOST_DRAWN = 256
"""Limit of the messages that a connection draws at once."""


class Quotas:
    """The meters of one `Channels`."""

    def __init__(self, limits: Bounds) -> None:
        self.heaviest: int = min(limits.message_rate.burst, limits.identity_message_rate.burst)
        """Limit of the number that one large message counts as: more could never be drawn."""
        handful = min(limits.message_rate.burst // 100, limits.identity_message_rate.burst // 1000, MOST_DRAWN)
        self.handful: int = max(1, handful)
        """The number of messages that a connection draws in advance, to save time for the following ones."""
        self.messages: Meter = Meter(limits.message_rate)
        self.joins: Meter = Meter(limits.join_rate)
        self.refusals: Meter = Meter(limits.refusal_rate)
        self.most_refused: int = limits.refusal_rate.burst
        self.identity_messages: Meter = Meter(limits.identity_message_rate)
        self.identity_joins: Meter = Meter(limits.identity_join_rate)


class Identity:
    """The connections of one `socket_id`, and their buckets."""

    __slots__ = ("_joins", "_messages", "_quotas", "connections", "name")

    def __init__(self, name: str, quotas: Quotas) -> None:
        self.name: str = name
        self.connections: int = 0
        self._quotas = quotas
        self._joins = FULL
        self._messages = FULL

    def draw_messages(self, number: int, now: float) -> Excess | None:
        """Count messages; return the excess if they are beyond the limit."""
        meter = self._quotas.identity_messages
        bucket = meter.draw(self._messages, now, number)
        if bucket is None:
            return Excess("too_many_identity_messages", meter.wait(self._messages, now, number))
        self._messages = bucket
        return None

    def draw_join(self, now: float) -> Excess | None:
        """Count a join; return the excess if it is beyond the limit."""
        meter = self._quotas.identity_joins
        bucket = meter.draw(self._joins, now)
        if bucket is None:
            return Excess("too_many_identity_joins", meter.wait(self._joins, now))
        self._joins = bucket
        return None

    def is_rested(self, now: float) -> bool:
        """Return whether its buckets are full."""
        return self._joins <= now and self._messages <= now


class Identities:
    """Identities with connections, and those without until their buckets are full: a reconnect must not refill them."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._present: dict[str, Identity] = {}
        self._absent: dict[str, Identity] = {}

    def __len__(self) -> int:
        return len(self._present) + len(self._absent)

    def connections(self, name: str) -> int:
        """Return the number of connections of an identity."""
        identity = self._present.get(name)
        return 0 if identity is None else identity.connections

    def enter(self, name: str) -> Identity:
        """Count a connection."""
        identity = self._present.get(name)
        if identity is None:
            identity = self._present[name] = self._absent.pop(name, None) or Identity(name, self._quotas)
        identity.connections += 1
        return identity

    def leave(self, identity: Identity, now: float) -> None:
        """Stop counting a connection."""
        identity.connections -= 1
        if identity.connections == 0:
            del self._present[identity.name]
            if not identity.is_rested(now):
                self._absent[identity.name] = identity
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._absent:
            oldest = next(iter(self._absent.values()))
            if not oldest.is_rested(now) and len(self._absent) <= MOST_REMEMBERED:
                return
            del self._absent[oldest.name]
