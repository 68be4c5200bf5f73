"""Interests: the channels wanted by all event loops of this process, and the subscriptions confirmed by the engine."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from starlette_channels.pubsub.relay.channel_names import topic_channel

LINGER_SECONDS = 2.0
"""Delay of an unsubscribe at the engine, in seconds: a client that rejoins within it misses nothing."""


def _tell_nobody(_: Collection[str]) -> None:
    """Ignore confirmations."""


class Interests:
    """Reference counts of the wanted channels, and the subscriptions in force (confirmed by the engine). Thread-safe.

    `tell` is called when a channel becomes wanted or unwanted, `confirmed` with channels that come into force.
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
        """Whether the engine is connected, and all subscriptions of the time of the connect are in force."""

    def add(self, channel: str) -> None:
        """Add one to the count of a channel."""
        with self._lock:
            self._counts[channel] += 1
            first = self._counts[channel] == 1
            if first:
                self._changed.add(channel)
                self._since.setdefault(channel, self._clock())
        if first:
            self._tell()

    def remove(self, channel: str) -> None:
        """Subtract one from the count of a channel."""
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
        """Whether the engine delivers a wanted channel. Thread-safe, without a lock.

        Reliable only for a channel that the caller has added and not removed; it ends when the engine is disconnected.
        """
        return channel in self._in_force

    # For the thread of the relay.

    def take(self) -> tuple[Mapping[str, float], set[str]]:
        """Return the changes since the last call: channels now wanted, with the time since when, and unwanted ones."""
        with self._lock:
            changed, self._changed = self._changed, set()
            wanted = {channel: self._since[channel] for channel in changed if channel in self._counts}
        return wanted, changed - wanted.keys()

    def all(self) -> Mapping[str, float]:
        """Return all wanted channels, with the time since when, and discard the changes for `take`."""
        with self._lock:
            self._changed.clear()
            self._since = {channel: self._since[channel] for channel in self._counts}
            return dict(self._since)

    def begin(self, connection: object) -> None:
        """Begin a new connection to the engine: no subscription is in force yet."""
        with self._lock:
            self._connection, self._in_force, self.is_complete = connection, set(), False

    def confirm(self, connection: object, channels: Collection[str]) -> None:
        """Mark subscriptions as in force, and call `confirmed`; ignored if the connection is not the current one."""
        with self._lock:
            if connection is not self._connection:
                return
            self._in_force.update(channels)
        self._confirmed(channels)

    def complete(self, connection: object) -> None:
        """Set `is_complete`: all subscriptions of the time of the connect are in force."""
        with self._lock:
            self.is_complete = connection is self._connection

    def release(self, channels: Iterable[str]) -> set[str]:
        """Return the unwanted ones of these channels; their subscriptions are not in force any more.

        A later `add` of such a channel needs a new subscription.
        """
        with self._lock:
            unwanted = {channel for channel in channels if channel not in self._counts}
            self._in_force -= unwanted
            for channel in unwanted:
                self._since.pop(channel, None)
        return unwanted

    def lose(self, connection: object) -> None:
        """End a connection; ignored if it is not the current one.

        The session of a closed relay may end later than its successor connects.
        """
        with self._lock:
            if connection is self._connection:
                self._connection, self._in_force, self.is_complete = None, set(), False

    def start_anew(self) -> None:
        """Replace the lock after a fork, because another thread may have held it; no engine is connected yet."""
        self._lock = threading.Lock()
        self._connection, self._in_force, self.is_complete = None, set(), False


class TopicInterests:
    """The interests of hubs, by topic instead of channel."""

    def __init__(self, interests: Interests) -> None:
        self._interests = interests

    def add(self, topic: str) -> None:
        """Add a topic: it has its first subscriber in a hub."""
        self._interests.add(topic_channel(topic))

    def remove(self, topic: str) -> None:
        """Remove a topic: its last subscriber in a hub has gone."""
        self._interests.remove(topic_channel(topic))

    def is_in_force(self, topic: str) -> bool:
        """Whether the engine delivers the broadcasts of other processes on a topic with subscribers."""
        return self._interests.is_in_force(topic_channel(topic))
