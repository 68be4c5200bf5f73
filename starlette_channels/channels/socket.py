"""Socket: the interface of handlers to one client on one topic."""

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
"""The reason why a channel ended: the client left, `socket.stop()`, `channels.kick(...)`, a handler raised, the client
joined the topic again, the connection ended, the server is about to stop and has asked the client to reconnect, or the
channel had no time left when the server stopped.
"""

End: TypeAlias = EndReason | Literal["refused"]
"""The end reason of a channel; "refused" if its join was refused."""

Cleanup: TypeAlias = Callable[[], Awaitable[None] | None]


class LaterReply(Protocol):
    """Function that answers one message, at any later time."""

    def __call__(self, answer: Payload | Reply | None = None) -> None:
        """Send the answer; a payload is the status `ok`, `None` is `ok` without anything.

        It may be called from any thread, and after the channel has ended; after the connection has ended it has no
        effect. Raises `SerializerError` if the client's wire format cannot express the payload.
        """
        ...


class Socket(ABC, Generic[A]):
    """One client on one topic: the interface of handlers to it.

    No method except `admit` waits: messages are queued in order, and `push` after `broadcast` arrives after it. All
    methods except `admit` may be called from any thread. After the channel has ended, only `broadcast` has an effect.
    """

    __slots__ = ()

    topic: str
    """The topic that the client joined, in full."""

    subtopic: str
    """The part of the topic after the fixed part of the pattern: "lobby" for `room:lobby` under `room:*`."""

    topic_params: Mapping[str, str]
    """The named segments of the topic: `{"room_id": "7"}` for `room:7` under `room:{room_id}`. They are always
    text: annotations of the join handler do not apply."""

    assigns: A
    """The return value of `connect`: a shallow copy for each join, so changes stay within one channel."""

    @property
    @abstractmethod
    def app(self) -> "Starlette":
        """The application that the `Channels` are mounted in: `socket.app.state.db`."""

    @abstractmethod
    async def admit(self) -> bool:
        """Subscribe the client now, in the join handler: await it after the checks, and before reading the state for
        the join reply. Then no event is missed between the state and the first event::

            @channel("list:{list_id}")
            async def listing(socket: Socket, payload: dict, list_id: str) -> dict:
                if not await may_read(socket.assigns, list_id):
                    raise JoinError("unauthorized")
                await socket.admit()
                return {"items": await read_items(list_id)}

        Later broadcasts are held, and sent after the ok reply, in order with pushes. If the join is refused or crashes,
        they are dropped. An event may be part of the state as well, so give events an id or a version by which the
        client recognizes them. The client's own `socket.broadcast` reaches it, too; `broadcast_from` does not.

        With an engine between processes it returns when the engine has confirmed the subscription, and those made by
        `socket.subscribe`. That takes a round trip for a topic that is new in this process, no time for others, and
        at most two seconds; after these the join continues, `relay_subscribe_timeout` is counted, and the channel's
        handler of `Gap` is called as soon as the engine delivers the topic. A second call has no effect.

        At most `Limits.outbox_bytes` of payloads are held; above that the join is refused with `join overflow`.
        Returns `False`; `True` is reserved for a later version: all events missed while the client was away follow.
        Raises `RuntimeError` outside of a join handler.
        """

    @abstractmethod
    def push(self, event: str, payload: Payload) -> None:
        """Send an event to this client only.

        In a join handler it is held until the ok reply is sent, and dropped if the join is refused. Raises `TypeError`
        or `SerializerError` if the payload cannot be sent, and `ValueError` for reserved events: names that begin with
        `phx_` or `chan_reply_`, `presence_state`, `presence_diff`. A handler that intercepts a `presence_diff` may push
        it.
        """

    @abstractmethod
    def broadcast(self, event: str, payload: Payload) -> None:
        """Send an event to everyone on this topic, this client included.

        The payload is encoded once for all clients. Channels that intercept the event get it through their handler
        instead. In a join handler it does not reach the joining client, which is not subscribed yet, unless `admit` has
        been awaited. Raises the errors of `push`.
        """

    @abstractmethod
    def broadcast_from(self, event: str, payload: Payload) -> None:
        """Send an event to everyone on this topic except this channel; the user's other connections get it."""

    @abstractmethod
    def reply_later(self) -> LaterReply:
        """Promise an answer to the current message, and return the function that sends it. The handler must then
        return `None`.

        Raises `RuntimeError` outside an event handler, and for a message without ref, which cannot be answered later.
        """

    @abstractmethod
    def send_info(self, message: object) -> None:
        """Append a message of the application to the channel's mailbox; `@channel.info(type)` handles it."""

    @abstractmethod
    def start_soon(self, function: Callable[[*Ts], Coroutine[Any, Any, Any]], *args: *Ts) -> None:
        """Run an async function beside the handlers, until it returns or the channel ends.

        If it raises, the channel ends as if a handler had raised.
        """

    @abstractmethod
    def subscribe(self, topic: str) -> None:
        """Subscribe `@channel.info(Broadcast)` to another topic as well. Two subscriptions deliver twice."""

    @abstractmethod
    def unsubscribe(self, topic: str) -> None:
        """End all subscriptions to a topic made by `subscribe`."""

    @abstractmethod
    def on_close(self, function: Cleanup) -> None:
        """Register a function, plain or async, to call when the channel has ended, after `terminate`. The last one
        registered is called first.

        It is called for a refused join as well, and at once if the channel has ended already.
        """

    @abstractmethod
    def stop(self) -> None:
        """End this channel in good order after the running handler: the client gets `phx_close` and does not rejoin."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {shown(self.topic)}>"


class SharedPush:
    """An event for one or several clients. Clients with the same wire format and `join_ref` share one encoded frame."""

    __slots__ = ("_frame", "_key", "body", "event")

    def __init__(self, event: str, body: Body) -> None:
        self.event: str = event
        self.body: Body = body
        self._key: tuple[Serializer, str, str] | None = None
        self._frame: Frame = ""

    def frame(self, serializer: Serializer, join_ref: Ref, topic: str) -> Frame:
        """Return the frame for a client. The last frame is cached."""
        key = (serializer, join_ref, topic) if type(join_ref) is str else None
        if key is None or key != self._key:
            self._frame = serializer.push(join_ref, None, topic, self.event, self.body)
            self._key = key
        return self._frame


class InternalSocket(Socket[A]):
    """The interface of a socket to other parts of the library, mainly presence. All sockets of handlers have it."""

    __slots__ = ()

    end_reason: End | None
    """The end reason of the channel, as passed to `terminate`, or "refused"; `None` while it is open."""

    @property
    @abstractmethod
    def broker(self) -> "Broker":
        """The broker of its broadcasts."""

    @abstractmethod
    def push_internal(self, push: SharedPush) -> None:
        """Send an event to this client, like `push`; reserved event names are allowed.

        May be called from any thread.
        """

    @abstractmethod
    def run_in_order(self, function: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
        """Append a function call to the channel's mailbox; a coroutine that it returns is awaited.

        May be called from any thread. The function is not called if the channel ends before.
        """
