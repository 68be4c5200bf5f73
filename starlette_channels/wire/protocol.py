"""What one client's messages mean, without I/O: no clock, no socket, no await.

Source: the clauses of `handle_in` in Phoenix's `socket.ex`, in their order. Where we differ on purpose: a join does
not block the connection. Its topic counts as taken from the join on until its channel has ended, what comes meanwhile
is the channel's, and a second join of the topic waits for the end of the first.
"""

import math
import typing
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from msgspec import Struct

from starlette_channels.wire.messages import Message, Ref, same_ref


class HasJoinRef(typing.Protocol):
    """What stands for a taken topic."""

    @property
    def join_ref(self) -> Ref:
        """The join_ref exactly as the join carried it, null included."""
        ...


M = TypeVar("M", bound=HasJoinRef)
R = TypeVar("R")


class Join(Struct, Generic[M, R], frozen=True):
    """Start a channel, which answers for itself; `replaces` is the one that must end first."""

    route: R
    message: Message
    replaces: M | None


class Push(Struct, Generic[M], frozen=True, gc=False):
    """Hand an event to its channel."""

    member: M
    message: Message


class Leave(Struct, Generic[M], frozen=True):
    """Hand the wish to leave to the channel, behind the events before it."""

    member: M
    message: Message


class Stale(Struct, frozen=True):
    """Drop it without an answer: it belongs to a join that is over."""


class Refresh(Struct, frozen=True):
    """Let the client say anew who it is."""


class Answer(Struct, frozen=True):
    """Answer at once. A `code` says that the client made a mistake, and which, and `seconds` when it would be none."""

    join_ref: Ref
    status: str
    reason: str = ""
    code: str = ""
    seconds: float | None = None

    @property
    def response(self) -> dict[str, str | float]:
        """What the client is told."""
        if self.seconds is None:
            return {"reason": self.reason}
        return {"reason": self.reason, "code": self.code, "retry_after": math.ceil(self.seconds * 1000) / 1000}


Decision: TypeAlias = Join[M, R] | Push[M] | Leave[M] | Stale | Refresh | Answer

OK = Answer(None, "ok")
UNMATCHED = Answer(None, "error", "unmatched topic", "unmatched_topic")
STALE = Stale()
REFRESH = Refresh()


class ClientProtocol(Generic[M, R]):
    """Which topics one client has taken, and what its next message means.

    `match` finds the route of a topic, or `None`; `max_channels` bounds the topics that can be taken at the same time.
    """

    __slots__ = ("_match", "_max_channels", "members")

    def __init__(self, match: Callable[[str], R | None], max_channels: int) -> None:
        self.members: dict[str, M] = {}
        self._match = match
        self._max_channels = max_channels

    def receive(self, message: Message) -> Decision[M, R]:
        """Decide what a message means."""
        topic, event = message.topic, message.event
        if topic == "phoenix":
            if event == "heartbeat":
                return OK
            if event == "refresh":
                return REFRESH
        member = self.members.get(topic) if type(topic) is str else None
        if event == "phx_join":
            return self._join(message, member)
        if member is None:
            return Answer(message.join_ref, "ok") if event == "phx_leave" else UNMATCHED
        join_ref, current = message.join_ref, member.join_ref
        # As good as always they are the same string.
        if not (join_ref is None or (type(join_ref) is str and join_ref == current) or same_ref(join_ref, current)):
            return STALE
        return Leave(member, message) if event == "phx_leave" else Push(member, message)

    def _join(self, message: Message, member: M | None) -> Decision[M, R]:
        route = self._match(message.topic) if isinstance(message.topic, str) else None
        if route is None:
            return UNMATCHED
        if member is None and len(self.members) >= self._max_channels:
            return Answer(message.join_ref, "error", "too many channels joined", "too_many_channels")
        return Join(route, message, member)

    def take(self, topic: str, member: M) -> None:
        """Note who stands for a topic from now on."""
        self.members[topic] = member

    def free(self, topic: str, member: object) -> None:
        """Note that a channel has ended, unless another one has taken its topic already."""
        if self.members.get(topic) is member:
            del self.members[topic]
