"""Zenoh keys: the key expressions of channels, and the subscribers of a session."""

# pyright: reportUnknownMemberType=false
# The library's own annotations are incomplete.

import hashlib
from collections.abc import Callable, Iterable

import zenoh

from starlette_channels.pubsub.relay.channel_names import as_bytes, as_token

MAX_ALONE = 1_000
"""Maximal number of channels with a subscriber of their own; see `Subscribers`."""

GROUPS = 64
"""Number of groups for all other channels."""


def key_of(prefix: str, channel: str) -> str:
    """Return the key of a channel: the prefix, the group of the channel, and a name that is safe in a key."""
    digest = hashlib.blake2b(as_bytes(channel), digest_size=1).digest()
    return f"{prefix}/{digest[0] % GROUPS:02x}/{as_token(channel)}"


class Subscribers:
    """The subscribers of one session. All methods are called in one thread.

    A new subscriber costs more time the more a session has: 0.4 ms after 500, 5 ms after 5,000. So the first
    `MAX_ALONE` channels have one each, and the others share one for their group of keys; messages of unwanted channels
    in the group are discarded here. Groups are few, because each message is compared with all of them.
    """

    def __init__(self, session: zenoh.Session, prefix: str, take: Callable[[bytes], None]) -> None:
        self._session, self._prefix, self._take = session, prefix, take
        self._alone: dict[str, zenoh.Subscriber[None]] = {}
        self._groups: dict[str, tuple[zenoh.Subscriber[None], set[str]]] = {}
        self._keys_in_groups: set[str] = set()

    def add(self, channels: Iterable[str]) -> None:
        """Declare the subscribers for channels."""
        for channel in channels:
            key = key_of(self._prefix, channel)
            if len(self._alone) < MAX_ALONE:
                self._alone[key] = self._session.declare_subscriber(key, self._take_from_one)
                continue
            group = key.rpartition("/")[0]
            self._keys_in_groups.add(key)
            if group not in self._groups:
                subscriber = self._session.declare_subscriber(f"{group}/*", self._take_from_group)
                self._groups[group] = subscriber, set()
            self._groups[group][1].add(key)

    def remove(self, channels: Iterable[str]) -> None:
        """Undeclare the subscribers of channels that are not needed any more."""
        for channel in channels:
            key = key_of(self._prefix, channel)
            if key in self._alone:
                self._alone.pop(key).undeclare()
                continue
            group = key.rpartition("/")[0]
            self._keys_in_groups.discard(key)
            subscriber, keys = self._groups[group]
            keys.discard(key)
            if not keys:
                del self._groups[group]
                subscriber.undeclare()

    # In the threads of Zenoh.

    def _take_from_one(self, sample: zenoh.Sample) -> None:
        self._take(sample.payload.to_bytes())

    def _take_from_group(self, sample: zenoh.Sample) -> None:
        if str(sample.key_expr) in self._keys_in_groups:
            self._take(sample.payload.to_bytes())
