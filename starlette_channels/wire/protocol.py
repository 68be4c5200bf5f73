"""The protocol of one client: decides the meaning of each message, without I/O, clock or await.

Source: the clauses of `handle_in` in Phoenix's `socket.ex`, in their order. On purpose different: a join does not block
the connection. Its topic is taken from the join until the end of its channel; messages in between belong to that
channel, and a second join of the topic waits for the end of the first.
"""

import math
import typing
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from msgspec import Struct

from starlette_channels.wire.messages import Message, Ref, same_ref


class HasJoinRef(typing.Protocol):
    """The channel of a taken topic."""

    @property
    def join_ref(self) -> Ref:
        """The `join_ref` exactly as in the join, null included."""
        ...


M = TypeVar("M", bound=HasJoinRef)
R = TypeVar("R")


class Join(Struct, Generic[M, R], frozen=True):
    """Start a channel, which replies to the join; the channel `replaces` must end first."""

    route: R
    message: Message
    replaces: M | None


class Push(Struct, Generic[M], frozen=True, gc=False):
    """Pass an event to its channel."""

    member: M
    message: Message


class Leave(Struct, Generic[M], frozen=True):
    """Pass a `phx_leave` to its channel, behind the events before it."""

    member: M
    message: Message


class Stale(Struct, frozen=True):
    """Drop a message of an earlier join of the topic, without an answer."""


class Refresh(Struct, frozen=True):
    """Refresh the client's identity: see `Expiry`."""


class Answer(Struct, frozen=True):
    """Answer at once. `code` names the client's mistake, if any; `seconds` is the time until a retry would succeed."""

    join_ref: Ref
    status: str
    reason: str = ""
    code: str = ""
    seconds: float | None = None

    @property
    def response(self) -> dict[str, str | float]:
        """The payload of the reply."""
        if self.seconds is None:
            return {"reason": self.reason}
        return {"reason": self.reason, "code": self.code, "retry_after": math.ceil(self.seconds * 1000) / 1000}


Decision: TypeAlias = Join[M, R] | Push[M] | Leave[M] | Stale | Refresh | Answer

OK = Answer(None, "ok")
UNMATCHED = Answer(None, "error", "unmatched topic", "unmatched_topic")
STALE = Stale()
REFRESH = Refresh()


class ClientProtocol(Generic[M, R]):
    """The taken topics of one client, and the decision about each of its messages.

    `match` returns the route of a topic, or `None`; `max_channels` limits the topics taken at a time.
    """

    __slots__ = ("_match", "_max_channels", "members")

    def __init__(self, match: Callable[[str], R | None], max_channels: int) -> None:
        self.members: dict[str, M] = {}
        """The taken topics, and their channels; the connection adds that of a `Join`."""
        self._match = match
        self._max_channels = max_channels

    def receive(self, message: Message) -> Decision[M, R]:
        """Decide about a message."""
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
        # Nearly always, both are the same string.
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

    def free(self, topic: str, member: object) -> None:
        """Unregister an ended channel, unless another one has taken its topic already."""
        if self.members.get(topic) is member:
            del self.members[topic]
