"""How much of each replica's doings is known somewhere, and who knows something that is not known here.

Source: `tracker/clock.ex` of phoenix_pubsub.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias


class ReplicaId(NamedTuple):
    """One life of a node: a name that stays, and a number that grows with every start."""

    name: str
    vsn: int


Clock: TypeAlias = Mapping[ReplicaId, int]
"""For each replica the number of its last change before which all are known. A replica that is left out is at 0."""


def covers(clock: Clock, other: Clock) -> bool:
    """Whether everything that the other knows is known here as well."""
    return all(clock.get(replica, 0) >= dot for replica, dot in other.items())


def worth_asking(own: Clock, others: Mapping[ReplicaId, Clock]) -> list[ReplicaId]:
    """Return who must be asked to learn all that the others know: as few as possible.

    Who knows nothing new, or nothing that one of the chosen does not know, is left out.
    """
    chosen: list[ReplicaId] = []
    for replica in sorted(others, key=lambda one: (sum(others[one].values()), one), reverse=True):
        clock = others[replica]
        if not covers(own, clock) and not any(covers(others[one], clock) for one in chosen):
            chosen.append(replica)
    return chosen
