"""Where a transport is between open and closed."""

from enum import Enum, auto


class TransportState(Enum):
    """The state of a transport; it only ever moves forward, and may skip states."""

    OPEN = auto()
    """Messages go both ways."""

    CLOSING = auto()
    """`close` was called: nothing more is read or queued; what is queued is sent first, then the close."""

    ABORTING = auto()
    """The client does not read: what was queued is dropped, and only the close is still sent."""

    CLOSED = auto()
    """It is over: the close has been sent, or the client is gone."""
