"""A member: one client on one topic, from the join to the end. Its handlers see it as their `Socket`.

All that concerns the client's view of a channel's life is decided here: which frames, in which order, on which way
out. Source: Phoenix's `channel/server.ex`; on purpose different: pushes of a join are held until it is answered,
unknown events and payloads that do not fit are answered instead of crashing, and `terminate` runs on every way out.
"""

import functools
import logging
import math
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from threading import get_ident
from typing import Any

import anyio

from starlette_channels.arguments import check_type
from starlette_channels.channels.actor import Stage, Step
from starlette_channels.channels.assigns import copy_assigns
from starlette_channels.channels.definition import Channel, EndReason
from starlette_channels.channels.link import Link, reply_frame
from starlette_channels.channels.rejections import rejection
from starlette_channels.channels.socket import Cleanup
from starlette_channels.channels.speakers import SILENT, Speaker
from starlette_channels.exceptions import InvalidPayload
from starlette_channels.pubsub.broker import Subscriptions
from starlette_channels.pubsub.confirmations import WAIT_SECONDS
from starlette_channels.pubsub.hub import Publication, Route
from starlette_channels.runtime.callables import check_call_later, name_of
from starlette_channels.runtime.tasks import OutOfTime, within
from starlette_channels.runtime.uptime import uptime
from starlette_channels.wire.encoding import TooDeep
from starlette_channels.wire.event_names import RESERVED_PREFIXES
from starlette_channels.wire.messages import Broadcast, Frame, Gap, Message, Reply, encode_payload, shown
from starlette_channels.wire.payloads import decode_anything
from starlette_channels.wire.protocol import UNMATCHED, Answer
from starlette_channels.wire.topics import Match

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override

logger: logging.Logger = logging.getLogger("starlette_channels.channel")

TOO_DEEP = {"reason": "invalid payload", "detail": "Nested too deeply"}


def call_internal(function: Callable[[], Coroutine[Any, Any, None] | None]) -> Coroutine[Any, Any, None] | None:
    """Handle a letter of the library itself, which is a function."""
    return function()


class JoinGivenUp(BaseException):
    """A join handler has returned after the channel had ended without it."""


class Hold:
    """What a channel knows of the broadcasts that wait for the answer to its join."""

    __slots__ = ("bytes", "is_full")

    def __init__(self) -> None:
        self.bytes: int = 0
        self.is_full: bool = False


