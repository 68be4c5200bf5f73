"""A member: one client on one topic, from the join to the end. Its handlers see it as their `Socket`.

All that concerns the client's view of a channel's life is decided here: which frames, in which order, on which way
out. Source: Phoenix's `channel/server.ex`; on purpose different: pushes of a join are held until it is answered,
unknown events and payloads that do not fit are answered instead of crashing, and `terminate` runs on every way out.
"""

import copy
import functools
import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import anyio

from starlette_channels.actors import Actor, Stage, is_crash
from starlette_channels.broker import Publication, Subscriptions
from starlette_channels.channels import Channel, EndReason
from starlette_channels.exceptions import InvalidPayload, JoinError
from starlette_channels.links import Link, PromisedReply, reply_frame
from starlette_channels.messages import EMPTY, Broadcast, Frame, Message, Payload, Ref, Reply, as_reply, encode_payload
from starlette_channels.payloads import decode_anything
from starlette_channels.protocol import UNMATCHED, Answer
from starlette_channels.sockets import Cleanup, LaterReply, Socket
from starlette_channels.topics import Match

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override

logger: logging.Logger = logging.getLogger("starlette_channels.channel")

SILENT = frozenset({"duplicate_join", "closed", "shutdown"})
"""The ends after which a channel tells its client nothing more."""


