"""Which channels this process wants to hear, in all its event loops together."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from starlette_channels.brokers.names import topic_channel

LINGER_SECONDS = 2.0
"""How long a channel is still heard after its last subscriber has gone: most come back, and miss nothing then."""


class Interests:
    """Counts who wants a channel, from any thread, and tells when that has changed."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._changed: set[str] = set()
        self._since: dict[str, float] = {}
        self._tell = tell

    def add(self, channel: str) -> None:
        """Note that somebody wants a channel."""
        with self._lock:
            self._counts[channel] += 1
            first = self._counts[channel] == 1
            if first:
                self._changed.add(channel)
                self._since[channel] = time.monotonic()
        if first:
            self._tell()

    def remove(self, channel: str) -> None:
        """Note that somebody does so no longer."""
        with self._lock:
            self._counts[channel] -= 1
            last = self._counts[channel] == 0
            if last:
                del self._counts[channel], self._since[channel]
                self._changed.add(channel)
        if last:
            self._tell()

    def take(self) -> tuple[Mapping[str, float], set[str]]:
        """Return what has changed since the last time: the channels that are wanted now, with the time since when, and
        those that are not.
        """
        with self._lock:
            changed, self._changed = self._changed, set()
            wanted = {channel: self._since[channel] for channel in changed if channel in self._counts}
        return wanted, changed - wanted.keys()

    def all(self) -> Mapping[str, float]:
        """Return all that is wanted, with the time since when; what has changed so far counts as told."""
        with self._lock:
            self._changed.clear()
            return dict(self._since)

    def start_anew(self) -> None:
        """Begin with a new lock, after a fork: somebody may have held the old one."""
        self._lock = threading.Lock()


class TopicInterests:
    """What a hub tells of its topics."""

    def __init__(self, interests: Interests) -> None:
        self._interests = interests

    def add(self, topic: str) -> None:
        """Take note of a topic's first subscriber."""
        self._interests.add(topic_channel(topic))

    def remove(self, topic: str) -> None:
        """Take note that a topic has none any more."""
        self._interests.remove(topic_channel(topic))
