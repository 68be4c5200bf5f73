"""State of presence: a replicated set (CRDT) that converges even if messages are lost, repeated or reordered.

Each replica owns a share of the entries, and only that replica changes it. So there are no conflicts, and a merge is
the union of the known changes of each share. Every change has a number, its dot, removals included: a replica that
lacks a change finds a gap in the dots, and asks. Source: `tracker/state.ex` of phoenix_pubsub, an observed-remove set
without tombstones.
"""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from msgspec import Struct, field

from starlette_channels.presence.crdt.clock import Clock, ReplicaId
from starlette_channels.presence.crdt.delta import Delta, Entry, Meta, Part
from starlette_channels.presence.crdt.index import Roster

EntryPlace: TypeAlias = tuple[str, int, str]
"""Topic, member and key: a replica has at most one entry in each place."""


class Changes(Struct):
    """The entries added to the roster, and the entries removed from it."""

    joins: list[Entry] = field(default_factory=list[Entry])
    leaves: list[Entry] = field(default_factory=list[Entry])

    def extend(self, other: "Changes") -> None:
        """Add the next changes."""
        self.joins += other.joins
        self.leaves += other.leaves


class Share:
    """The known entries of one replica."""

    __slots__ = ("_places", "clock", "cloud", "entries", "online")

    def __init__(self) -> None:
        self.clock: int = 0  # all dots up to this one are known
        self.cloud: set[int] = set()  # the dots beyond the clock that are known
        self.entries: dict[int, Entry] = {}
        self.online: bool = True
        self._places: dict[EntryPlace, int] = {}

    def find(self, place: EntryPlace) -> Entry | None:
        """Return the entry in a place."""
        dot = self._places.get(place)
        return None if dot is None else self.entries[dot]

    def add(self, entry: Entry) -> Part:
        """Add an entry, or replace the entry in its place. Return the change, for other replicas."""
        place = (entry.topic, entry.member, entry.key)
        dots = {self.clock + 1}
        replaced = self._places.get(place)
        if replaced is not None:  # the removal has a dot of its own
            del self.entries[replaced]
            dots = {replaced, self.clock + 1, self.clock + 2}
        self.clock = dot = max(dots)
        self.entries[dot] = entry
        self._places[place] = dot
        return Part(0, dots, {dot: entry})

    def remove(self, place: EntryPlace) -> Part:
        """Remove an existing entry. Return the change, for other replicas."""
        dot = self._places.pop(place)
        del self.entries[dot]
        self.clock += 1
        return Part(0, {dot, self.clock}, {})

    def merge(self, part: Part) -> Changes:
        """Merge the changes of this share that another replica knows."""
        changes = Changes()
        for dot in self._removed(part):
            changes.leaves.append(self._drop(dot))
        for dot in self._added(part):
            self._admit(dot, part.entries[dot], changes)
        if part.clock > self.clock or part.cloud:
            self.clock = max(self.clock, part.clock)
            self.cloud |= part.cloud
            self._compact()
        return changes

    def cut(self, part: Part, most: int) -> Iterator[tuple[int, Part]]:
        """Cut a part into slices of at most `most` changes to this share; yield the number of changes with each.

        Merging the slices in order has the effect of merging the part. Additions come first: a presence that moves from
        one place to another is never absent in between. An entry and the entry that it replaces are in one slice.
        """
        dots = [*self._added(part), *self._removed(part)]
        for start in range(0, len(dots) - most, most):
            slice_dots = dots[start : start + most]
            entries = {dot: part.entries[dot] for dot in slice_dots if dot in part.entries}
            yield most, Part(0, frozenset(slice_dots), entries)
        yield (len(dots) - 1) % most + 1 if dots else 0, part  # the whole part: only its last changes are new

    def _added(self, part: Part) -> list[int]:
        """The dots of the new entries of a part, in order."""
        return sorted(dot for dot in part.entries if dot > self.clock and dot not in self.cloud)

    def _removed(self, part: Part) -> list[int]:
        """The dots of the known entries that a part removes."""
        covered: Iterable[int] = part.cloud & self.entries.keys()
        if part.clock:
            covered = (dot for dot in self.entries if dot <= part.clock or dot in part.cloud)
        return [dot for dot in covered if dot not in part.entries]

    def _admit(self, dot: int, entry: Entry, changes: Changes) -> None:
        """Put a new entry in its place, unless a later entry of the same owner is there."""
        place = (entry.topic, entry.member, entry.key)
        present = self._places.get(place, 0)
        if present > dot:
            return
        if present:
            changes.leaves.append(self._drop(present))
        self.entries[dot] = entry
        self._places[place] = dot
        changes.joins.append(entry)

    def _drop(self, dot: int) -> Entry:
        entry = self.entries.pop(dot)
        del self._places[entry.topic, entry.member, entry.key]
        return entry

    def _compact(self) -> None:
        while self.clock + 1 in self.cloud:
            self.clock += 1
        self.cloud = {dot for dot in self.cloud if dot > self.clock}


