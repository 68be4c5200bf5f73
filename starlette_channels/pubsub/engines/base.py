"""What a relay needs of an engine. An engine is one connection, to whatever passes bytes on between processes.

It does not connect anew, queue or count: a relay does that for all of them, and makes a new engine when one is broken.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol, TypeAlias

Deliver: TypeAlias = Callable[[Sequence[bytes]], None]
"""Takes the messages of one read, in order, at least one; it returns at once, and never raises."""

Broken: TypeAlias = Callable[[Exception], None]
"""Takes the news that a connection is of no use any more."""


class Parcel(NamedTuple):
    """What goes to all processes that have subscribed to a channel."""

    channel: str
    """Any text: an engine turns it into a name that is safe on its wire."""

    data: bytes


class Engine(Protocol):
    """One connection. All methods belong to the relay's event loop, which is asyncio's, and are called one at a time.

    Each may raise anything, and so may take its time: the relay then closes this engine and makes another. What one
    engine publishes arrives in that order, or not at all. What it has published itself may come back to it.
    """

    max_bytes: int
    """The largest parcel that it takes, once it has started; the relay does not give it larger ones."""

    async def start(self, deliver: Deliver, broken: Broken) -> None:
        """Connect. From now on `deliver` is called with what comes, and `broken` if the end is noticed
        while nobody waits for it; calls after the first mean nothing.
        """
        ...

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Return when the engine has taken all of them; if it raises, all of them will be published again."""
        ...

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to what others publish on channels, and return when that is in force at the engine: what others
        publish from then on comes here.

        Redis confirms each channel (in a cluster, the node that has it). NATS answers a PING that follows. A Zenoh
        router answers a query that follows on the same link; of several routers, only the one that this process is
        connected to. With `zenoh://` each of the other processes answers such a query; one that does not for
        `zenoh.PEER_SECONDS` hangs or has died, and is not waited for any longer. The relay gives at most
        `life.SUBSCRIBE_BATCH` channels at once.
        """
        ...

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Want no more of channels; what is on its way may still come."""
        ...

    async def close(self) -> None:
        """Let go of the connection, whatever its state; `start` may not even have been called."""
        ...


MakeEngine: TypeAlias = Callable[[], Engine]
"""Makes the next engine of a relay; it must not connect yet."""
