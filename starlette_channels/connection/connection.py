"""Connection: one client, with its wire format, its rate limits, and its joined channels.

Bytes come in through `receive`, frames go out through a transport. No method waits except at the end.
"""

import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from starlette_channels.channels.definition import Channel, EndReason
from starlette_channels.channels.joined import JoinedChannel
from starlette_channels.connection.identities import Excess, Identity
from starlette_channels.connection.rate_limiter import HEAVY, RateLimiter
from starlette_channels.connection.refusals import DelayedRefusals
from starlette_channels.connection.registry import Service
from starlette_channels.connection.transport import Transport
from starlette_channels.exceptions import ProtocolError
from starlette_channels.observability.redaction import ParameterFilter
from starlette_channels.pubsub.commands import Command, Disconnect
from starlette_channels.pubsub.hub import Hub, ShortCut
from starlette_channels.runtime.handler_deadlines import Watch, watch_of_this_loop
from starlette_channels.runtime.tasks import Cancel, Tasks
from starlette_channels.runtime.turn_budget import in_turns
from starlette_channels.runtime.uptime import uptime
from starlette_channels.wire.headers import check_header, is_plain, read_message
from starlette_channels.wire.messages import (
    EMPTY,
    Frame,
    Message,
    OutgoingFrame,
    encode_payload,
    frame_size,
    message_size,
    shown,
)
from starlette_channels.wire.nodes import TooManyNodes, weigh
from starlette_channels.wire.protocol import (
    UNMATCHED,
    Answer,
    ClientProtocol,
    Decision,
    Join,
    Leave,
    Push,
    Refresh,
    Stale,
)
from starlette_channels.wire.serializers import V2, Serializer, keeps_refs_raw
from starlette_channels.wire.topics import Match

if TYPE_CHECKING:
    from collections import Counter
    from weakref import WeakSet

    from starlette_channels.channels.client import Write
    from starlette_channels.limits import Bounds
    from starlette_channels.observability.error_log import ErrorLog
    from starlette_channels.pubsub.broker import Broker

logger: logging.Logger = logging.getLogger("starlette_channels.connection")


FETCH_SECONDS = 1.0
"""Time limit for a client to fetch its last messages. A long-polling client normally polls again at once."""


