"""Who is there, as clients are told: by topic, then by key, in the order in which they came."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

import msgspec
from msgspec import Raw

from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Entry

Owner: TypeAlias = tuple[ReplicaId, int]
"""Whose an entry is: a member of a replica."""

MetaGroup: TypeAlias = Mapping[Owner, Entry]
"""The entries of one key."""


class Entries(dict[Owner, Entry]):
    """The entries of one key, and how they are told, for as long as they stay the same."""

    __slots__ = ("_json",)

    def __init__(self) -> None:
        super().__init__()
        self._json: str | None = None

    def forget(self) -> None:
        """Take note that they have changed."""
        self._json = None

    def json(self, key: str) -> str:
        """Return key and entries as a member of a JSON object; encoded only once, because everybody is told of all."""
        if self._json is None:
            metas = ",".join(entry.meta.json for entry in self.values())
            self._json = f'{msgspec.json.encode(key).decode()}:{{"metas":[{metas}]}}'
        return self._json


NOBODY: Mapping[str, MetaGroup] = MappingProxyType({})


class Roster:
    """The entries of all replicas that are up. Every method but `json` takes the same time, however many there are."""

    __slots__ = ("_topics",)

    def __init__(self) -> None:
        self._topics: dict[str, dict[str, Entries]] = {}

    def put(self, replica: ReplicaId, entry: Entry) -> None:
        """Add an entry, or put it in the place of the one that its owner has under this key."""
        entries = self._topics.setdefault(entry.topic, {}).setdefault(entry.key, Entries())
        entries[replica, entry.member] = entry
        entries.forget()

    def take(self, replica: ReplicaId, entry: Entry) -> None:
        """Remove an entry, which must be there; a topic or key that is empty is gone."""
        keys = self._topics[entry.topic]
        entries = keys[entry.key]
        del entries[replica, entry.member]
        entries.forget()
        if not entries:
            del keys[entry.key]
            if not keys:
                del self._topics[entry.topic]

    def on(self, topic: str) -> Mapping[str, MetaGroup]:
        """Return who is on a topic, by key."""
        return self._topics.get(topic, NOBODY)

    def json(self, topic: str) -> Raw:
        """Return who is on a topic as clients are told. What has not changed since the last time costs little."""
        keys = self._topics.get(topic, {})
        return Raw(f"{{{','.join([entries.json(key) for key, entries in keys.items()])}}}")

    @property
    def topics(self) -> Mapping[str, Mapping[str, MetaGroup]]:
        """Everybody, by topic and key."""
        return self._topics
