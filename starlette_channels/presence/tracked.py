"""What is tracked of a socket, and what presence wants to know of it."""

from typing import Any, Protocol, cast

from starlette_channels.channels.socket import Socket
from starlette_channels.pubsub.broker import Broker

INTENDED = frozenset({"left", "stopped", "refused"})
"""The ends of a channel that somebody wanted: nobody is expected back at once."""


class Behind(Protocol):
    """What there is behind a socket, beside what handlers see."""

    @property
    def broker(self) -> Broker:
        """Where its broadcasts go."""
        ...

    @property
    def end_reason(self) -> str | None:
        """Why its channel ends or has ended, once that is certain."""
        ...

    def push_state(self, payload: object) -> None:
        """Send `presence_state` to its client."""
        ...


def behind(socket: Socket[Any]) -> Behind:
    """Return what is behind a socket."""
    return cast("Behind", socket)


class Tracked:
    """What one socket tracks."""

    __slots__ = ("keys", "member", "socket")

    def __init__(self, socket: Socket[Any], member: int) -> None:
        self.socket: Socket[Any] = socket
        self.member: int = member
        self.keys: set[str] = set()

    @property
    def topic(self) -> str:
        """Where it is."""
        return self.socket.topic

    @property
    def broker(self) -> Broker:
        """Whose subscribers are told."""
        return behind(self.socket).broker
