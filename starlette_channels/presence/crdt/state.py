"""The state of presence: a replicated set that converges whatever happens to the messages about it.

Each replica has a share, and only that replica changes it; so there are no conflicts, and merging is the union of what
is known of each share. Every change has a number of its own, its dot, removals included: who lacks a change is behind
in dots, and asks. Source: `tracker/state.ex` of phoenix_pubsub, an observed-remove set without tombstones.
"""

from collections.abc import Iterable
from typing import TypeAlias

from msgspec import Struct, field

from starlette_channels.presence.crdt.clock import Clock, ReplicaId
from starlette_channels.presence.crdt.delta import Delta, Entry, Meta, Part
from starlette_channels.presence.crdt.index import Roster

EntryPlace: TypeAlias = tuple[str, int, str]
"""Where there is room for one entry of a replica: topic, member, key."""


class Changes(Struct):
    """Who came and who went."""

    joins: list[Entry] = field(default_factory=list[Entry])
    leaves: list[Entry] = field(default_factory=list[Entry])

    def extend(self, other: "Changes") -> None:
        """Add what happened next."""
        self.joins += other.joins
        self.leaves += other.leaves


class Share:
    """What is known of one replica's entries."""

    __slots__ = ("_places", "clock", "cloud", "entries", "online")

    def __init__(self) -> None:
        self.clock: int = 0  # all dots up to here are known
        self.cloud: set[int] = set()  # and these beyond it
        self.entries: dict[int, Entry] = {}
        self.online: bool = True
        self._places: dict[EntryPlace, int] = {}

    def find(self, place: EntryPlace) -> Entry | None:
        """Return the entry in a place."""
        dot = self._places.get(place)
        return None if dot is None else self.entries[dot]

    def add(self, entry: Entry) -> Part:
        """Make a new entry; return what has changed."""
        self.clock += 1
        self._put(self.clock, entry)
        return Part(0, {self.clock}, {self.clock: entry})

    def remove(self, place: EntryPlace) -> Part:
        """Remove an entry, which must be there; return what has changed."""
        dot = self._places[place]
        self._drop(dot)
        self.clock += 1
        return Part(0, {dot, self.clock}, {})

    def merge(self, part: Part) -> Changes:
        """Take what somebody else knows of this share."""
        changes = Changes()
        for dot in [dot for dot in self._spoken_of(part) if dot not in part.entries]:
            changes.leaves.append(self._drop(dot))
        for dot, entry in sorted(part.entries.items()):
            if dot > self.clock and dot not in self.cloud:
                self._admit(dot, entry, changes)
        self.clock = max(self.clock, part.clock)
        self.cloud |= part.cloud
        self._compact()
        return changes

    def _spoken_of(self, part: Part) -> Iterable[int]:
        """The dots of our entries of which a part speaks."""
        if part.clock == 0:
            return part.cloud & self.entries.keys()
        return (dot for dot in self.entries if dot <= part.clock or dot in part.cloud)

    def _admit(self, dot: int, entry: Entry, changes: Changes) -> None:
        """Put an entry that is new here in its place; of two for one place, the later is right: they have one owner."""
        present = self._places.get((entry.topic, entry.member, entry.key), 0)
        if present > dot:
            return
        if present:
            changes.leaves.append(self._drop(present))
        self._put(dot, entry)
        changes.joins.append(entry)

    def _put(self, dot: int, entry: Entry) -> None:
        self.entries[dot] = entry
        self._places[entry.topic, entry.member, entry.key] = dot

    def _drop(self, dot: int) -> Entry:
        entry = self.entries.pop(dot)
        del self._places[entry.topic, entry.member, entry.key]
        return entry

    def _compact(self) -> None:
        while self.clock + 1 in self.cloud:
            self.clock += 1
        self.cloud = {dot for dot in self.cloud if dot > self.clock}