class State:
    """The state of all replicas, as known to one. It reads no clock and does no I/O: its owner sends the deltas."""

    def __init__(self, me: ReplicaId) -> None:
        self.me: ReplicaId = me
        self.roster: Roster = Roster()
        self._own = Share()
        self._shares: dict[ReplicaId, Share] = {me: self._own}

    def rename(self, me: ReplicaId) -> Part:
        """Change the replica id: add the own entries again under the new id. Return them, for other replicas."""
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
        """Add an own entry, or replace its meta. Return the change, for other replicas."""
        entry = Entry(topic, member, key, meta)
        part = self._own.add(entry)
        self.roster.put(self.me, entry)
        return part

    def remove(self, topic: str, member: int, key: str) -> Part:
        """Remove an existing own entry. Return the change, for other replicas."""
        entry = self.find(topic, member, key)
        if entry is None:
            raise KeyError((topic, member, key))
        self.roster.take(self.me, entry)
        return self._own.remove((topic, member, key))

    # The entries of others.

    @property
    def replicas(self) -> frozenset[ReplicaId]:
        """The known replicas, including replicas that are down but not forgotten."""
        return frozenset(self._shares)

    @property
    def clock(self) -> Clock:
        """The clock of all known replicas, including replicas that are down."""
        return {replica: share.clock for replica, share in self._shares.items()}

    @property
    def advertised(self) -> Clock:
        """The clock for heartbeats: only of replicas that are up, because others may ask for their changes."""
        return {replica: share.clock for replica, share in self._shares.items() if share.online}

    def merge(self, delta: Delta) -> Changes:
        """Merge a delta of another replica. Own entries and unknown replicas in it are ignored.

        Entries of a replica that is down are stored, and become changes when it is up again.
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

    def cut(self, delta: Delta, most: int) -> Iterator[Delta]:
        """Cut a delta lazily into slices of at most `most` changes.

        Merging the slices in order has the effect of merging the delta. Between two slices, entries may be added and
        removed here, and replicas may go down, come up, and be forgotten: a slice is a delta like any other.
        """
        parts: dict[ReplicaId, Part] = {}
        changes = 0
        for replica, part in delta.items():
            share = self._shares.get(replica)
            if share is None or replica == self.me:
                continue
            for number, piece in share.cut(part, most):
                if parts and changes + number > most:
                    yield parts
                    parts, changes = {}, 0
                parts[replica] = piece
                changes += number
        if parts:
            yield parts

    def extract(self, since: Clock) -> Delta:
        """Return the full parts of the replicas for which a clock is behind."""
        return {
            replica: Part(share.clock, frozenset(share.cloud), dict(share.entries))
            for replica, share in self._shares.items()
            if share.online and share.clock > since.get(replica, 0)
        }

    def up(self, replica: ReplicaId) -> Changes:
        """Show the entries of a replica, including the entries stored before it went down."""
        share = self._shares.setdefault(replica, Share())
        if share.online:
            return Changes()
        share.online = True
        changes = Changes(joins=list(share.entries.values()))
        self._show(replica, changes)
        return changes

    def down(self, replica: ReplicaId) -> Changes:
        """Hide the entries of a replica, but keep them stored."""
        share = self._shares.get(replica)
        if share is None or not share.online:
            return Changes()
        share.online = False
        changes = Changes(leaves=list(share.entries.values()))
        self._show(replica, changes)
        return changes

    def forget(self, replica: ReplicaId) -> Changes:
        """Drop a replica and its entries."""
        changes = self.down(replica)
        self._shares.pop(replica, None)
        return changes

    def _show(self, replica: ReplicaId, changes: Changes) -> None:
        for entry in changes.leaves:
            self.roster.take(replica, entry)
        for entry in changes.joins:
            self.roster.put(replica, entry)
