"""Promised reply: promised by a handler with `Socket.reply_later`, and given at any later time."""

import sys
from weakref import WeakSet

import anyio

from starlette_channels.channels.client import ChannelClient
from starlette_channels.channels.socket import LaterReply
from starlette_channels.wire.messages import Message, OutgoingFrame, Payload, Ref, Reply, encode_answer

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override


class PromisedReply(LaterReply):
    """The reply to one message; see `Socket.reply_later`."""

    __slots__ = ("_client", "_given", "_join_ref", "_ref", "_topic")

    def __init__(self, client: ChannelClient, join_ref: Ref, message: Message | None) -> None:
        if message is None:
            raise RuntimeError("reply_later: no message is being handled; call it in an event handler")
        if message.ref is None:
            raise RuntimeError("reply_later: the message has no ref, so only a returned value can answer it")
        self._client = client
        self._join_ref = join_ref
        self._ref = message.ref
        self._topic = message.topic
        self._given: anyio.Event | None = None
        client.hub.run(self._register)

    @override
    def __call__(self, answer: Payload | Reply | None = None) -> None:
        status, body = encode_answer(answer)
        frame = self._client.serializer.reply(self._join_ref, self._ref, self._topic, status, body)
        self._client.hub.run(self._send, frame)

    async def given(self) -> None:
        """Wait until the reply has been given or dropped."""
        if self in (self._client.promises or ()):
            self._given = self._given or anyio.Event()
            await self._given.wait()

    def drop(self) -> None:
        """Wake the waiters: the reply has been given, or the connection has ended."""
        if self._client.promises is not None:
            self._client.promises.discard(self)
        if self._given is not None:
            self._given.set()

    def _register(self) -> None:
        self._client.promises = self._client.promises or WeakSet()
        self._client.promises.add(self)

    def _send(self, frame: OutgoingFrame) -> None:
        self._client.write(frame)
        self.drop()
