"""What a connection needs of its transport, whichever that is; see the package `transports`."""

from typing import Protocol

import anyio

from starlette_channels.channels.backpressure import Place
from starlette_channels.pubsub.hub import Outlet, ShortCut, Writer
from starlette_channels.runtime.tasks import Tasks
from starlette_channels.wire.messages import OutgoingFrame


class Transport(Protocol):
    """How a connection reaches its client; no method waits."""

    @property
    def tasks(self) -> Tasks:
        """Where what is done for this client runs."""
        ...

    @property
    def outlet(self) -> Outlet:
        """The short cut for broadcasts: what goes to the `writer` is as good as written.

        The transport says with `Connection.hold` that it must not be used any more, for now or ever.
        """
        ...

    @property
    def writer(self) -> Writer:
        """What the outlet knows this client by."""
        ...

    @property
    def shelf(self) -> ShortCut | None:
        """The short cut for broadcasts on hold that must not be dropped; `None` if they take the long way."""
        ...

    @property
    def heard(self) -> float:
        """When the client was last heard, by the event loop's clock."""
        ...

    def write(self, frame: OutgoingFrame, place: Place | None = None) -> None:
        """Queue a frame; frames leave in order. After `close` it does nothing.

        A frame with a place may be dropped for the sake of later ones, if the client is behind with reading.
        """
        ...

    def close(self, code: int, reason: str = "") -> None:
        """Send what is queued, then close. The first call decides."""
        ...

    def unfetched(self) -> anyio.Event | None:
        """What is set when the client has fetched what a close would lose; `None` if that is nothing."""
        ...

    def pause(self) -> None:
        """Read nothing more until `resume`."""
        ...

    def resume(self) -> None:
        """Read again."""
        ...
