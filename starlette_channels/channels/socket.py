"""What a handler sees of its client on its topic."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias

from starlette_channels.wire.messages import Body, Frame, Payload, Ref, Reply, shown
from starlette_channels.wire.serializers import Serializer

if sys.version_info >= (3, 13):
    from typing import TypeVar, TypeVarTuple
else:
    from typing_extensions import TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from starlette_channels.pubsub.broker import Broker

A = TypeVar("A", default=dict[str, Any])
Ts = TypeVarTuple("Ts")

EndReason: TypeAlias = Literal["left", "stopped", "kicked", "error", "duplicate_join", "closed", "draining", "shutdown"]
"""Why a channel ended: the client left, `socket.stop()`, `channels.kick(...)`, a handler raised, the client joined the
topic anew, the connection is gone, the server is about to stop and has asked the client to come back, or the channel
had no time left when the server stopped.
"""

End: TypeAlias = EndReason | Literal["refused"]
"""Why a channel ended, or that it was never joined: the join was refused."""

Cleanup: TypeAlias = Callable[[], Awaitable[None] | None]


class LaterReply(Protocol):
    """Answers one message, when the answer is there."""

    def __call__(self, answer: Payload | Reply | None = None) -> None:
        """Send the answer; a payload is the status `ok`, `None` is `ok` without anything.

        It may be called from any thread, and after the channel has ended; once the connection is gone it does
        nothing. Raises `SerializerError` if the client's wire cannot express the payload.
        """
        ...


class Socket(ABC, Generic[A]):
    """One client on one topic: what a handler reads, and what it can do.

    No method waits: what is sent is queued in order, and `push` after `broadcast` arrives after it. All methods may
    be called from any thread. Once the channel has ended they do nothing, except `broadcast`.
    """

    __slots__ = ()

    topic: str
    """The topic that the client joined, in full."""

    subtopic: str
    """What follows the fixed part of the pattern: "lobby" for `room:lobby` under `room:*`."""

    topic_params: Mapping[str, str]
    """The named segments of the topic: `{"room_id": "7"}` for `room:7` under `room:{room_id}`. They are text, whatever
    the join handler's annotations say."""

    assigns: A
    """What `connect` returned: a shallow copy for each join, so channels do not see each other's changes."""

    @property
    @abstractmethod
    def app(self) -> "Starlette":
        """The application that the `Channels` are mounted in: `socket.app.state.db`."""

    @abstractmethod
    async def admit(self) -> bool:
        """Subscribe the client now, in the join handler: await it after the checks, and before you read the state that
        the join answers. Then nothing is missed between the state and the first event::

            @channel("list:{list_id}")
            async def listing(socket: Socket, payload: dict, list_id: str) -> dict:
                if not await may_read(socket.assigns, list_id):
                    raise JoinError("unauthorized")
                await socket.admit()
                return {"items": await read_items(list_id)}

        What is broadcast from here on is held, and follows the ok reply, in order with what is pushed. If the join is
        refused after all, or crashes, it is dropped. It may be in the state as well, so let events carry what tells the
        client that it has them. The client's own `socket.broadcast` reaches it, too; `broadcast_from` does not.

        With an engine between processes it returns when the subscription is in force there, and those that
        `socket.subscribe` has made. That takes a round trip for a topic that is new in this process, nothing for
        others, and two seconds at most; then the join goes on, `relay_subscribe_timeout` is counted, and the channel's
        handler of `Gap` is called as soon as the engine delivers the topic. A second call changes nothing.

        At most `Limits.outbox_bytes` of payloads are held; beyond them the join is refused with `join overflow`.
        Returns `False`; `True` will mean that all follows which the client has missed while it was away.
        Raises `RuntimeError` outside of a join handler.
        """

    @abstractmethod
    def push(self, event: str, payload: Payload) -> None:
        """Send an event to this client only.

        In a join handler it is held until the ok reply has gone, and dropped if the join is refused. Raises
        `TypeError` or `SerializerError` if the payload cannot be sent, and `ValueError` for the events that are the
        protocol's or Presence's own: those that begin with `phx_` or `chan_reply_`, `presence_state`, `presence_diff`.
        A handler that intercepts a `presence_diff` may push it.
        """

    @abstractmethod
    def broadcast(self, event: str, payload: Payload) -> None:
        """Send an event to everyone on this topic, this client included.

        The payload is encoded once, whatever the number of clients. Channels that intercept the event get it through
        their handler instead. In a join handler it does not reach the joining client, which is
        not subscribed yet, unless `admit` has been awaited. Raises what `push` raises.
        """

    @abstractmethod
    def broadcast_from(self, event: str, payload: Payload) -> None:
        """Send an event to everyone on this topic but this channel; the user's other connections do get it."""

    @abstractmethod
    def reply_later(self) -> LaterReply:
        """Promise an answer to the message that is being handled, and return what gives it; the handler then returns
        `None`.

        Raises `RuntimeError` outside an event handler, and for a message without ref, which cannot be answered later.
        """

    @abstractmethod
    def send_info(self, message: object) -> None:
        """Put a message of your own behind what waits for this channel; `@channel.info(type)` handles it."""

    @abstractmethod
    def start_soon(self, function: Callable[[*Ts], Coroutine[Any, Any, Any]], *args: *Ts) -> None:
        """Run an async function beside the handlers, until it returns or the channel ends.

        If it raises, the channel ends as if a handler had raised.
        """

    @abstractmethod
    def subscribe(self, topic: str) -> None:
        """Let `@channel.info(Broadcast)` have the broadcasts of another topic too. Two subscriptions deliver twice."""

    @abstractmethod
    def unsubscribe(self, topic: str) -> None:
        """End all subscriptions to a topic that `subscribe` made."""

    @abstractmethod
    def on_close(self, function: Cleanup) -> None:
        """Call a function, plain or async, when the channel has ended, after `terminate`; the last one given comes
        first.

        It is called for a refused join as well, and at once if the channel has ended already.
        """

    @abstractmethod
    def stop(self) -> None:
        """End this channel in good order, after the running handler: the client gets `phx_close` and stays away."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {shown(self.topic)}>"


class SharedPush:
    """An event for one or several clients. Those of one wire and one `join_ref` get the same frame, encoded once."""

    __slots__ = ("_frame", "_key", "body", "event")

    def __init__(self, event: str, body: Body) -> None:
        self.event: str = event
        self.body: Body = body
        self._key: tuple[Serializer, str, str] | None = None
        self._frame: Frame = ""

    def frame(self, serializer: Serializer, join_ref: Ref, topic: str) -> Frame:
        """Return the frame for a client. The last one is kept."""
        key = (serializer, join_ref, topic) if type(join_ref) is str else None
        if key is None or key != self._key:
            self._frame = serializer.push(join_ref, None, topic, self.event, self.body)
            self._key = key
        return self._frame


class InternalSocket(Socket[A]):
    """A socket as the library's own parts see it, presence above all. Every socket that a handler is given is one."""

    __slots__ = ()

    end_reason: End | None
    """Why the channel ends or has ended, as `terminate` is told, or "refused"; `None` as long as that is open."""

    @property
    @abstractmethod
    def broker(self) -> "Broker":
        """Where its broadcasts go."""

    @abstractmethod
    def push_internal(self, push: SharedPush) -> None:
        """Send an event to this client, as `push` does; its name may be one that is reserved for the library.

        May be called from any thread.
        """

    @abstractmethod
    def run_in_order(self, function: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
        """Call a function, or run the coroutine that it returns, behind what waits for this channel.

        May be called from any thread. It is not called if the channel ends before.
        """
