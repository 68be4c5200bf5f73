"""Joined channel: one client on one topic, from the join to the end. Its handlers get it as their `Socket`.

It decides the frames that a client gets from a channel, and their order. Source: Phoenix's `channel/server.ex`; on
purpose different: pushes of a join are held until it is answered, unknown events and invalid payloads are answered
instead of crashing, and `terminate` runs for every end reason.
"""

import functools
import logging
import math
import operator
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from threading import get_ident
from typing import Any

import anyio
from msgspec import Raw

from starlette_channels.arguments import check_type
from starlette_channels.channels.actor import Actor, Stage, Step
from starlette_channels.channels.assigns import copy_assigns
from starlette_channels.channels.backpressure import Place, place_of
from starlette_channels.channels.channel_log import describe_client, log_message, log_refusal
from starlette_channels.channels.client import ChannelClient
from starlette_channels.channels.definition import Channel
from starlette_channels.channels.hold import Hold
from starlette_channels.channels.promised_reply import PromisedReply
from starlette_channels.channels.rejections import payload_misfit, rejection
from starlette_channels.channels.socket import Cleanup, End, EndReason, InternalSocket, LaterReply, SharedPush
from starlette_channels.exceptions import InvalidPayload
from starlette_channels.observability.log_context import Scene
from starlette_channels.pubsub.broker import Broker, Subscriptions
from starlette_channels.pubsub.confirmations import WAIT_SECONDS
from starlette_channels.pubsub.hub import Publication, Route
from starlette_channels.runtime.callables import check_call_later, name_of
from starlette_channels.runtime.tasks import OutOfTime, within
from starlette_channels.runtime.uptime import uptime
from starlette_channels.wire.encoding import TooDeep
from starlette_channels.wire.event_names import ORDINARY_EVENTS, RESERVED_PREFIXES, check_event
from starlette_channels.wire.messages import (
    EMPTY,
    Body,
    Broadcast,
    Gap,
    Message,
    OutgoingFrame,
    Payload,
    Ref,
    Reply,
    encode_answer,
    encode_payload,
    shown,
)
from starlette_channels.wire.payloads import UNDECODABLE, decode_anything
from starlette_channels.wire.protocol import UNMATCHED, Answer
from starlette_channels.wire.serializers import ok_reply
from starlette_channels.wire.topics import Match

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override

logger: logging.Logger = logging.getLogger("starlette_channels.channel")

SILENT = frozenset({"duplicate_join", "closed", "draining", "shutdown"})
"""The end reasons after which a channel sends nothing more to its client."""


class JoinGivenUp(BaseException):
    """A join handler has returned after the channel had ended without it."""


