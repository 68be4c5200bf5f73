"""Engine: the contract between a relay and a connection to a server, or a mesh, that passes bytes between processes.

An engine does not reconnect, queue or number: the relay does, and makes a new engine when one is broken.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol, TypeAlias

Deliver: TypeAlias = Callable[[Sequence[bytes]], None]
"""Takes the messages of one read in order, at least one; must not block or raise."""

Broken: TypeAlias = Callable[[Exception], None]
"""Takes the error of a broken connection."""


class Parcel(NamedTuple):
    """Bytes for all processes that are subscribed to a channel."""

    channel: str
    """Any text; the engine maps it to a name that is safe on its wire."""

    data: bytes


class Engine(Protocol):
    """One connection. Its methods are called in the relay's asyncio event loop, one at a time.

    Each may raise any exception; after one, or after a timeout, the relay closes this engine and makes another. The
    messages of one engine arrive in order or not at all. An engine may receive its own messages.
    """

    max_bytes: int
    """Size limit of a parcel, in bytes, known after `start`; the relay does not publish larger ones."""

    async def start(self, deliver: Deliver, broken: Broken) -> None:
        """Connect. From then on `deliver` is called with received messages, and `broken` when the connection is
        found broken outside of a method; later calls of `broken` are ignored.
        """
        ...

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Publish parcels; returns when the server has accepted them. If it raises, all are published again."""
        ...

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to channels; returns when the subscriptions are confirmed: messages that others publish
        after that are received.

        Redis confirms each channel (in a cluster, the node that has it). NATS answers a PING that follows. A Zenoh
        router answers a query that follows on the same link; of several routers, only the one of this
        process. With `zenoh://` each of the other processes answers such a query; one that does not within
        `zenoh.PEER_SECONDS` is skipped. The relay subscribes to `session.SUBSCRIBE_BATCH` channels at
        once, at most.
        """
        ...

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Unsubscribe from channels; messages on their way may still be delivered."""
        ...

    async def close(self) -> None:
        """Close the connection in any state, even before `start`."""
        ...


MakeEngine: TypeAlias = Callable[[], Engine]
"""Makes an engine, without connecting."""
