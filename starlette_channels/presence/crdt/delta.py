"""What replicas tell each other of the state: parts of it, for as long a time as is needed and no longer.

Source: `tracker/delta_generation.ex` of phoenix_pubsub.
"""

from collections.abc import Mapping, Sequence, Set
from typing import TypeAlias

from msgspec import Struct

from starlette_channels.presence.crdt.clock import ReplicaId


class Meta(Struct, frozen=True, array_like=True):
    """The fields of one presence, encoded once, with a `phx_ref` that no other has."""

    ref: str
    json: str


class Entry(Struct, frozen=True, array_like=True):
    """One presence: somebody's key on a topic, and what is told of it."""

    topic: str
    member: int
    key: str
    meta: Meta


class Part(Struct, frozen=True, array_like=True):
    """What is known of one replica's changes, each of which has a number, its dot.

    It speaks of the dots up to `clock`, and of those in `cloud`. An entry is there if it stands under its dot; a dot
    spoken of without an entry is a removal, or an entry that is gone.
    """

    clock: int
    cloud: Set[int]
    entries: Mapping[int, Entry]


Delta: TypeAlias = Mapping[ReplicaId, Part]
"""What is known of several replicas."""


class Window:
    """All changes of one replica since a dot, in one part."""

    __slots__ = ("_cloud", "_entries", "since")

    def __init__(self, since: int = 0) -> None:
        self.restart(since)

    def restart(self, since: int) -> None:
        """Forget all that was before a dot, and the dot itself."""
        self.since: int = since
        self._cloud: set[int] = set()
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._cloud)

    def record(self, part: Part) -> None:
        """Add a change that follows those that are here."""
        for dot in part.cloud:
            self._entries.pop(dot, None)
        self._cloud |= part.cloud
        self._entries.update(part.entries)

    @property
    def part(self) -> Part:
        """What has changed."""
        return Part(0, frozenset(self._cloud), dict(self._entries))


class Windows:
    """Windows of different lengths, so that nobody who missed little has to be told everything."""

    __slots__ = ("_windows",)

    def __init__(self, sizes: Sequence[int]) -> None:
        self._windows = [(size, Window()) for size in sorted(sizes)]

    def record(self, part: Part) -> None:
        """Add a change to all; a window that is full begins anew."""
        for size, window in self._windows:
            window.record(part)
            if len(window) > size:
                window.restart(max(part.cloud))

    def since(self, dot: int) -> Part | None:
        """Return all changes after a dot, and no more than need be; `None` if that is too long ago."""
        return next((window.part for _, window in self._windows if window.since <= dot), None)