class JoinedChannel(Actor, InternalSocket[Any]):
    """One client on one topic."""

    end_reason: End | None
    __slots__ = (
        *("_arguments", "_channel", "_held", "_hold", "_joined", "_push_ref", "_replaces", "_subscriptions", "assigns"),
        *("events", "join_ref", "since", "subtopic", "text_ref", "topic", "topic_params"),
    )

    def __init__(
        self,
        client: ChannelClient,
        channel: Channel[Any],
        message: Message,
        match: Match,
        replaces: "JoinedChannel | None",
    ) -> None:
        super().__init__(client)
        self.topic: str = message.topic
        self.subtopic: str = match.subtopic
        self.topic_params: Mapping[str, str] = match.params
        self.assigns: Any = client.assigns
        self.join_ref: Ref = message.join_ref
        self.text_ref: object = message.join_ref if type(message.join_ref) is str else math.nan
        """The join_ref if it is text, as nearly always; otherwise a value that equals no join_ref of a message."""
        self.events: Mapping[str, object] = channel.events
        """The events that have a handler of their own."""
        # For a join without join_ref, the client uses the ref of the join, but the connection uses its null.
        self._push_ref: Ref = message.ref if message.join_ref is None else message.join_ref
        self.since: float = uptime()
        """The time of the join; a `kick` sent before it does not apply to this channel."""
        self._channel = channel
        self._arguments: Mapping[str, Any] = match.params if match.decoded is None else match.decoded
        self._replaces = replaces
        self._subscriptions: Subscriptions | None = None
        self._joined: bool | None = None
        """Whether the join was accepted; `None` until it is answered."""
        self._held: list[tuple[OutgoingFrame, Place | None]] | None = None  # pushes of the join handler
        self._hold: Hold | None = None  # from the subscription to the answer, if they are apart

    # Called by the connection.

    def start(self, message: Message) -> None:
        """Run the join handler."""
        self._start(self._join, message)

    def receive(self, message: Message) -> None:
        """Handle an event of the client."""
        tasks = self._client.tasks
        if self._busy or self._stage is not Stage.OPEN or not tasks.eager:
            self._enqueue(self._handle_event, message)
            return
        self._busy = True
        run = tasks.begin(self._work(self._handle_event, message))
        if self._busy:
            self._suspended(run, message)

    def leave(self, message: Message) -> None:
        """Handle `phx_leave`, after all earlier messages of the client."""
        self._start(self._handle_leave, message)

    def give_way(self) -> None:
        """End because the client joins the topic again; a join in progress is answered first."""
        self._client.hub.unsubscribe(self.topic, self)
        self._end("duplicate_join")

    def close(self, reason: EndReason) -> None:
        """End because the connection has ended, after all messages of the client are handled."""
        self._start(self._handle_close, reason)

    def kick(self, why: str | None) -> None:
        """End on a command of the server; a running handler may finish, and the client gets the reason."""
        self._client.hub.unsubscribe(self.topic, self)
        if why is not None and self.end_reason is None and self._stage is Stage.OPEN:
            self.push("kicked", {"reason": why})
        self._end("kicked", interrupt=False)

    def abort(self, reason: EndReason) -> None:
        """End now, even during a join."""
        self._end(reason)
        self._interrupt()

    def refresh(self, assigns: Any) -> None:
        """Pass the new identity of the client to the handler of refreshes, if there is one."""
        if self._channel.refreshed is not None:
            self._enqueue(self._handle_refresh, assigns)

    def reroute(self) -> None:
        """Subscribe again with the short cut that the connection has now, or without one."""
        if self._joined and self._stage is Stage.OPEN and self.end_reason not in SILENT:
            client = self._client
            outlet, writer = client.short_cut(may_drop=self._channel.may_drop) or (None, client.write)
            route = None if outlet is None else Route(outlet, client.serializer, self._channel.intercepted)
            client.hub.subscribe(self.topic, self, route, writer)

    def deliver(self, publication: Publication) -> None:
        """Handle a broadcast of the own topic that does not take the short cut to the client."""
        if self._stage is not Stage.OPEN or self.end_reason in SILENT:
            return
        if self._hold is not None and not self._may_hold(publication):
            return
        if publication.event in self._channel.intercepts:
            self._enqueue(self._handle_intercepted, publication)
        else:
            frame = publication.frame(self._client.serializer)
            write = self._send if self._joined is None else self._client.write
            write(frame, self._place(publication.event, publication.body))

    def hear(self, publication: Publication) -> None:
        """Handle a broadcast of a topic that a handler has subscribed to."""
        if publication.topic == self.topic and publication.event in self._channel.intercepts:
            self._enqueue(self._handle_intercepted, publication)
        else:
            payload = decode_anything(publication.body)
            self._enqueue(self._handle_info, Broadcast(publication.topic, publication.event, payload))

    def miss(self, gap: Gap) -> None:
        """Pass a gap to its handler, if there is one."""
        if self._channel.info_handler(gap) is not None:
            self._enqueue(self._handle_info, gap)

    # Called by handlers.

    @override
    async def admit(self) -> bool:
        if self._joined is not None or self._stage is not Stage.OPEN or get_ident() != self._client.hub.thread:
            raise RuntimeError(
                "socket.admit(): no join is going on; await it in the join handler, the function under @channel, "
                "after its checks and before it reads what it answers"
            )
        if self.end_reason is None:
            self._subscribe_early()
            if self._client.hub.confirmations is not None and not self._is_in_force():
                await self._until_in_force()
        return False

    @property
    @override
    def app(self) -> Any:
        if self._client.app is None:
            raise RuntimeError("socket.app: there is none; mount the Channels, as in Mount('/socket', app=channels)")
        return self._client.app

    @override
    def send_info(self, message: object) -> None:
        self._client.hub.run(self._enqueue, self._handle_info, message)

    @override
    def run_in_order(self, function: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
        self._client.hub.run(self._enqueue, operator.call, function)

    @override
    def start_soon(self, function: Any, *args: Any) -> None:
        check_call_later(function, "socket.start_soon", args="*args")
        self._client.hub.run(self._start_child, function, args)

    @override
    def subscribe(self, topic: str) -> None:
        check_type(topic, str, "socket.subscribe(", "it takes the name of a topic")
        self._client.hub.run(self._subscribe, topic)

    @override
    def unsubscribe(self, topic: str) -> None:
        self._client.hub.run(self._unsubscribe, topic)

    @override
    def on_close(self, function: Cleanup) -> None:
        check_call_later(function, "socket.on_close")
        self._client.hub.run(self._add_cleanup, function)

    @override
    def stop(self) -> None:
        self._client.hub.run(functools.partial(self._end, "stopped", interrupt=False))

    @property
    @override
    def broker(self) -> Broker:
        return self._client.broker

    @override
    def push(self, event: str, payload: Payload) -> None:
        if event not in ORDINARY_EVENTS:
            self._check_push(event)
        body = encode_payload(payload)
        frame = self._client.serializer.push(self._push_ref, None, self.topic, event, body)
        self._client.hub.run(self._send, frame, self._place(event, body))

    def _check_push(self, event: str) -> None:
        """Raise `ValueError` for a reserved event, unless it is the one that an intercept handler passes on."""
        letter = self._letter
        if type(letter) is not Publication or letter.event != event:
            check_event(event)

    @override
    def push_internal(self, push: SharedPush) -> None:
        frame = push.frame(self._client.serializer, self._push_ref, self.topic)
        self._client.hub.run(self._send, frame, self._place(push.event, push.body))

    @override
    def broadcast(self, event: str, payload: Payload) -> None:
        self._client.broker.publish(self.topic, event, payload)

    @override
    def broadcast_from(self, event: str, payload: Payload) -> None:
        self._client.broker.publish(self.topic, event, payload, sender=self)

    @override
    def reply_later(self) -> LaterReply:
        message = self._letter if self._joined and type(self._letter) is Message else None
        return PromisedReply(self._client, self._push_ref, message)

    def _send(self, frame: OutgoingFrame, place: Place | None = None) -> None:
        if self._joined is None:
            self._held = self._held or []
            self._held.append((frame, place))
        elif self._stage is Stage.CLOSED or self.end_reason in SILENT or not self._joined:
            self._client.counts["pushed_after_end"] += 1
        else:
            self._client.write(frame, place)

    def _place(self, event: str, body: Body) -> Place | None:
        """Return the place of a message in the queue of a slow client, if the client may miss it."""
        if not self._channel.may_drop or self._client.short_cut(may_drop=True) is not None:
            return None
        return place_of(self._channel.when_slow, self, event, body)

    @override
    def _answer(self, letter: object, answer: object) -> None:
        if type(letter) is Message:
            client = self._client
            frame = ok_reply(client.serializer, self._push_ref, letter.ref, self.topic, answer)
            if frame is not None and self._joined and self.end_reason is None:
                client.write(frame)
                return
            try:
                self._reply(letter, answer)
            except TooDeep:  # the echo of a payload takes a little more stack to encode than to decode
                self._blame(letter, "invalid_payload", payload_misfit(RecursionError()))

    def _reply(self, message: Message, answer: object) -> None:
        status, body = encode_answer(answer)
        self._send(self._client.serializer.reply(self._push_ref, message.ref, self.topic, status, body))

    def _event_frame(self, event: str, payload: object = None) -> OutgoingFrame:
        body = EMPTY if payload is None else encode_payload(payload)
        return self._client.serializer.push(self.join_ref, self.join_ref, self.topic, event, body)

    @property
    @override
    def scene(self) -> Scene:
        return Scene(self.topic, self._client.socket_id, self._client.number)

    # Joining.

    def _must_finish(self) -> bool:
        return self._joined is None

    async def _join(self, message: Message) -> None:
        if self._replaces is not None:
            with anyio.move_on_after(2 * self._client.limits.shutdown_seconds):
                await self._replaces.closed()
        try:
            if self._client.assigns is not None:
                self.assigns = copy_assigns(self._client.assigns)
            reply = self._join_reply(message, await self._ask(message))
            if self._client.hub.confirmations is not None and self.end_reason is None and not self._is_in_force():
                await self._until_in_force()
        except InvalidPayload as error:
            self._refuse(message, "invalid_payload", payload_misfit(error))
        except OutOfTime:
            seconds = self._client.limits.handler_seconds
            text = "The join of %r took more than %g seconds"
            self._client.error_log.note("join_timeout", logger, text, self, seconds, level=logging.ERROR, number=0)
            self._refuse(message, "join_timeout", {"reason": "join timed out"})
        except BaseException as error:  # noqa: BLE001 - raised again unless it is a crash
            reply = rejection(error)
            if reply is not None:
                self._refuse(message, "join_refused", reply.payload)
            else:
                self._join_crashed(message, error)
        else:
            if self._hold is not None and self._hold.is_full:
                self._refuse(message, "join_overflow", {"reason": "join overflow"})
                return
            if (level := self._channel.log_join) is not None and logger.isEnabledFor(level):
                log_message(level, self, "joined", self._client, message)
            self._accept(reply)

    async def _ask(self, message: Message) -> object:
        """Call the join handler, within the time limit of handlers."""
        handler, seconds = self._channel.join, self._client.limits.handler_seconds
        coroutine = handler.call(self, handler.decode(message.payload), **self._arguments)
        answer = await (coroutine if seconds == math.inf else within(seconds, self._client.counts, coroutine))
        if self._given_up:
            raise JoinGivenUp
        return answer

    def _join_crashed(self, message: Message, error: BaseException) -> None:
        if isinstance(error, JoinGivenUp) or not (self._is_crash(error) or isinstance(error, KeyboardInterrupt)):
            raise error
        text, name = "The join of %r crashed: %s raised", name_of(self._channel.join.call)
        self._client.error_log.note("join_crashed", logger, text, self, name, cause=error, number=0)
        self._refuse(message, "join_crashed", {"reason": "join crashed"})
        if isinstance(error, KeyboardInterrupt):
            raise error

    def _subscribe_early(self) -> None:
        """Take broadcasts from now on, and hold them until the join is answered."""
        if self._hold is None:
            self._hold = Hold()
            self._client.hub.subscribe(self.topic, self)

    def _is_in_force(self) -> bool:
        """Whether the engine delivers all topics of this channel already; that is not waited for, and costs nothing."""
        hears = self._client.hub.hears
        return hears(self.topic) and (self._subscriptions is None or all(map(hears, self._subscriptions.topics)))

    async def _until_in_force(self) -> None:
        """Subscribe, and wait until the engine delivers all topics of this channel, but not for ever."""
        self._subscribe_early()
        confirmations = self._client.hub.confirmations
        if confirmations is not None and not (self._hold is not None and self._hold.is_full):
            topics = (self.topic, *(self._subscriptions.topics if self._subscriptions else ()))
            await confirmations.wait(topics, self, min(WAIT_SECONDS, self._client.limits.handler_seconds / 2))

    def _may_hold(self, publication: Publication) -> bool:
        """Count a broadcast that is to be held; the first that is too much ends that, and the join will be refused."""
        hold = self._hold
        if hold is None or hold.is_full:
            return hold is None
        if not hold.add(publication.body, self._client.limits.outbox_bytes):
            self._held = None
            self._client.hub.unsubscribe(self.topic, self)
        return not hold.is_full

    def _accept(self, reply: OutgoingFrame) -> None:
        self._joined = True
        self._hold = None
        self._client.write(reply)
        self._close_replaced(self._client.write)
        held, self._held = self._held, None
        if self.end_reason in SILENT:
            return
        self.reroute()
        for frame, place in held or ():
            self._client.write(frame, place)

    def _refuse(self, message: Message, code: str, payload: object) -> None:
        try:
            reply = self._join_reply(message, Reply("error", payload))
        except Exception as error:  # noqa: BLE001 - any error of the encoder
            text = "The reason for refusing %r cannot be sent"
            self._client.error_log.note("join_crashed", logger, text, self, cause=error, number=0)
            reply = self._join_reply(message, Reply("error", {"reason": "join crashed"}))
        self._joined = False
        self._held = self._hold = None
        self._client.hub.unsubscribe(self.topic, self)
        self.end_reason = "refused"
        log_refusal(self._channel.log_join, self, code, self._client, message)
        self._client.refuse(reply)
        self._close_replaced(self._client.refuse)

    def _join_reply(self, message: Message, answer: object) -> OutgoingFrame:
        answer, serializer = dict[str, Any]() if answer is None else answer, self._client.serializer
        frame = ok_reply(serializer, self.join_ref, message.ref, self.topic, answer)
        return frame or serializer.reply(self.join_ref, message.ref, self.topic, *encode_answer(answer))

    def _close_replaced(self, write: Callable[[OutgoingFrame], None]) -> None:
        """Close the replaced channel only now: the client must not mistake its close for that of the new channel."""
        replaced, self._replaces = self._replaces, None
        if replaced is not None and replaced.end_reason == "duplicate_join" and replaced._joined:
            write(replaced._event_frame("phx_close"))

    # Handling.

    def _handle_event(self, message: Message) -> Coroutine[Any, Any, object] | None:
        channel, event, body = self._channel, message.event, message.payload
        level = channel.log_handle_in
        if level is not None and logger.isEnabledFor(level):
            log_message(level, self, f"event {shown(event)}", self._client, message)
        handler = channel.events.get(event) if isinstance(event, str) else None
        if handler is None:
            return self._handle_any_event(message)
        try:
            payload = handler.decode_json(body) if type(body) is Raw else handler.decode(body)
        except UNDECODABLE as error:
            self._blame(message, "invalid_payload", payload_misfit(error))
            return None
        return handler.call(self, payload)

    def _handle_any_event(self, message: Message) -> Coroutine[Any, Any, object] | None:
        """Handle an event without a handler of its own: by `on_any`, unless the event is reserved."""
        event, handler = message.event, self._channel.any_event
        if handler is None or (isinstance(event, str) and event.startswith(RESERVED_PREFIXES)):
            self._blame(message, "unmatched_event", {"reason": "unmatched event"})
            return None
        name = event if isinstance(event, str) else bytes(encode_payload(event)).decode()
        try:
            payload = handler.decode(message.payload)
        except InvalidPayload as error:
            self._blame(message, "invalid_payload", payload_misfit(error))
            return None
        return handler.call(self, name, payload)

    def _answer_refusal(self, letter: object, error: Exception) -> bool:
        if type(letter) is Publication and rejection(error) is not None:
            self._client.counts["event_refused"] += 1  # the broadcast is dropped for this client
            return True
        if type(letter) is not Message:
            return False
        if isinstance(error, InvalidPayload):
            self._blame(letter, "invalid_payload", payload_misfit(error))
            return True
        refusal = rejection(error)
        if refusal is None:
            return False
        if letter.ref is not None:
            try:
                self._reply(letter, refusal)
            except Exception as unsendable:  # noqa: BLE001 - the refusal comes from the application
                text, name = "The reason for refusing event %s of %r cannot be sent", shown(letter.event)
                self._client.error_log.note("event_refused", logger, text, name, self, cause=unsendable, number=0)
                return False
        self._client.counts["event_refused"] += 1
        log_message(self._channel.log_handle_in, self, f"refused, event {shown(letter.event)}", self._client, letter)
        return True

    def _describe(self, step: Step, letter: object) -> str:
        channel, what, function = self._channel, type(letter).__name__, None
        if isinstance(letter, Message):
            handler = channel.events.get(letter.event) if isinstance(letter.event, str) else None
            handler = handler or channel.any_event
            what, function = f"event {shown(letter.event)}", handler and handler.call
        elif step == self._handle_intercepted and isinstance(letter, Publication):
            what, function = f"intercept {shown(letter.event)}", channel.intercepts[letter.event].call
        elif step == self._handle_info:
            what, function = f"info {what}", channel.info_handler(letter)
        elif step == self._handle_refresh:
            what, function = "on_refresh", channel.refreshed
        return what if function is None else f"{what}, {name_of(function)},"

    def _blame(self, message: Message, code: str, payload: Mapping[str, str]) -> None:
        """Count and log a client's mistake, and answer it if the message has a ref."""
        self._client.blame(message, code)
        if message.ref is not None:
            self._reply(message, Reply("error", payload))

    def _handle_leave(self, message: Message) -> None:
        self._reply(message, Reply("ok"))
        self._end("left", interrupt=False)

    def _handle_close(self, reason: EndReason) -> None:
        self._end(reason, interrupt=False)

    def _handle_intercepted(self, publication: Publication) -> Coroutine[Any, Any, object] | None:
        handler = self._channel.intercepts[publication.event]
        try:
            payload = handler.decode(publication.body)
        except InvalidPayload as error:
            text, event = "%r: broadcast %s does not fit its intercept handler: %s", shown(publication.event)
            error_log = self._client.error_log
            error_log.note("inexpressible_broadcast", logger, text, self, event, error, level=logging.ERROR)
            return None
        return handler.call(self, payload)

    def _handle_info(self, message: object) -> Coroutine[Any, Any, object] | None:
        handler = self._channel.info_handler(message)
        if handler is None:
            text = "%r: no info handler for %s"
            self._client.error_log.note("unmatched_info", logger, text, self, type(message).__name__)
            return None
        return handler(self, message)

    def _handle_refresh(self, assigns: Any) -> Coroutine[Any, Any, object] | None:
        handler = self._channel.refreshed
        return None if handler is None else handler(self, copy_assigns(assigns))

    def _reject(self, letter: object) -> None:
        self._answer_leftovers((letter,))

    # Subscribing, stopping, ending.

    def _subscribe(self, topic: str) -> None:
        if self._stage is Stage.OPEN:
            self._subscriptions = self._subscriptions or Subscriptions(self._client.hub, self, self.hear, self.miss)
            self._subscriptions.add(topic)

    def _unsubscribe(self, topic: str) -> None:
        if self._subscriptions is not None:
            self._subscriptions.remove(topic)

    @override
    async def _close_actor(self) -> None:
        try:
            await super()._close_actor()
        finally:
            self._client.forget(self)

    async def _close_channel(self, leftovers: Iterable[Any]) -> None:
        hub = self._client.hub
        hub.unsubscribe(self.topic, self)
        if hub.confirmations is not None and hub.confirmations.is_wanted:
            hub.confirmations.forget((self.topic, *(self._subscriptions.topics if self._subscriptions else ())), self)
        if self._subscriptions is not None:
            self._subscriptions.clear()
        if self.end_reason in ("left", "stopped", "kicked"):
            self._client.write(self._event_frame("phx_close"))
            self._client.free(self.topic, self)
        terminator = self._channel.terminator
        if self._joined and terminator is not None and self.end_reason is not None and self.end_reason != "refused":
            await self._within_time(f"terminate, {name_of(terminator)},", terminator(self, self.end_reason))
        if self._joined and self._channel.log_join is not None:
            logger.debug("%r ended: %s, %s", self, self.end_reason, describe_client(self._client))
        if self._joined and self.end_reason == "error":
            self._client.write(self._event_frame("phx_error", {"reason": "channel_crash"}))
        self._client.free(self.topic, self)
        if self.end_reason in ("refused", "error", "stopped", "kicked"):
            self._answer_leftovers(leftovers)

    def _answer_leftovers(self, leftovers: Iterable[object]) -> None:
        """Answer the messages behind the end: `ok` to a leave, else "unmatched topic"."""
        for letter in leftovers:
            if isinstance(letter, Message):
                left = letter.event == "phx_leave"
                self._client.answer(letter, Answer(letter.join_ref, "ok") if left else UNMATCHED)
