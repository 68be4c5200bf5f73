"""Clocks: how many changes of each replica are known, and which replicas know more.

Source: `tracker/clock.ex` of phoenix_pubsub.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias


class ReplicaId(NamedTuple):
    """One life of a node: its name, which stays the same, and a version, which grows with every start."""

    name: str
    vsn: int


Clock: TypeAlias = Mapping[ReplicaId, int]
"""For each replica, the number of changes that are known without a hole. A replica that is left out is at 0."""


def covers(clock: Clock, other: Clock) -> bool:
    """Whether a clock is nowhere behind another."""
    return all(clock.get(replica, 0) >= dot for replica, dot in other.items())


def worth_asking(own: Clock, others: Mapping[ReplicaId, Clock]) -> list[ReplicaId]:
    """Return the replicas to ask for all that the others know: as few as possible.

    A replica is left out if it knows nothing new, or nothing that a chosen one does not know.
    """
    chosen: list[ReplicaId] = []
    for replica in sorted(others, key=lambda one: (sum(others[one].values()), one), reverse=True):
        clock = others[replica]
        if not covers(own, clock) and not any(covers(others[one], clock) for one in chosen):
            chosen.append(replica)
    return chosen