class Member(Speaker):
    """One client on one topic."""

    __slots__ = ("_arguments", "_hold", "_replaces", "_subscriptions", "assigns", "since", "subtopic", "topic_params")

    def __init__(
        self,
        link: Link,
        channel: Channel[Any],
        message: Message,
        match: Match,
        replaces: "Member | None",
    ) -> None:
        super().__init__(link, channel, message)
        self.subtopic: str = match.subtopic
        self.topic_params: Mapping[str, str] = match.params
        self._arguments: Mapping[str, Any] = match.params if match.decoded is None else match.decoded
        self.assigns: Any = link.assigns
        self._replaces = replaces
        self._subscriptions: Subscriptions | None = None
        self.since: float = uptime()
        """When the client asked to join; a `kick` that was said before does not mean this channel."""
        self._hold: Hold | None = None  # from the subscription to the answer, if that is not one moment

    # What the connection calls.

    def start(self, message: Message) -> None:
        """Begin with the join."""
        self._take(self._join, message)

    def receive(self, message: Message) -> None:
        """Take an event of the client."""
        self._take(self._handle_event, message)

    def leave(self, message: Message) -> None:
        """Take the client's wish to leave; what it sent before comes first."""
        self._take(self._handle_leave, message)

    def replace(self) -> None:
        """End because the client joins the topic anew; a join that is going on is answered first."""
        self._link.hub.unsubscribe(self.topic, self)
        self._seal("duplicate_join")

    def close(self, reason: EndReason) -> None:
        """End because the connection has, once all that the client sent is handled."""
        self._take(self._handle_close, reason)

    def kick(self, why: str | None) -> None:
        """End because the server says so; a running handler may finish, and the client is told why."""
        self._link.hub.unsubscribe(self.topic, self)
        if why is not None and self.fate is None and self._stage is Stage.LIVING:
            self.push("kicked", {"reason": why})
        self._seal("kicked", interrupt=False)

    def abort(self, reason: EndReason) -> None:
        """End now, a join that is going on included."""
        self._seal(reason)
        self._interrupt()

    def renew(self, assigns: Any) -> None:
        """Let the handler for it know who the client is from now on, if there is one."""
        if self._channel.refreshed is not None:
            self._post(self._handle_refresh, assigns)

    def reroute(self) -> None:
        """Take broadcasts in the way that the connection wants them from now on."""
        if self._joined and self._stage is Stage.LIVING and self.fate not in SILENT:
            link = self._link
            outlet, writer = link.short_cut(may_drop=self._channel.may_drop) or (None, link.write)
            route = None if outlet is None else Route(outlet, link.serializer, self._channel.intercepted)
            link.hub.subscribe(self.topic, self, route, writer)

    def deliver(self, publication: Publication) -> None:
        """Take a broadcast of the own topic that has no short cut to the client."""
        if self._stage is not Stage.LIVING or self.fate in SILENT:
            return
        if self._hold is not None and not self._has_room_for(publication):
            return
        if publication.event in self._channel.intercepts:
            self._post(self._handle_intercepted, publication)
        else:
            frame = publication.frame(self._link.serializer)
            write = self._send if self._joined is None else self._link.write
            write(frame, self._place(publication.event, publication.body))

    def hear(self, publication: Publication) -> None:
        """Take a broadcast of a topic that a handler subscribed to."""
        if publication.topic == self.topic and publication.event in self._channel.intercepts:
            self._post(self._handle_intercepted, publication)
        else:
            payload = decode_anything(publication.body)
            self._post(self._handle_info, Broadcast(publication.topic, publication.event, payload))

    def miss(self, gap: Gap) -> None:
        """Take the news of a gap, if there is a handler for it."""
        if self._channel.info_handler(gap) is not None:
            self._post(self._handle_info, gap)

    # What handlers call.

    @override
    async def admit(self) -> bool:
        if self._joined is not None or self._stage is not Stage.LIVING or get_ident() != self._link.hub.thread:
            raise RuntimeError(
                "socket.admit(): no join is going on; await it in the join handler, the function under @channel, "
                "after its checks and before it reads what it answers"
            )
        if self.fate is None:
            self._subscribe_early()
            if self._link.hub.confirmations is not None and not self._is_in_force():
                await self._until_in_force()
        return False

    @property
    @override
    def app(self) -> Any:
        if self._link.app is None:
            raise RuntimeError("socket.app: there is none; mount the Channels, as in Mount('/socket', app=channels)")
        return self._link.app

    @override
    def send_info(self, message: object) -> None:
        self._link.hub.run(self._post, self._handle_info, message)

    @override
    def run_in_order(self, function: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
        self._link.hub.run(self._post, call_internal, function)

    @override
    def start_soon(self, function: Any, *args: Any) -> None:
        check_call_later(function, "socket.start_soon", args="*args")
        self._link.hub.run(self._start_child, function, args)

    @override
    def subscribe(self, topic: str) -> None:
        check_type(topic, str, "socket.subscribe(", "it takes the name of a topic")
        self._link.hub.run(self._subscribe, topic)

    @override
    def unsubscribe(self, topic: str) -> None:
        self._link.hub.run(self._unsubscribe, topic)

    @override
    def on_close(self, function: Cleanup) -> None:
        check_call_later(function, "socket.on_close")
        self._link.hub.run(self._clean_up_with, function)

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
        try:
            self.assigns = copy_assigns(self._link.assigns)
            reply = self._join_reply(message, await self._ask(message))
            if self._link.hub.confirmations is not None and self.fate is None and not self._is_in_force():
                await self._until_in_force()
        except InvalidPayload as error:
            self._refuse(message, "invalid_payload", {"reason": "invalid payload", "detail": str(error)})
        except OutOfTime:
            seconds = self._link.limits.handler_seconds
            text = "The join of %r took more than %g seconds"
            self._link.error_log.note("join_timeout", logger, text, self, seconds, level=logging.ERROR, number=0)
            self._refuse(message, "join_timeout", {"reason": "join timed out"})
        except BaseException as error:  # noqa: BLE001 - what is no crash is raised again
            reply = rejection(error)
            if reply is not None:
                self._refuse(message, "join_refused", reply.payload)
            else:
                self._join_crashed(message, error)
        else:
            if self._hold is not None and self._hold.is_full:
                self._refuse(message, "join_overflow", {"reason": "join overflow"})
                return
            self._log(self._channel.log_join, "joined", message)
            self._accept(reply)

    async def _ask(self, message: Message) -> object:
        """Ask the join handler, for as long as a handler may take."""
        handler, seconds = self._channel.join, self._link.limits.handler_seconds
        coroutine = handler.call(self, handler.decode(message.payload), **self._arguments)
        answer = await (coroutine if seconds == math.inf else within(seconds, self._link.counts, coroutine))
        if self._given_up:
            raise JoinGivenUp
        return answer

    def _join_crashed(self, message: Message, error: BaseException) -> None:
        if isinstance(error, JoinGivenUp) or not (self._is_crash(error) or isinstance(error, KeyboardInterrupt)):
            raise error
        text, name = "The join of %r crashed: %s raised", name_of(self._channel.join.call)
        self._link.error_log.note("join_crashed", logger, text, self, name, cause=error, number=0)
        self._refuse(message, "join_crashed", {"reason": "join crashed"})
        if isinstance(error, KeyboardInterrupt):
            raise error

    def _subscribe_early(self) -> None:
        """Take broadcasts from now on, and hold them until the join is answered."""
        if self._hold is None:
            self._hold = Hold()
            self._link.hub.subscribe(self.topic, self)

    def _is_in_force(self) -> bool:
        """Whether the engine delivers all topics of this channel already; that is not waited for, and costs nothing."""
        hears = self._link.hub.hears
        return hears(self.topic) and (self._subscriptions is None or all(map(hears, self._subscriptions.topics)))

    async def _until_in_force(self) -> None:
        """Subscribe, and wait until the engine delivers all topics of this channel, but not for ever."""
        self._subscribe_early()
        confirmations = self._link.hub.confirmations
        if confirmations is not None and not (self._hold is not None and self._hold.is_full):
            topics = (self.topic, *(self._subscriptions.topics if self._subscriptions else ()))
            await confirmations.wait(topics, self, min(WAIT_SECONDS, self._link.limits.handler_seconds / 2))

    def _has_room_for(self, publication: Publication) -> bool:
        """Count a broadcast that is to be held; beyond the limit none is any more, and the join will be refused."""
        hold = self._hold
        if hold is None or hold.is_full:
            return hold is None
        hold.bytes += memoryview(publication.body).nbytes
        if hold.bytes > self._link.limits.outbox_bytes:
            hold.is_full = True
            self._held = None
            self._link.hub.unsubscribe(self.topic, self)
        return not hold.is_full

    def _accept(self, reply: Frame) -> None:
        self._joined = True
        self._hold = None
        self._link.write(reply)
        self._say_goodbye_of_replaced(self._link.write)
        held, self._held = self._held, None
        if self.fate in SILENT:
            return
        self.reroute()
        for frame, place in held or ():
            self._link.write(frame, place)

    def _refuse(self, message: Message, code: str, payload: object) -> None:
        try:
            reply = self._join_reply(message, Reply("error", payload))
        except Exception as error:  # noqa: BLE001 - whatever the encoder raises
            text = "The reason for refusing %r cannot be sent"
            self._link.error_log.note("join_crashed", logger, text, self, cause=error, number=0)
            reply = self._join_reply(message, Reply("error", {"reason": "join crashed"}))
        self._joined = False
        self._held = self._hold = None
        self._link.hub.unsubscribe(self.topic, self)
        self._settle("refused")
        self._note_refusal(code, message)
        self._link.refuse(reply)
        self._say_goodbye_of_replaced(self._link.refuse)

    def _join_reply(self, message: Message, answer: object) -> Frame:
        return reply_frame(self._link, self.join_ref, message.ref, self.topic, answer)

    def _say_goodbye_of_replaced(self, write: Callable[[Frame], None]) -> None:
        """Close the replaced channel only now: the client must not take its close for that of the new one."""
        replaced, self._replaces = self._replaces, None
        if replaced is not None and replaced.fate == "duplicate_join" and replaced._joined:
            write(replaced._event_frame("phx_close"))

    # Handling.

    def _handle_event(self, message: Message) -> Coroutine[Any, Any, object] | None:
        event = message.event
        level = self._channel.log_handle_in
        if level is not None and logger.isEnabledFor(level):
            self._log(level, f"event {shown(event)}", message)
        handler = self._channel.events.get(event) if isinstance(event, str) else None
        any_event = self._channel.any_event
        try:
            if handler is not None:
                return handler.call(self, handler.decode(message.payload))
            if any_event is not None and not (isinstance(event, str) and event.startswith(RESERVED_PREFIXES)):
                name = event if isinstance(event, str) else bytes(encode_payload(event)).decode()
                return any_event.call(self, name, any_event.decode(message.payload))
        except InvalidPayload as error:
            self._blame(message, "invalid_payload", {"reason": "invalid payload", "detail": str(error)})
        else:
            self._blame(message, "unmatched_event", {"reason": "unmatched event"})
        return None

    def _refused(self, letter: object, error: Exception) -> bool:
        if type(letter) is Publication and rejection(error) is not None:
            self._link.counts["event_refused"] += 1  # this client does not get the broadcast
            return True
        if type(letter) is not Message:
            return False
        if isinstance(error, InvalidPayload):
            self._blame(letter, "invalid_payload", {"reason": "invalid payload", "detail": str(error)})
            return True
        refusal = rejection(error)
        if refusal is None:
            return False
        if letter.ref is not None:
            try:
                self._reply(letter, refusal)
            except Exception as unsendable:  # noqa: BLE001 - the refusal is the application's
                text, name = "The reason for refusing event %s of %r cannot be sent", shown(letter.event)
                self._link.error_log.note("event_refused", logger, text, name, self, cause=unsendable, number=0)
                return False
        self._link.counts["event_refused"] += 1
        self._log(self._channel.log_handle_in, f"refused, event {shown(letter.event)}", letter)
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

    def _answered(self, letter: object, answer: object) -> None:
        if type(letter) is Message:
            try:
                self._reply(letter, answer)
            except TooDeep:  # decoding the question took a little less of the stack than encoding it again
                self._blame(letter, "invalid_payload", TOO_DEEP)

    def _blame(self, message: Message, code: str, payload: Mapping[str, str]) -> None:
        """Count and log a client's mistake, and answer it if the message has a ref."""
        self._link.blame(message, code)
        if message.ref is not None:
            self._reply(message, Reply("error", payload))

    def _handle_leave(self, message: Message) -> None:
        self._reply(message, Reply("ok"))
        self._seal("left", interrupt=False)

    def _handle_close(self, reason: EndReason) -> None:
        self._seal(reason, interrupt=False)

    def _handle_intercepted(self, publication: Publication) -> Coroutine[Any, Any, object] | None:
        handler = self._channel.intercepts[publication.event]
        try:
            payload = handler.decode(publication.body)
        except InvalidPayload as error:
            text, event = "%r: broadcast %s does not fit its intercept handler: %s", shown(publication.event)
            error_log = self._link.error_log
            error_log.note("inexpressible_broadcast", logger, text, self, event, error, level=logging.ERROR)
            return None
        return handler.call(self, payload)

    def _handle_info(self, message: object) -> Coroutine[Any, Any, object] | None:
        handler = self._channel.info_handler(message)
        if handler is None:
            text = "%r: no info handler for %s"
            self._link.error_log.note("unmatched_info", logger, text, self, type(message).__name__)
            return None
        return handler(self, message)

    def _handle_refresh(self, assigns: Any) -> Coroutine[Any, Any, object] | None:
        handler = self._channel.refreshed
        return None if handler is None else handler(self, copy_assigns(assigns))

    def _keep(self, letter: object) -> None:
        if type(letter) is Message:
            self._link.burden(letter)

    def _turn_away(self, letter: object) -> None:
        self._answer((letter,))

    def _dealt_with(self, letter: object) -> None:
        if type(letter) is Message:
            self._link.relieve(letter)

    # Subscribing, stopping, ending.

    def _subscribe(self, topic: str) -> None:
        if self._stage is Stage.LIVING:
            self._subscriptions = self._subscriptions or Subscriptions(self._link.hub, self, self.hear, self.miss)
            self._subscriptions.add(topic)

    def _unsubscribe(self, topic: str) -> None:
        if self._subscriptions is not None:
            self._subscriptions.remove(topic)

    @override
    async def _finish(self) -> None:
        try:
            await super()._finish()
        finally:
            self._link.forget(self)

    async def _end(self, leftovers: Iterable[Any]) -> None:
        hub = self._link.hub
        hub.unsubscribe(self.topic, self)
        if hub.confirmations is not None and hub.confirmations.is_wanted:
            hub.confirmations.forget((self.topic, *(self._subscriptions.topics if self._subscriptions else ())), self)
        if self._subscriptions is not None:
            self._subscriptions.clear()
        if self.fate in ("left", "stopped", "kicked"):
            self._link.write(self._event_frame("phx_close"))
            self._link.free(self.topic, self)
        terminator = self._channel.terminator
        if self._joined and terminator is not None and self.fate is not None and self.fate != "refused":
            await self._within_time(f"terminate, {name_of(terminator)},", terminator(self, self.fate))
        if self._joined and self._channel.log_join is not None:
            logger.debug("%r ended: %s, %s", self, self.fate, self._who)
        if self._joined and self.fate == "error":
            self._link.write(self._event_frame("phx_error", {"reason": "channel_crash"}))
        self._link.free(self.topic, self)
        if self.fate in ("refused", "error", "stopped", "kicked"):
            self._answer(leftovers)

    def _answer(self, leftovers: Iterable[object]) -> None:
        """Tell the client that what it sent behind the end found the topic unjoined."""
        for letter in leftovers:
            if isinstance(letter, Message):
                left = letter.event == "phx_leave"
                self._link.answer(letter, Answer(letter.join_ref, "ok") if left else UNMATCHED)
