"""The states of a transport, from open to closed."""

from enum import Enum, auto


class TransportState(Enum):
    """The state of a transport; it only ever moves forward, and may skip states."""

    OPEN = auto()
    """Messages go both ways."""

    CLOSING = auto()
    """`close` was called: the queued frames are sent, then the close. Nothing more is read or queued."""

    ABORTING = auto()
    """The client does not read: the queued frames are dropped, and only the close is sent."""

    CLOSED = auto()
    """The close has been sent, or the client is gone."""
