"""What a member needs of its connection, and the answer that it can leave there for later."""

import sys
from typing import Any, Protocol
from weakref import WeakSet

import anyio

from starlette_channels.channels.backpressure import Place
from starlette_channels.channels.socket import LaterReply
from starlette_channels.channels.spawner import Spawner
from starlette_channels.observability.redaction import ParameterFilter
from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.hub import Hub, ShortCut
from starlette_channels.wire.messages import Frame, Message, Payload, Ref, Reply, encode_answer
from starlette_channels.wire.protocol import Answer
from starlette_channels.wire.serializers import Serializer

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override


class Write(Protocol):
    """Queues a frame for a client; with a place, the client may miss it if it is behind with reading."""

    def __call__(self, frame: Frame, place: Place | None = None) -> None:
        """Return at once."""
        ...


class Link(Spawner, Protocol):
    """What a member needs of its connection."""

    promises: "WeakSet[PromisedReply] | None"
    """The replies that are still to come."""

    @property
    def app(self) -> Any:
        """The application around the `Channels`, or `None`."""
        ...

    @property
    def assigns(self) -> Any:
        """What `connect` returned."""
        ...

    @property
    def broker(self) -> Broker:
        """Where broadcasts go."""
        ...

    @property
    def hub(self) -> Hub:
        """The subscriptions of this event loop."""
        ...

    @property
    def serializer(self) -> Serializer:
        """The client's wire."""
        ...

    @property
    def parameters(self) -> ParameterFilter:
        """How logs show what the client sends."""
        ...

    @property
    def socket_id(self) -> str | None:
        """What `disconnect` knows the client by."""
        ...

    @property
    def number(self) -> int:
        """What logs call the connection."""
        ...

    def short_cut(self, *, may_drop: bool) -> ShortCut | None:
        """Return the short cut for broadcasts to the client, while there is one.

        There is none to a client that is behind with reading for what may be dropped then.
        """
        ...

    @property
    def write(self) -> Write:
        """What queues a frame for the client."""
        ...

    def refuse(self, frame: Frame) -> None:
        """Send the answer to a refused join, in its time."""
        ...

    def answer(self, message: Message, answer: Answer) -> None:
        """Answer a message in the name of the connection."""
        ...

    def blame(self, message: Message, code: str) -> None:
        """Count and log a mistake of the client."""
        ...

    def free(self, topic: str, member: Any) -> None:
        """Note that a topic is free again, unless another member has taken it; the member goes on to end."""
        ...

    def forget(self, member: Any) -> None:
        """Note that a member has ended, its cleanups included."""
        ...

    def burden(self, message: Message) -> None:
        """Note that a message of the client has to wait, or its handler does."""
        ...

    def relieve(self, message: Message) -> None:
        """Note that a message that had to wait has been dealt with."""
        ...


def reply_frame(link: Link, join_ref: Ref, ref: Ref, topic: str, answer: object) -> Frame:
    """Encode what a handler returned for a client's wire."""
    status, body = encode_answer(answer)
    return link.serializer.reply(join_ref, ref, topic, status, body)


class PromisedReply(LaterReply):
    """The answer to one message, to be given whenever it is there; see `Socket.reply_later`."""

    __slots__ = ("_join_ref", "_link", "_ref", "_settled", "_topic")

    def __init__(self, link: Link, join_ref: Ref, message: Message | None) -> None:
        if message is None:
            raise RuntimeError("reply_later: no message is being handled; call it in an event handler")
        if message.ref is None:
            raise RuntimeError("reply_later: the message has no ref, so only a returned value can answer it")
        self._link = link
        self._join_ref = join_ref
        self._ref = message.ref
        self._topic = message.topic
        self._settled: anyio.Event | None = None
        link.hub.run(self._register)

    @override
    def __call__(self, answer: Payload | Reply | None = None) -> None:
        frame = reply_frame(self._link, self._join_ref, self._ref, self._topic, answer)
        self._link.hub.run(self._keep, frame)

    async def settled(self) -> None:
        """Wait until the answer has been given, or nobody waits for it any more."""
        if self in (self._link.promises or ()):
            self._settled = self._settled or anyio.Event()
            await self._settled.wait()

    def settle(self) -> None:
        """Let go on who waits for the answer."""
        if self._link.promises is not None:
            self._link.promises.discard(self)
        if self._settled is not None:
            self._settled.set()

    def _register(self) -> None:
        self._link.promises = self._link.promises or WeakSet()
        self._link.promises.add(self)

    def _keep(self, frame: Frame) -> None:
        self._link.write(frame)
        self.settle()
