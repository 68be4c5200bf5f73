"""Deltas: the parts of the state that replicas send to each other, and the windows that keep them.

Source: `tracker/delta_generation.ex` of phoenix_pubsub.
"""

from collections.abc import Mapping, Sequence, Set
from typing import TypeAlias

from msgspec import Struct

from starlette_channels.presence.crdt.clock import ReplicaId


class Meta(Struct, frozen=True, array_like=True, gc=False):
    """The fields of one presence, encoded as JSON once, and their unique `phx_ref`."""

    ref: str
    json: str


class Entry(Struct, frozen=True, array_like=True, gc=False):
    """One presence: a key on a topic, tracked by a member (a socket) of a replica, and its meta."""

    topic: str
    member: int
    key: str
    meta: Meta


class Part(Struct, frozen=True, array_like=True):
    """The known changes of one replica. Each change has a number, its dot.

    A part covers the dots up to `clock`, and the dots in `cloud`. A covered dot with an entry is a presence. A covered
    dot without an entry is a removal, or an entry that was removed.
    """

    clock: int
    cloud: Set[int]
    entries: Mapping[int, Entry]


Delta: TypeAlias = Mapping[ReplicaId, Part]
"""The known changes of several replicas."""


class Window:
    """All changes of one replica since a dot, as one part."""

    __slots__ = ("_cloud", "_entries", "since")

    def __init__(self, since: int = 0) -> None:
        self.restart(since)

    def restart(self, since: int) -> None:
        """Drop all changes, and begin after a dot."""
        self.since: int = since
        self._cloud: set[int] = set()
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._cloud)

    def record(self, part: Part) -> None:
        """Add the next change."""
        for dot in part.cloud:
            self._entries.pop(dot, None)
        self._cloud |= part.cloud
        self._entries.update(part.entries)

    @property
    def part(self) -> Part:
        """The changes, as one part."""
        return Part(0, frozenset(self._cloud), dict(self._entries))


class Windows:
    """Windows of several lengths: a replica that missed few changes is sent few."""

    __slots__ = ("_windows",)

    def __init__(self, sizes: Sequence[int]) -> None:
        self._windows = [(size, Window()) for size in sorted(sizes)]

    def record(self, part: Part) -> None:
        """Add the next change to all windows. A full window is cleared, and starts after this change."""
        for size, window in self._windows:
            window.record(part)
            if len(window) > size:
                window.restart(max(part.cloud))

    def since(self, dot: int) -> Part | None:
        """Return all changes after a dot, from the shortest window that covers them; `None` if no window does."""
        return next((window.part for _, window in self._windows if window.since <= dot), None)