class Connection:
    """One client. Its transport calls `receive` for each frame, and `end` after the last one."""

    __slots__ = (
        *("_backlog", "_backlog_bytes", "_closed", "_closing", "_decode_text", "_end_reason", "_flowing", "_identity"),
        *("_number", "_paused", "_plainly_small", "_protocol", "_refusals", "_service", "_since", "_topics"),
        *("_transport", "app", "assigns", "broker", "counts", "error_log", "hub", "limits", "promises", "rate"),
        *("serializer", "tasks", "write"),
    )

    def __init__(
        self,
        service: Service,
        transport: Transport,
        serializer: Serializer,
        assigns: object,
        socket_id: str | None = None,
        app: object = None,
        since: float | None = None,
    ) -> None:
        self.app: Any = app
        self.assigns: Any = assigns
        self.broker: Broker = service.broker
        self.counts: Counter[str] = service.counts
        self.error_log: ErrorLog = service.error_log
        self.hub: Hub = service.broker.hub()
        self.limits: Bounds = service.limits
        self.promises: WeakSet[Any] | None = None
        self.serializer: Serializer = serializer
        self.tasks: Tasks = transport.tasks
        self.write: Write = transport.write
        self._service = service
        self._transport = transport
        self._identity: Identity | None = None if socket_id is None else service.identities.enter(socket_id)
        self.rate: RateLimiter = RateLimiter(service.quotas, self._identity)
        self._refusals: DelayedRefusals | None = None
        self._number = 0
        self._since = uptime() if since is None else since
        self._backlog = 0
        self._backlog_bytes = 0
        self._paused = False
        self._flowing = True
        self._end_reason: EndReason = "closed"
        self._closing: set[JoinedChannel] | None = None  # closing channels whose topics are already free
        self._closed: anyio.Event | None = None
        self._protocol: ClientProtocol[JoinedChannel, tuple[Channel[Any], Match]] = ClientProtocol(
            service.match, service.limits.channels
        )
        self._topics = self._protocol.members
        self._plainly_small = service.plainly_small
        self._decode_text = serializer.decode_text if type(serializer) is V2 else None
        service.connections.add(self)
        if socket_id is not None:
            self.hub.register(socket_id, self)

    # Called by the transport.

    def receive(self, frame: Frame) -> None:
        """Handle a message of the client; never raises, never waits."""
        # Fast path of a small event to a joined channel; `_receive` would do the same.
        if self._decode_text is not None and type(frame) is str and len(frame) <= self._plainly_small:
            try:
                message = self._decode_text(frame)
                joined = self._topics.get(message.topic)
                if joined is not None and message.event not in joined.events:
                    joined = None
            except Exception:  # noqa: BLE001 - `_receive` runs into it again, and answers
                self._receive(frame)
                return
            rate = self.rate
            if joined is not None and rate.prepaid and message.join_ref == joined.text_ref and type(message.ref) is str:
                rate.prepaid -= 1
                joined.receive(message)
            else:
                self._receive_message(message, frame, len(frame))
            return
        self._receive(frame)

    def _receive(self, frame: Frame) -> None:
        """Handle a message of any kind, outside of the fast path."""
        size = len(frame)
        if size > self._service.surely_small and frame_size(frame) > self.limits.message_bytes:
            self._fail(1009, "message_too_big", f"a message of over {self.limits.message_bytes} bytes")
            return
        try:
            if size > self._plainly_small:
                message = self.read(frame)  # the payload stays undecoded, and what is malformed is found
                size = self.weigh(frame)
            else:
                message = self.serializer.decode(frame)
        except TooManyNodes as error:
            self._fail(1009, error.code, str(error))
        except ProtocolError as error:
            self._fail(1011, "malformed_message", str(error))
        except Exception as error:  # noqa: BLE001 - the application may provide the serializer
            self.note_failed_serializer(error)
            self._fail(1011, "malformed_message", "the serializer failed")
        else:
            self._receive_message(message, frame, size)

    def _receive_message(self, message: Message, frame: Frame, size: int) -> None:
        if not is_plain(message):
            most, raw_refs = self.limits.header_bytes, keeps_refs_raw(self.serializer)
            try:
                message = check_header(message, frame, most, raw_refs=raw_refs)
            except ProtocolError as error:
                self._fail(1011, "malformed_message", str(error))
                return
        self._decide(message, size)

    def take(self, message: Message, weight: int) -> None:
        """Handle a decoded message with its bytes counted already; `weight` is still to be counted."""
        self._decide(message, weight)

    def _decide(self, message: Message, size: int) -> None:
        decision = self._protocol.receive(message)
        now = self._transport.heard
        excess = self.rate.draw(size, now, is_join=type(decision) is Join)
        if excess is None:
            self._act(decision, message)
        else:
            self._reject(decision, message, excess, size, now)

    def count_bytes(self, before: int, after: int) -> Excess | None:
        """Count the bytes of a growing body; return the excess if it is over a limit."""
        return self.rate.draw_bytes(before, after, anyio.current_time())

    def count_refused_body(self, size: int) -> None:
        """Count a refused body as refused messages, by its size; close the session if there are too many."""
        if not self.rate.draw_refusal(1 + size // HEAVY, anyio.current_time()):
            self._fail(1008, "flooding", "too many bodies that were refused")

    def count_frames(self, number: int) -> None:
        """Count frames other than messages, such as pings and fragments, as one message each.

        Such frames cannot be refused, because they get no answer; a client that stays beyond the rates is closed.
        """
        now = self._transport.heard
        excess = self.rate.draw_messages(number, now)
        if excess is None:
            return
        self.error_log.note(excess.code, logger, "%s: control frames or fragments", excess.code, number=number)
        if not self.rate.draw_refusal(number, now):
            self._fail(1008, "flooding", f"too many frames beyond the limits, the last {excess.code}")

    def weigh(self, frame: Frame) -> int:
        """Return the weight of a message in bytes or characters; raises `TooManyNodes`, a `ProtocolError`."""
        return weigh(self.serializer, frame, self.limits.message_nodes)

    def read(self, frame: Frame) -> Message:
        """Decode a message and check its header; raises `ProtocolError`, and any error of a faulty serializer."""
        return read_message(self.serializer, frame, self.limits.header_bytes)

    async def end(self) -> None:
        """Close the channels after the client has disconnected.

        Handlers have `shutdown_seconds` to finish, and then the same time for `terminate`.
        """
        if self.socket_id is not None:
            self.hub.unregister(self.socket_id, self)
        for promise in tuple(self.promises or ()):
            promise.drop()
        try:
            await self._close_channels((*self._topics.values(), *(self._closing or ())))
        finally:
            self._service.forget(self)
            self._forget_client()
            if self._closed is not None:
                self._closed.set()

    async def _close_channels(self, channels: Sequence[JoinedChannel]) -> None:
        await in_turns(channels, lambda joined: joined.close(self._end_reason))
        if all(joined.is_closed for joined in channels):
            return
        with anyio.move_on_after(self.limits.shutdown_seconds):
            for joined in channels:
                await joined.closed()
        for joined in channels:
            joined.abort(self._end_reason)
        for joined in channels:
            await joined.closed()

    def _forget_client(self) -> None:
        level = self._service.log_connect
        if level is not None and logger.isEnabledFor(level):
            logger.log(level, "Disconnected: number %d", self.number)
        if self._refusals is not None:
            self._refusals.drop()
        if self._identity is not None:
            self._service.identities.leave(self._identity, self._transport.heard)

    def hold(self) -> None:
        """Stop the short cut: broadcasts go to the transport's shelf, or through `Transport.write`, until `flow`."""
        self._flow(False)

    def flow(self) -> None:
        """Resume the short cut for broadcasts."""
        self._flow(True)

    def _flow(self, flowing: bool) -> None:
        if flowing is not self._flowing:
            self._flowing = flowing
            for joined in self._topics.values():
                joined.reroute()

    def log_open(self, params: Mapping[str, Any]) -> None:
        """Log that the client has connected, with its parameters, if a level is set."""
        level = self._service.log_connect
        if level is not None and logger.isEnabledFor(level):
            logger.log(level, "Connected: number %d, parameters %s", self.number, self.parameters.show_value(params))

    def abort(self) -> None:
        """Abort all channels: handlers are cancelled, `terminate` still has its time."""
        for joined in tuple(self._topics.values()):
            joined.abort("shutdown")

    # Called by joined channels.

    @property
    def socket_id(self) -> str | None:
        """The name of the client for `disconnect` and `kick`."""
        return None if self._identity is None else self._identity.name

    @property
    def number(self) -> int:
        """The number of the connection in logs."""
        self._number = self._number or next(self._service.numbers)
        return self._number

    @property
    def parameters(self) -> ParameterFilter:
        """The filter of payloads in logs."""
        return self._service.parameters

    @property
    def channels(self) -> int:
        """The number of topics that the client has joined or is joining."""
        return len(self._topics)

    @property
    def handler_watch(self) -> Watch | None:
        """The watch over the time limit of handlers; `None` if there is no limit."""
        seconds = self.limits.handler_seconds
        return watch_of_this_loop(seconds) if seconds < math.inf else None

    def short_cut(self, *, may_drop: bool) -> ShortCut | None:
        """Return the short cut for broadcasts to the client, or `None`."""
        if self._flowing:
            return self._transport.outlet, self._transport.writer
        return None if may_drop else self._transport.shelf

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Cancel:
        """Run an async function beside the handlers; return a function that cancels it."""
        return self.tasks.spawn(function, *args)

    def answer(self, message: Message, answer: Answer) -> None:
        """Answer a message in the name of the connection."""
        if answer.code:
            self.blame(message, answer.code)
        body = encode_payload(answer.response) if answer.reason else EMPTY
        frame = self.serializer.reply(answer.join_ref, message.ref, message.topic, answer.status, body)
        (self.refuse if answer.code and message.event == "phx_join" else self.write)(frame)

    def blame(self, message: Message, code: str) -> None:
        """Count and log a mistake of the client."""
        where = shown(message.event), shown(message.topic)
        self.error_log.note(code, logger, "%s: event %s on topic %s", code, *where)

    def refuse(self, frame: OutgoingFrame) -> None:
        """Send the answer to a refused join, after `refusal_seconds`."""
        seconds = self.limits.refusal_seconds
        if not seconds:
            self.write(frame)
            return
        self._refusals = self._refusals or DelayedRefusals(self.write, seconds)
        self._refusals.send(frame)

    def free(self, topic: str, joined: JoinedChannel) -> None:
        """Free a topic, unless another join has taken it; the channel itself closes later."""
        self._protocol.free(topic, joined)
        self._closing = self._closing or set()
        self._closing.add(joined)

    def forget(self, joined: JoinedChannel) -> None:
        """Remove a channel that has closed, its cleanups included."""
        if self._closing is not None:
            self._closing.discard(joined)
            self._closing = self._closing or None

    def add_backlog(self, message: Message) -> None:
        """Add a message of the client to the backlog; pause reading if the backlog is full."""
        self._backlog += 1
        self._backlog_bytes += message_size(message)
        if not self._paused and self._has_backlog(1.0):
            self._paused = True
            self._transport.pause()

    def remove_backlog(self, message: Message) -> None:
        """Remove a message of the client from the backlog; resume reading below half of the limit."""
        self._backlog -= 1
        self._backlog_bytes -= message_size(message)
        if self._paused and not self._has_backlog(0.5) and self._end_reason == "closed":
            self._paused = False
            self._transport.resume()

    # Called by the broker, the endpoint and the expiry timers.

    def handle_command(self, command: Command, said_at: float) -> None:
        """Handle a command to this `socket_id`, unless the connection or the channel is younger than the command."""
        if isinstance(command, Disconnect):
            if self._since <= said_at:
                self._transport.close(command.code, command.reason)
        elif (joined := self._topics.get(command.topic)) is not None and joined.since <= said_at:
            joined.kick(command.reason)
            self.tasks.spawn(self._see_closed, joined)

    async def _see_closed(self, joined: JoinedChannel) -> None:
        """Abort a kicked channel if its handler does not finish in time."""
        with anyio.move_on_after(self.limits.shutdown_seconds):
            await joined.closed()
        joined.abort("kicked")

    def resync(self, said_at: float) -> None:
        """Close the connection after a possible loss of commands: one may have been a disconnect."""
        if self._since <= said_at:
            self._transport.close(1012, "resync")

    def tell(self, event: str, payload: object) -> None:
        """Send an event in the name of the connection."""
        self.write(self.serializer.push(None, None, "phoenix", event, encode_payload(payload)))

    def reply(self, message: Message, status: str, payload: object) -> None:
        """Answer a message in the name of the connection, with a payload."""
        self.write(self.serializer.reply(None, message.ref, message.topic, status, encode_payload(payload)))

    def refresh(self, assigns: Any) -> None:
        """Replace the identity, and tell the channels."""
        self.assigns = assigns
        for joined in tuple(self._topics.values()):
            joined.refresh(assigns)

    def close(self, code: int, reason: str) -> None:
        """Close the connection; its channels end as after a disconnect of the client."""
        self._transport.close(code, reason)

    def drain(self, code: int, reason: str) -> None:
        """Close once the messages of the client are handled and answered; nothing more is read meanwhile.

        Handlers have `shutdown_seconds`, then they are cancelled.
        """
        if self._end_reason != "closed":
            return
        self._end_reason = "draining"
        is_busy = any(joined.is_busy for joined in self._topics.values())
        if is_busy or self.promises or self._transport.unfetched():
            self._paused = True
            self._transport.pause()
            self.tasks.spawn(self._close_drained, code, reason)
        else:
            self._transport.close(code, reason)

    async def _close_drained(self, code: int, reason: str) -> None:
        channels = tuple(self._topics.values())
        with anyio.move_on_after(self.limits.shutdown_seconds) as patience:
            for joined in channels:
                await joined.drained()
            while self.promises:
                for promise in tuple(self.promises):
                    await promise.given()
        for joined in channels if patience.cancelled_caught else ():
            if joined.is_busy:
                joined.abort("draining")
        unfetched = self._transport.unfetched()
        if unfetched is not None:
            with anyio.move_on_after(FETCH_SECONDS):
                await unfetched.wait()
        self._transport.close(code, reason)

    async def closed(self) -> None:
        """Wait until the client has disconnected and its channels have closed."""
        if self in self._service.connections:
            self._closed = self._closed or anyio.Event()
            await self._closed.wait()

    def _act(self, decision: Decision[JoinedChannel, tuple[Channel[Any], Match]], message: Message) -> None:
        match decision:
            case Push():
                decision.member.receive(message)
            case Answer():
                self.answer(message, decision)
            case Join():
                self._join(decision)
            case Leave():
                decision.member.leave(message)
            case Stale():
                self.counts["stale_message"] += 1
            case Refresh():
                lifetimes = self._service.lifetimes
                if lifetimes is None or not lifetimes.refresh(self, message):
                    self.answer(message, UNMATCHED)

    def _reject(
        self,
        decision: Decision[JoinedChannel, tuple[Channel[Any], Match]],
        message: Message,
        excess: Excess,
        size: int,
        now: float,
    ) -> None:
        """Refuse a message beyond the rates, or close the connection after too many refusals."""
        if not self.rate.draw_refusal(1 + size // HEAVY, now):
            self._fail(1008, "flooding", f"too many messages beyond the limits, the last {excess.code}")
        elif isinstance(decision, Leave | Stale) or (isinstance(decision, Answer) and not decision.code):
            self._act(decision, message)
        elif message.ref is None:
            self.blame(message, excess.code)
        else:
            self.answer(message, Answer(message.join_ref, "error", "rate limited", excess.code, excess.seconds))

    def _join(self, join: Join[JoinedChannel, tuple[Channel[Any], Match]]) -> None:
        if self._service.closed_by is not None and self._service.closing:
            self.counts["join_while_draining"] += 1
            self.answer(join.message, Answer(join.message.join_ref, "error", "restarting"))
            return
        channel, match = join.route
        if join.replaces is not None:
            join.replaces.give_way()
        joined = JoinedChannel(self, channel, join.message, match, join.replaces)
        self._topics[joined.topic] = joined
        joined.start(join.message)

    def _has_backlog(self, share: float) -> bool:
        """Whether the backlog has reached this share of its limits, in number or in bytes."""
        limits = self.limits
        return self._backlog >= share * limits.backlog or self._backlog_bytes > share * limits.message_bytes

    def note_failed_serializer(self, error: Exception) -> None:
        """Log an error of the client's serializer other than `ProtocolError`."""
        text = "The serializer of version %s failed"
        self.error_log.note("serializer_failed", logger, text, self.serializer.version, cause=error)

    def _fail(self, code: int, counter: str, why: str) -> None:
        self.error_log.note(counter, logger, "Connection closed with %d: %s", code, why)
        self._transport.close(code, counter)
