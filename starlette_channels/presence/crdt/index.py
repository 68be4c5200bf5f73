"""Index of the presences in the shape that clients get: by topic, then by key, in the order of arrival."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

import msgspec
from msgspec import Raw

from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Entry

Owner: TypeAlias = tuple[ReplicaId, int]
"""The owner of an entry: a member of a replica."""

KeyEntries: TypeAlias = Mapping[Owner, Entry]
"""The entries of one key."""

NO_KEYS: Mapping[str, KeyEntries] = MappingProxyType({})
NO_STATE = Raw(b"{}")

_encode_key = msgspec.json.Encoder().encode


class TopicIndex:
    """The entries of one topic by key, with the cached JSON of each key and of the whole topic."""

    __slots__ = ("_changed", "_json", "_json_of_keys", "keys")

    def __init__(self) -> None:
        self.keys: dict[str, dict[Owner, Entry]] = {}
        self._json_of_keys: dict[str, str] = {}  # always the same keys as `keys`, in the same order
        self._changed: set[str] = set()  # the keys whose JSON is out of date
        self._json: Raw | None = None

    def put(self, owner: Owner, entry: Entry) -> None:
        """Add an entry, or replace the entry of the same owner under this key."""
        key = entry.key
        entries = self.keys.get(key)
        if entries is None:
            self.keys[key] = {owner: entry}
            self._json_of_keys[key] = f'{_encode_key(key).decode()}:{{"metas":[{entry.meta.json}]}}'
        else:
            entries[owner] = entry
            self._changed.add(key)
        self._json = None

    def take(self, owner: Owner, entry: Entry) -> None:
        """Remove an existing entry; remove its key with the last entry."""
        key = entry.key
        entries = self.keys[key]
        del entries[owner]
        if entries:
            self._changed.add(key)
        else:
            del self.keys[key], self._json_of_keys[key]
            self._changed.discard(key)
        self._json = None

    def json(self) -> Raw:
        """Return the JSON of all keys: the same object until something changes."""
        if self._json is None:
            for key in self._changed:
                metas = ",".join([entry.meta.json for entry in self.keys[key].values()])
                self._json_of_keys[key] = f'{_encode_key(key).decode()}:{{"metas":[{metas}]}}'
            self._changed.clear()
            json_of_all = ",".join(self._json_of_keys.values())
            self._json = Raw(f"{{{json_of_all}}}")
        return self._json


class Roster:
    """The entries of all replicas that are up, by topic. All but `entries` and `json` take constant time."""

    __slots__ = ("_topics",)

    def __init__(self) -> None:
        self._topics: dict[str, TopicIndex] = {}

    def put(self, replica: ReplicaId, entry: Entry) -> None:
        """Add an entry, or replace the entry of the same owner on this topic under this key."""
        topic = self._topics.get(entry.topic)
        if topic is None:
            topic = self._topics[entry.topic] = TopicIndex()
        topic.put((replica, entry.member), entry)

    def take(self, replica: ReplicaId, entry: Entry) -> None:
        """Remove an existing entry. Keys and topics without entries are removed as well."""
        topic = self._topics[entry.topic]
        topic.take((replica, entry.member), entry)
        if not topic.keys:
            del self._topics[entry.topic]

    def on(self, topic: str) -> Mapping[str, KeyEntries]:
        """Return the entries on a topic, by key."""
        found = self._topics.get(topic)
        return NO_KEYS if found is None else found.keys

    def entries(self, topic: str) -> list[Entry]:
        """Return all entries on a topic."""
        return [entry for entries in self.on(topic).values() for entry in entries.values()]

    def json(self, topic: str) -> Raw:
        """Return the `presence_state` of a topic, encoded: the same object until the topic changes.

        After a change the cached JSON of the other keys is joined again: about 20 microseconds for 1,000 keys.
        """
        found = self._topics.get(topic)
        return NO_STATE if found is None else found.json()

    @property
    def topics(self) -> Mapping[str, Mapping[str, KeyEntries]]:
        """All entries, by topic and key."""
        return {name: topic.keys for name, topic in self._topics.items()}