class State:
    """What one replica knows of all. It has no clock of the wall and does no I/O: whoever has it sends the deltas."""

    def __init__(self, me: ReplicaId) -> None:
        self.me: ReplicaId = me
        self.roster: Roster = Roster()
        self._own = Share()
        self._shares: dict[ReplicaId, Share] = {me: self._own}

    def rename(self, me: ReplicaId) -> Part:
        """Be another replica from now on: the own entries begin anew under this name; return them, for the others."""
        entries = tuple(self._own.entries.values())
        for entry in entries:
            self.roster.take(self.me, entry)
        del self._shares[self.me]
        self.me, self._own = me, Share()
        self._shares[me] = self._own
        for entry in entries:
            self.add(entry.topic, entry.member, entry.key, entry.meta)
        return Part(0, frozenset(self._own.entries), dict(self._own.entries))

    # The own entries.

    def find(self, topic: str, member: int, key: str) -> Entry | None:
        """Return an own entry."""
        return self._own.find((topic, member, key))

    def add(self, topic: str, member: int, key: str, meta: Meta) -> Part:
        """Add an own entry, or replace its meta; return what has changed, for the others."""
        present = self.find(topic, member, key)
        entry = Entry(topic, member, key, meta)
        removal = Part(0, frozenset(), {}) if present is None else self._own.remove((topic, member, key))
        addition = self._own.add(entry)
        self.roster.put(self.me, entry)
        return Part(0, removal.cloud | addition.cloud, addition.entries)

    def remove(self, topic: str, member: int, key: str) -> Part:
        """Remove an own entry, which must be there; return what has changed, for the others."""
        entry = self.find(topic, member, key)
        if entry is None:
            raise KeyError((topic, member, key))
        self.roster.take(self.me, entry)
        return self._own.remove((topic, member, key))

    # The others.

    @property
    def replicas(self) -> frozenset[ReplicaId]:
        """The replicas of which something is known or expected, those that are down included."""
        return frozenset(self._shares)

    @property
    def clock(self) -> Clock:
        """How much is known of every replica, those that are down included."""
        return {replica: share.clock for replica, share in self._shares.items()}

    @property
    def advertised(self) -> Clock:
        """What others may ask for: how much is known of the replicas that are up."""
        return {replica: share.clock for replica, share in self._shares.items() if share.online}

    def merge(self, delta: Delta) -> Changes:
        """Take what others know. Own entries stay as they are; replicas that are not known are not believed in.

        What is known of a replica that is down is kept, and not reported before it is up.
        """
        changes = Changes()
        for replica, part in delta.items():
            share = self._shares.get(replica)
            if share is None or replica == self.me:
                continue
            merged = share.merge(part)
            if share.online:
                self._show(replica, merged)
                changes.extend(merged)
        return changes

    def extract(self, since: Clock) -> Delta:
        """Return all that is known of the replicas of which somebody with this clock lacks something."""
        return {
            replica: Part(share.clock, frozenset(share.cloud), dict(share.entries))
            for replica, share in self._shares.items()
            if share.online and share.clock > since.get(replica, 0)
        }

    def up(self, replica: ReplicaId) -> Changes:
        """Believe in a replica; what was known of it before it went down is there again."""
        share = self._shares.setdefault(replica, Share())
        if share.online:
            return Changes()
        share.online = True
        changes = Changes(joins=list(share.entries.values()))
        self._show(replica, changes)
        return changes

    def down(self, replica: ReplicaId) -> Changes:
        """Hide the entries of a replica that is not heard of, and keep them."""
        share = self._shares.get(replica)
        if share is None or not share.online:
            return Changes()
        share.online = False
        changes = Changes(leaves=list(share.entries.values()))
        self._show(replica, changes)
        return changes

    def forget(self, replica: ReplicaId) -> Changes:
        """Drop all that is known of a replica."""
        changes = self.down(replica)
        self._shares.pop(replica, None)
        return changes

    def _show(self, replica: ReplicaId, changes: Changes) -> None:
        for entry in changes.leaves:
            self.roster.take(replica, entry)
        for entry in changes.joins:
            self.roster.put(replica, entry)
