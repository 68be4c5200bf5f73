"""Who is there, as clients are told: by topic, then by key, in the order in which they came."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from starlette_channels.presence.clocks import ReplicaId
from starlette_channels.presence.deltas import Entry

Owner: TypeAlias = tuple[ReplicaId, int]
"""Whose an entry is: a member of a replica."""

Group: TypeAlias = Mapping[Owner, Entry]
"""The entries of one key."""

NOBODY: Mapping[str, Group] = MappingProxyType({})


class Roster:
    """The entries of all replicas that are up. Every method takes the same time, however many there are."""

    __slots__ = ("_topics",)

    def __init__(self) -> None:
        self._topics: dict[str, dict[str, dict[Owner, Entry]]] = {}

    def put(self, replica: ReplicaId, entry: Entry) -> None:
        """Add an entry, or put it in the place of the one that its owner has under this key."""
        self._topics.setdefault(entry.topic, {}).setdefault(entry.key, {})[replica, entry.member] = entry

    def take(self, replica: ReplicaId, entry: Entry) -> None:
        """Remove an entry, which must be there; a topic or key that is empty is gone."""
        keys = self._topics[entry.topic]
        group = keys[entry.key]
        del group[replica, entry.member]
        if not group:
            del keys[entry.key]
            if not keys:
                del self._topics[entry.topic]

    def on(self, topic: str) -> Mapping[str, Group]:
        """Return who is on a topic, by key."""
        return self._topics.get(topic, NOBODY)

    @property
    def topics(self) -> Mapping[str, Mapping[str, Group]]:
        """Everybody, by topic and key."""
        return self._topics
