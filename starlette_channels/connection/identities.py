"""What the connections of one user are counted by together: their `socket_id`."""

from typing import NamedTuple

from starlette_channels.limits import Bounds
from starlette_channels.rates import FULL, Meter

MOST_REMEMBERED = 10_000
"""Identities without a connection that are remembered until their buckets are full; if there are more, no longer."""


class Excess(NamedTuple):
    """One message too many: which limit it is beyond, and in how many seconds it would not be."""

    code: str
    seconds: float


MOST_DRAWN = 256


class Quotas:
    """The rates of the clients of one `Channels`."""

    def __init__(self, limits: Bounds) -> None:
        self.heaviest: int = min(limits.message_rate.burst, limits.identity_message_rate.burst)
        """No message counts as more than this: it would never be taken."""
        handful = min(limits.message_rate.burst // 100, limits.identity_message_rate.burst // 1000, MOST_DRAWN)
        self.handful: int = max(1, handful)
        """So many messages are drawn at once, because most of them then cost next to nothing."""
        self.messages: Meter = Meter(limits.message_rate)
        self.joins: Meter = Meter(limits.join_rate)
        self.refusals: Meter = Meter(limits.refusal_rate)
        self.most_refused: int = limits.refusal_rate.burst
        self.identity_messages: Meter = Meter(limits.identity_message_rate)
        self.identity_joins: Meter = Meter(limits.identity_join_rate)


class Identity:
    """One user, or whatever a `socket_id` stands for."""

    __slots__ = ("_joins", "_messages", "_quotas", "connections", "name")

    def __init__(self, name: str, quotas: Quotas) -> None:
        self.name: str = name
        self.connections: int = 0
        self._quotas = quotas
        self._joins = FULL
        self._messages = FULL

    def draw_messages(self, number: int, now: float) -> Excess | None:
        """Count messages; return what they are beyond, if they are."""
        meter = self._quotas.identity_messages
        bucket = meter.draw(self._messages, now, number)
        if bucket is None:
            return Excess("too_many_identity_messages", meter.wait(self._messages, now, number))
        self._messages = bucket
        return None

    def draw_join(self, now: float) -> Excess | None:
        """Count a join; return what it is beyond, if it is."""
        meter = self._quotas.identity_joins
        bucket = meter.draw(self._joins, now)
        if bucket is None:
            return Excess("too_many_identity_joins", meter.wait(self._joins, now))
        self._joins = bucket
        return None

    def is_rested(self, now: float) -> bool:
        """Whether its buckets are full."""
        return self._joins <= now and self._messages <= now


class Identities:
    """Those who are connected, and those who left with empty buckets, which coming back must not fill."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._present: dict[str, Identity] = {}
        self._absent: dict[str, Identity] = {}

    def __len__(self) -> int:
        return len(self._present) + len(self._absent)

    def connections(self, name: str) -> int:
        """Return how many connections an identity has."""
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
        """Count a connection no longer."""
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
