"""Statistics for health pages and tests."""

from collections.abc import Mapping

from msgspec import Struct


class Statistics(Struct, frozen=True):
    """Current numbers of a `Channels`, and error counts since its start."""

    connections: int
    """Open connections."""

    channels: int
    """Joined channels, including those being joined, over all connections."""

    topics: int
    """Topics with at least one subscriber."""

    counts: Mapping[str, int]
    """Number of errors and refusals by their stable code; see the page on limits and errors."""