class Member(Actor, Socket[Any]):
    """One client on one topic."""

    __slots__ = (
        "_channel",
        "_held",
        "_joined",
        "_link",
        "_message",
        "_push_ref",
        "_replaces",
        "_subscriptions",
        "assigns",
        "join_ref",
        "subtopic",
        "topic",
        "topic_params",
    )

    def __init__(
        self,
        link: Link,
        channel: Channel[Any],
        message: Message,
        match: Match,
        replaces: "Member | None",
    ) -> None:
        super().__init__(link)
        self.topic: str = message.topic
        self.subtopic: str = match.subtopic
        self.topic_params: Mapping[str, str] = match.params
        self.assigns: Any = link.assigns
        self.join_ref: Ref = message.join_ref
        # A join without join_ref is known to the client by its ref, but to the connection by the null it carried.
        self._push_ref: Ref = message.ref if message.join_ref is None else message.join_ref
        self._link = link
        self._channel = channel
        self._replaces = replaces
        self._joined: bool | None = None
        self._message: Message | None = None
        self._held: list[Frame] | None = None
        self._subscriptions: Subscriptions | None = None

    # What the connection calls.

    def start(self, message: Message) -> None:
        """Begin with the join."""
        self._post(self._join, message)

    def receive(self, message: Message) -> None:
        """Take an event of the client."""
        self._post(self._handle_event, message)

    def leave(self, message: Message) -> None:
        """Take the client's wish to leave; what it sent before comes first."""
        self._post(self._handle_leave, message)

    def replace(self) -> None:
        """End because the client joins the topic anew; a join that is going on is answered first."""
        self._link.hub.unsubscribe(self.topic, self)
        self._seal("duplicate_join")

    def close(self) -> None:
        """End because the connection has, once all that the client sent is handled."""
        self._post(self._handle_close, None)

    def abort(self, reason: EndReason) -> None:
        """End now, a join that is going on included."""
        self._seal(reason)
        self._interrupt()

    def deliver(self, publication: Publication) -> None:
        """Take a broadcast of the own topic."""
        if self._stage is not Stage.LIVING or self.fate in SILENT:
            return
        if publication.event in self._channel.intercepts:
            self._post(self._handle_intercepted, publication)
        else:
            self._link.write(publication.frame(self._link.serializer))

    def hear(self, publication: Publication) -> None:
        """Take a broadcast of a topic that a handler subscribed to."""
        if publication.topic == self.topic and publication.event in self._channel.intercepts:
            self._post(self._handle_intercepted, publication)
        else:
            payload = decode_anything(publication.body)
            self._post(self._handle_info, Broadcast(publication.topic, publication.event, payload))

    # What handlers call.

    @property
    @override
    def app(self) -> Any:
        if self._link.app is None:
            raise RuntimeError("socket.app: there is none; mount the Channels, as in Mount('/socket', app=channels)")
        return self._link.app

    @override
    def push(self, event: str, payload: Payload) -> None:
        frame = self._link.serializer.push(self._push_ref, None, self.topic, event, encode_payload(payload))
        self._link.hub.run(self._send, frame)

    @override
    def broadcast(self, event: str, payload: Payload) -> None:
        self._link.broker.broadcast(self.topic, event, payload)

    @override
    def broadcast_from(self, event: str, payload: Payload) -> None:
        self._link.broker.broadcast(self.topic, event, payload, sender=self)

    @override
    def reply_later(self) -> LaterReply:
        return PromisedReply(self._link, self._push_ref, self._message)

    @override
    def send_info(self, message: object) -> None:
        self._link.hub.run(self._post, self._handle_info, message)

    @override
    def start_soon(self, function: Any, *args: Any) -> None:
        self._link.hub.run(self._start_child, function, args)

    @override
    def subscribe(self, topic: str) -> None:
        self._link.hub.run(self._subscribe, topic)

    @override
    def unsubscribe(self, topic: str) -> None:
        self._link.hub.run(self._unsubscribe, topic)

    @override
    def on_close(self, function: Cleanup) -> None:
        self._cleanups = self._cleanups or []
        self._cleanups.append(function)

    @override
    def stop(self) -> None:
        self._link.hub.run(functools.partial(self._seal, "stopped", interrupt=False))

    # Joining.

    def _finishes_first(self) -> bool:
        return self._joined is None

    async def _join(self, message: Message) -> None:
        if self._replaces is not None:
            with anyio.move_on_after(2 * self._link.limits.shutdown_seconds):
                await self._replaces.ended()
        handler = self._channel.join
        try:
            self.assigns = copy.copy(self._link.assigns)
            answer = await handler.call(self, handler.decode(message.payload), **self.topic_params)
            reply = self._join_reply(message, as_reply(answer))
        except JoinError as error:
            self._refuse(message, "join_refused", error.payload)
        except InvalidPayload as error:
            self._refuse(message, "invalid_payload", {"reason": "invalid payload", "detail": str(error)})
        except BaseException as error:
            if not is_crash(error):
                raise
            logger.exception("The join of %r crashed", self)
            self._refuse(message, "join_crashed", {"reason": "join crashed"})
        else:
            self._admit(reply)

    def _admit(self, reply: Frame) -> None:
        self._joined = True
        self._link.write(reply)
        self._say_goodbye_of_replaced()
        held, self._held = self._held, None
        if self.fate in SILENT:
            return
        self._link.hub.subscribe(self.topic, self)
        for frame in held or ():
            self._link.write(frame)

    def _refuse(self, message: Message, code: str, payload: object) -> None:
        try:
            reply = self._join_reply(message, Reply("error", payload))
        except Exception:
            logger.exception("The reason for refusing %r cannot be sent", self)
            reply = self._join_reply(message, Reply("error", {"reason": "join crashed"}))
        self._joined = False
        self._held = None
        self._settle("refused")
        self._link.counts[code] += 1
        logger.info("%r refused: %s", self, code)
        self._link.write(reply)
        self._say_goodbye_of_replaced()

    def _join_reply(self, message: Message, reply: Reply) -> Frame:
        return reply_frame(self._link, self.join_ref, message.ref, self.topic, reply)

    def _say_goodbye_of_replaced(self) -> None:
        """Close the replaced channel only now: the client must not take its close for that of the new one."""
        replaced, self._replaces = self._replaces, None
        if replaced is not None and replaced.fate == "duplicate_join" and replaced._joined:
            self._link.write(replaced._event_frame("phx_close"))

    # Handling.

    async def _handle_event(self, message: Message) -> None:
        event = message.event
        handler = self._channel.events.get(event) if isinstance(event, str) else None
        args: tuple[str, ...] = ()
        if handler is None:
            handler = self._channel.any_event
            args = (event if isinstance(event, str) else bytes(encode_payload(event)).decode(),)
        if handler is None:
            self._blame(message, "unmatched_event", {"reason": "unmatched event"})
            return
        try:
            payload = handler.decode(message.payload)
        except InvalidPayload as error:
            self._blame(message, "invalid_payload", {"reason": "invalid payload", "detail": str(error)})
            return
        self._message = message
        try:
            answer = await handler.call(self, *args, payload)
        finally:
            self._message = None
        if answer is not None:
            self._reply(message, as_reply(answer))

    def _blame(self, message: Message, code: str, payload: Mapping[str, str]) -> None:
        """Count and log a client's mistake, and answer it if the message has a ref."""
        self._link.blame(message, code)
        if message.ref is not None:
            self._reply(message, Reply("error", payload))

    async def _handle_leave(self, message: Message) -> None:
        self._reply(message, Reply("ok"))
        self._seal("left", interrupt=False)

    async def _handle_close(self, _: None) -> None:
        self._seal("closed", interrupt=False)

    async def _handle_intercepted(self, publication: Publication) -> None:
        handler = self._channel.intercepts[publication.event]
        try:
            payload = handler.decode(publication.body)
        except InvalidPayload as error:
            self._link.counts["inexpressible_broadcast"] += 1
            logger.error("%r: broadcast %r does not fit its intercept handler: %s", self, publication.event, error)
        else:
            await handler.call(self, payload)

    async def _handle_info(self, message: object) -> None:
        handler = self._channel.info_handler(message)
        if handler is None:
            self._link.counts["unmatched_info"] += 1
            logger.warning("%r: no info handler for %s", self, type(message).__name__)
            return
        await handler(self, message)

    def _dealt_with(self, letter: object) -> None:
        if isinstance(letter, Message):
            self._link.relieve(letter)

    # Sending.

    def _send(self, frame: Frame) -> None:
        if self._joined is None:
            self._held = self._held or []
            self._held.append(frame)
        elif self._stage is Stage.ENDED or self.fate in SILENT or not self._joined:
            self._link.counts["pushed_after_end"] += 1
        else:
            self._link.write(frame)

    def _reply(self, message: Message, reply: Reply) -> None:
        self._send(reply_frame(self._link, self._push_ref, message.ref, self.topic, reply))

    def _event_frame(self, event: str, payload: object = None) -> Frame:
        body = EMPTY if payload is None else encode_payload(payload)
        return self._link.serializer.push(self.join_ref, self.join_ref, self.topic, event, body)

    # Subscribing, stopping, ending.

    def _subscribe(self, topic: str) -> None:
        if self._stage is Stage.LIVING:
            self._subscriptions = self._subscriptions or Subscriptions(self._link.hub, self, self.hear)
            self._subscriptions.add(topic)

    def _unsubscribe(self, topic: str) -> None:
        if self._subscriptions is not None:
            self._subscriptions.remove(topic)

    async def _end(self, leftovers: Iterable[Any]) -> None:
        self._link.hub.unsubscribe(self.topic, self)
        if self._subscriptions is not None:
            self._subscriptions.clear()
        if self.fate in ("left", "stopped"):
            self._link.write(self._event_frame("phx_close"))
            self._link.free(self.topic, self)
        terminator = self._channel.terminator
        if self._joined and terminator is not None and self.fate is not None and self.fate != "refused":
            await self._within_time("terminate", terminator(self, self.fate))
        if self._joined and self.fate == "error":
            self._link.write(self._event_frame("phx_error", {"reason": "channel_crash"}))
        self._link.free(self.topic, self)
        if self.fate in ("refused", "error", "stopped"):
            self._answer(leftovers)

    def _answer(self, leftovers: Iterable[object]) -> None:
        """Tell the client that what it sent behind the end found the topic unjoined."""
        for letter in leftovers:
            if isinstance(letter, Message):
                left = letter.event == "phx_leave"
                self._link.answer(letter, Answer(letter.join_ref, "ok") if left else UNMATCHED)
