"""Numbers for a health page or a test."""

from collections.abc import Mapping

from msgspec import Struct


class Statistics(Struct, frozen=True):
    """What a `Channels` holds now, and what has gone wrong so far."""

    connections: int
    """Open connections."""

    channels: int
    """Topics joined (or being joined), over all connections."""

    topics: int
    """Topics with at least one subscriber."""

    counts: Mapping[str, int]
    """How often each kind of mishap has happened, by its stable code; see the page on limits and errors."""
