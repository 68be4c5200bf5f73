"""Contract of a transport with its connection; the package `transports` has the implementations."""

from typing import Protocol

import anyio

from starlette_channels.channels.backpressure import Place
from starlette_channels.pubsub.hub import Outlet, ShortCut, Writer
from starlette_channels.runtime.tasks import Tasks
from starlette_channels.wire.messages import OutgoingFrame


class Transport(Protocol):
    """The path from a connection to its client; no method waits."""

    @property
    def tasks(self) -> Tasks:
        """The tasks of this client."""
        ...

    @property
    def outlet(self) -> Outlet:
        """The short cut for broadcasts: it writes to several `writer`s at once, without a call of `write` for each.

        The transport calls `Connection.hold` to stop its use, for some time or for good.
        """
        ...

    @property
    def writer(self) -> Writer:
        """The key of this client in its outlet."""
        ...

    @property
    def shelf(self) -> ShortCut | None:
        """The short cut, during a hold, for broadcasts that must not be dropped; `None` if they go through `write`."""
        ...

    @property
    def heard(self) -> float:
        """The time when the client was last heard, by the event loop's clock."""
        ...

    def write(self, frame: OutgoingFrame, place: Place | None = None) -> None:
        """Queue a frame; frames are sent in order. After `close` it has no effect.

        A frame with a place may be dropped in favor of later frames, if the client reads slowly.
        """
        ...

    def close(self, code: int, reason: str = "") -> None:
        """Send the queued frames, then close. Only the first call has an effect."""
        ...

    def unfetched(self) -> anyio.Event | None:
        """Return an event that is set once the client has fetched all frames that a close would lose, or `None`."""
        ...

    def pause(self) -> None:
        """Stop reading until `resume`."""
        ...

    def resume(self) -> None:
        """Resume reading."""
        ...
