"""One client: its wire, what its messages mean, and the members that stand for its topics.

Bytes come in through `receive`, frames go out through a transport. Nothing here waits but the end.
"""

import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import anyio

from starlette_channels.channels.definition import Channel, EndReason
from starlette_channels.channels.joined import Member
from starlette_channels.connection.endings import end, expel, fetched, settle
from starlette_channels.connection.identities import Excess
from starlette_channels.connection.rate_limiter import HEAVY, Sender
from starlette_channels.connection.registry import Service
from starlette_channels.connection.transport import Transport
from starlette_channels.exceptions import ProtocolError
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.commands import Command, Disconnect
from starlette_channels.pubsub.hub import Hub, ShortCut
from starlette_channels.runtime.tasks import Cancel, Tasks
from starlette_channels.runtime.uptime import uptime
from starlette_channels.wire.headers import check_header, is_plain, read_message
from starlette_channels.wire.messages import (
    EMPTY,
    Frame,
    Message,
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
from starlette_channels.wire.serializers import Serializer, keeps_refs_raw
from starlette_channels.wire.topics import Match

if TYPE_CHECKING:
    from weakref import WeakSet

    from starlette_channels.channels.link import PromisedReply

logger: logging.Logger = logging.getLogger("starlette_channels.connection")


class Connection(Sender):
    """One client. Its transport hands it what arrives and tells it when there is nothing more to come."""

    __slots__ = (
        "_backlog",
        "_backlog_bytes",
        "_end_reason",
        "_ending",
        "_flowing",
        "_over",
        "_paused",
        "_protocol",
        "_since",
        "_transport",
        "app",
        "assigns",
        "hub",
        "promises",
        "serializer",
        "tasks",
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
        super().__init__(service, transport.write, socket_id)
        self.app: Any = app
        self.assigns: Any = assigns
        self.hub: Hub = service.broker.hub()
        self.promises: WeakSet[PromisedReply] | None = None
        self.serializer: Serializer = serializer
        self.tasks: Tasks = transport.tasks
        self._transport = transport
        self._since = uptime() if since is None else since
        self._backlog = 0
        self._backlog_bytes = 0
        self._paused = False
        self._flowing = True
        self._end_reason: EndReason = "closed"
        self._ending: set[Member] | None = None  # those whose topics are free, but which have not ended yet
        self._over: anyio.Event | None = None
        self._protocol: ClientProtocol[Member, tuple[Channel[Any], Match]] = ClientProtocol(
            service.match, service.limits.channels
        )
        service.connections.add(self)
        if socket_id is not None:
            self.hub.enlist(socket_id, self)

    # What the transport calls.

    def receive(self, frame: Frame) -> None:
        """Take a message of the client; it never raises and never waits."""
        size = len(frame)
        if size > self._service.surely_small and frame_size(frame) > self.limits.message_bytes:
            self._fail(1009, "message_too_big", f"a message of over {self.limits.message_bytes} bytes")
            return
        try:
            if size > self._service.plainly_small:
                size = self.weigh(frame)
                message = self.read(frame)
            elif not is_plain(message := self.serializer.decode(frame)):
                message = check_header(
                    message, frame, self.limits.header_bytes, raw_refs=keeps_refs_raw(self.serializer)
                )
        except TooManyNodes as error:
            self._fail(1009, error.code, str(error))
            return
        except ProtocolError as error:
            self._fail(1011, "malformed_message", str(error))
            return
        except Exception as error:  # noqa: BLE001 - serializers may be the application's
            self.note_failed_serializer(error)
            self._fail(1011, "malformed_message", "the serializer failed")
            return
        decision = self._protocol.receive(message)
        if self._drawn and size < HEAVY and type(decision) is Push:
            self._drawn -= 1
            decision.member.receive(message)
            return
        now = self._transport.heard
        excess = self._draw(size, now, is_join=type(decision) is Join)
        if excess is None:
            self._obey(decision, message)
        else:
            self._curb(decision, message, excess, size, now)

    def take(self, message: Message, weight: int) -> None:
        """Take a message that has been read, and whose bytes have been counted; `weight` is what comes on top."""
        decision = self._protocol.receive(message)
        now = self._transport.heard
        excess = self._draw(weight, now, is_join=type(decision) is Join)
        if excess is None:
            self._obey(decision, message)
        else:
            self._curb(decision, message, excess, weight, now)

    def count_bytes(self, before: int, after: int) -> Excess | None:
        """Count the bytes of a body that grows; return what they are beyond, if they are."""
        return self._draw_bytes(before, after, anyio.current_time())

    def count_refused_body(self, size: int) -> None:
        """Count a body that is refused as so many messages beyond the rates; the session of who goes on ends."""
        if not self._draw_refusal(1 + size // HEAVY, anyio.current_time()):
            self._fail(1008, "flooding", "too many bodies that were refused")

    def count_frames(self, number: int) -> None:
        """Count frames that are no messages, such as pings and fragments, as so many messages.

        Nothing is refused, because there is nothing to answer; a client that goes on beyond the rates is closed.
        """
        now = self._transport.heard
        excess = self._draw_messages(min(number, self._service.quotas.heaviest), now)
        if excess is None:
            return
        self._service.error_log.note(excess.code, logger, "%s: control frames or fragments", excess.code, number=number)
        if not self._draw_refusal(number, now):
            self._fail(1008, "flooding", f"too many frames beyond the limits, the last {excess.code}")

    def weigh(self, frame: Frame) -> int:
        """Return the bytes or characters that a message counts for; raises `TooManyNodes`, a `ProtocolError`."""
        return weigh(self.serializer, frame, self.limits.message_nodes)

    def read(self, frame: Frame) -> Message:
        """Decode a message and check its header; raises `ProtocolError`, or what the serializer should not."""
        return read_message(self.serializer, frame, self.limits.header_bytes)

    async def end(self) -> None:
        """Let the members end, now that the client is gone.

        Handlers have `shutdown_seconds` to finish, and then as long again for `terminate`.
        """
        if self.socket_id is not None:
            self.hub.dismiss(self.socket_id, self)
        for promise in tuple(self.promises or ()):
            promise.settle()
        try:
            members = *self._protocol.members.values(), *(self._ending or ())
            await end(members, self._end_reason, self.limits.shutdown_seconds)
        finally:
            self._service.forget(self)
            self._leave(self._transport.heard)
            if self._over is not None:
                self._over.set()

    def hold(self) -> None:
        """Let broadcasts go to the transport's shelf, or the long way, through `Transport.write`, until `flow`."""
        self._flow(False)

    def flow(self) -> None:
        """Let broadcasts take the short cut again."""
        self._flow(True)

    def _flow(self, flowing: bool) -> None:
        if flowing is not self._flowing:
            self._flowing = flowing
            for member in self._protocol.members.values():
                member.reroute()

    def abort(self) -> None:
        """Let the members end at once: handlers are cancelled, `terminate` still has its time."""
        for member in tuple(self._protocol.members.values()):
            member.abort("shutdown")

    # What members call.

    @property
    def broker(self) -> Broker:
        """Where broadcasts go."""
        return self._service.broker

    @property
    def limits(self) -> Bounds:
        """What this client may use."""
        return self._service.limits

    @property
    def counts(self) -> Counter[str]:
        """Where error_log are counted."""
        return self._service.counts

    @property
    def error_log(self) -> ErrorLog:
        """What counts and logs error_log."""
        return self._service.error_log

    @property
    def channels(self) -> int:
        """How many topics the client has joined or is joining."""
        return len(self._protocol.members)

    def short_cut(self, *, may_drop: bool) -> ShortCut | None:
        """Return the short cut for broadcasts to the client, while there is one."""
        if self._flowing:
            return self._transport.outlet, self._transport.writer
        return None if may_drop else self._transport.shelf

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Cancel:
        """Run an async function beside the others; return what cancels it."""
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
        self._service.error_log.note(code, logger, "%s: event %s on topic %s", code, *where)

    def free(self, topic: str, member: Member) -> None:
        """Note that a topic is free again, unless another member has taken it; the member goes on to end."""
        self._protocol.free(topic, member)
        self._ending = self._ending or set()
        self._ending.add(member)

    def forget(self, member: Member) -> None:
        """Note that a member has ended, its cleanups included."""
        if self._ending is not None:
            self._ending.discard(member)
            self._ending = self._ending or None

    def burden(self, message: Message) -> None:
        """Note that a message of the client has to wait, or its handler does."""
        self._backlog += 1
        self._backlog_bytes += message_size(message)
        if not self._paused and self._is_burdened(1.0):
            self._paused = True
            self._transport.pause()

    def relieve(self, message: Message) -> None:
        """Note that a message that had to wait has been dealt with."""
        self._backlog -= 1
        self._backlog_bytes -= message_size(message)
        if self._paused and not self._is_burdened(0.5) and self._end_reason == "closed":
            self._paused = False
            self._transport.resume()

    # What the broker, the endpoint and the watch over expiry call.

    def obey(self, command: Command, said_at: float) -> None:
        """Do what the server said to all clients of this one's identity, if it was there at that time."""
        if isinstance(command, Disconnect):
            if self._since <= said_at:
                self._transport.close(command.code, command.reason)
        elif (member := self._protocol.members.get(command.topic)) is not None and member.since <= said_at:
            member.kick(command.reason)
            self.tasks.spawn(expel, member, self.limits.shutdown_seconds)

    def resync(self, said_at: float) -> None:
        """Close the connection if a command to it may be lost, for that may have been to close it."""
        if self._since <= said_at:
            self._transport.close(1012, "resync")

    def tell(self, event: str, payload: object) -> None:
        """Send an event in the name of the connection."""
        self.write(self.serializer.push(None, None, "phoenix", event, encode_payload(payload)))

    def reply(self, message: Message, status: str, payload: object) -> None:
        """Answer a message in the name of the connection, with a payload."""
        self.write(self.serializer.reply(None, message.ref, message.topic, status, encode_payload(payload)))

    def renew(self, assigns: Any) -> None:
        """Take the identity that holds from now on, and let the channels see it."""
        self.assigns = assigns
        for member in tuple(self._protocol.members.values()):
            member.renew(assigns)

    def close(self, code: int, reason: str) -> None:
        """Close the connection; its members end as they do when the client goes."""
        self._transport.close(code, reason)

    def retire(self, code: int, reason: str) -> None:
        """Close once what the client has sent is handled and answered; nothing more is read meanwhile.

        Handlers have `shutdown_seconds`, then they are cancelled.
        """
        if self._end_reason != "closed":
            return
        self._end_reason = "draining"
        is_busy = any(member.is_busy for member in self._protocol.members.values())
        if is_busy or self.promises or self._transport.unfetched():
            self._paused = True
            self._transport.pause()
            self.tasks.spawn(self._close_settled, code, reason)
        else:
            self._transport.close(code, reason)

    async def _close_settled(self, code: int, reason: str) -> None:
        await settle(self, tuple(self._protocol.members.values()), self.limits.shutdown_seconds)
        await fetched(self._transport.unfetched())
        self._transport.close(code, reason)

    async def ended(self) -> None:
        """Wait until the client is gone and its members have ended."""
        if self in self._service.connections:
            self._over = self._over or anyio.Event()
            await self._over.wait()

    def _obey(self, decision: Decision[Member, tuple[Channel[Any], Match]], message: Message) -> None:
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

    def _curb(
        self,
        decision: Decision[Member, tuple[Channel[Any], Match]],
        message: Message,
        excess: Excess,
        size: int,
        now: float,
    ) -> None:
        """Refuse a message beyond the rates, or hang up on a client that has been refused too many."""
        if not self._draw_refusal(1 + size // HEAVY, now):
            self._fail(1008, "flooding", f"too many messages beyond the limits, the last {excess.code}")
        elif isinstance(decision, Leave | Stale) or (isinstance(decision, Answer) and not decision.code):
            self._obey(decision, message)
        elif message.ref is None:
            self.blame(message, excess.code)
        else:
            self.answer(message, Answer(message.join_ref, "error", "rate limited", excess.code, excess.seconds))

    def _join(self, join: Join[Member, tuple[Channel[Any], Match]]) -> None:
        if self._service.closing:
            self.counts["join_while_draining"] += 1
            self.answer(join.message, Answer(join.message.join_ref, "error", "restarting"))
            return
        channel, match = join.route
        if join.replaces is not None:
            join.replaces.replace()
        member = Member(self, channel, join.message, match, join.replaces)
        self._protocol.take(member.topic, member)
        member.start(join.message)

    def _is_burdened(self, share: float) -> bool:
        """Whether as many messages wait as may, or as large ones; or that share of them."""
        limits = self.limits
        return self._backlog >= share * limits.backlog or self._backlog_bytes > share * limits.message_bytes

    def note_failed_serializer(self, error: Exception) -> None:
        """Log that the client's serializer raised something else than it may."""
        text = "The serializer of version %s failed"
        self.error_log.note("serializer_failed", logger, text, self.serializer.version, cause=error)

    def _fail(self, code: int, counter: str, why: str) -> None:
        self._service.error_log.note(counter, logger, "Connection closed with %d: %s", code, why)
        self._transport.close(code, counter)
