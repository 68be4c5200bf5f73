"""Clocks: the number of known changes of each replica, and the choice of replicas to ask for more.

Source: `tracker/clock.ex` of phoenix_pubsub.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias


class ReplicaId(NamedTuple):
    """One run of a node: its constant name, and a version that grows with every start."""

    name: str
    vsn: int


Clock: TypeAlias = Mapping[ReplicaId, int]
"""For each replica, the number of changes known without a gap. A missing replica is at 0."""


def covers(clock: Clock, other: Clock) -> bool:
    """Whether a clock is at or after another for every replica."""
    return all(clock.get(replica, 0) >= dot for replica, dot in other.items())


def worth_asking(own: Clock, others: Mapping[ReplicaId, Clock]) -> list[ReplicaId]:
    """Return the replicas to ask for all missing changes: as few as possible.

    A replica is left out if it has no new changes, or none beyond those of a chosen replica.
    """
    chosen: list[ReplicaId] = []
    for replica in sorted(others, key=lambda one: (sum(others[one].values()), one), reverse=True):
        clock = others[replica]
        if not covers(own, clock) and not any(covers(others[one], clock) for one in chosen):
            chosen.append(replica)
    return chosen
