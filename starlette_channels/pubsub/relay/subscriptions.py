"""Which channels this process wants to hear, in all its event loops together, and which of them the engine delivers."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from starlette_channels.pubsub.relay.channel_names import topic_channel

LINGER_SECONDS = 2.0
"""How long a channel is still heard after its last subscriber has gone: most come back, and miss nothing then."""


def _tell_nobody(_: Collection[str]) -> None:
    """Nobody waits for a subscription."""


class Interests:
    """Counts who wants a channel, from any thread, tells when that has changed, and notes which subscriptions are in
    force at the engine.
    """

    def __init__(
        self,
        tell: Callable[[], None],
        confirmed: Callable[[Collection[str]], None] = _tell_nobody,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._changed: set[str] = set()
        self._since: dict[str, float] = {}
        self._in_force: set[str] = set()
        self._connection: object = None
        self._tell, self._confirmed, self._clock = tell, confirmed, clock
        self.is_complete: bool = False
        """Whether everything that was wanted when the engine was connected to is in force, and it still is there."""

    def add(self, channel: str) -> None:
        """Note that somebody wants a channel."""
        with self._lock:
            self._counts[channel] += 1
            first = self._counts[channel] == 1
            if first:
                self._changed.add(channel)
                self._since.setdefault(channel, self._clock())
        if first:
            self._tell()

    def remove(self, channel: str) -> None:
        """Note that somebody does so no longer."""
        with self._lock:
            self._counts[channel] -= 1
            last = self._counts[channel] == 0
            if last:
                del self._counts[channel]
                self._changed.add(channel)
                if channel not in self._in_force:
                    self._since.pop(channel, None)
        if last:
            self._tell()

    def is_in_force(self, channel: str) -> bool:
        """Whether the engine delivers a channel that is wanted; from any thread, without a lock.

        What it says holds for a channel that somebody has added and not removed, until the engine is away.
        """
        return channel in self._in_force

    # What the relay calls, in its thread.

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
            self._since = {channel: self._since[channel] for channel in self._counts}
            return dict(self._since)

    def begin(self, connection: object) -> None:
        """Note that there is a new connection to the engine, on which nothing is in force yet."""
        with self._lock:
            self._connection, self._in_force, self.is_complete = connection, set(), False

    def confirm(self, connection: object, channels: Collection[str]) -> None:
        """Note that the subscriptions to channels are in force, and tell who waits for that."""
        with self._lock:
            if connection is not self._connection:
                return
            self._in_force.update(channels)
        self._confirmed(channels)

    def complete(self, connection: object) -> None:
        """Note that everything is in force that was wanted when the connection began."""
        with self._lock:
            self.is_complete = connection is self._connection

    def release(self, channels: Iterable[str]) -> set[str]:
        """Return those of the channels that nobody wants; from now on they are not in force.

        Whoever wants one after that waits for a new subscription.
        """
        with self._lock:
            unwanted = {channel for channel in channels if channel not in self._counts}
            self._in_force -= unwanted
            for channel in unwanted:
                self._since.pop(channel, None)
        return unwanted

    def lose(self, connection: object) -> None:
        """Note that a connection is of no use any more, unless it has a successor.

        A relay that was closed may take longer to end than the next one to connect.
        """
        with self._lock:
            if connection is self._connection:
                self._connection, self._in_force, self.is_complete = None, set(), False

    def start_anew(self) -> None:
        """Begin with a new lock, after a fork: somebody may have held the old one."""
        self._lock = threading.Lock()
        self._connection, self._in_force, self.is_complete = None, set(), False


class TopicInterests:
    """What a hub tells of its topics, and may ask."""

    def __init__(self, interests: Interests) -> None:
        self._interests = interests

    def add(self, topic: str) -> None:
        """Take note of a topic's first subscriber."""
        self._interests.add(topic_channel(topic))

    def remove(self, topic: str) -> None:
        """Take note that a topic has none any more."""
        self._interests.remove(topic_channel(topic))

    def is_in_force(self, topic: str) -> bool:
        """Whether broadcasts of other processes on a topic that has a subscriber are delivered."""
        return self._interests.is_in_force(topic_channel(topic))
