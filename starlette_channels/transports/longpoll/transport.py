"""The long-poll transport: a session of a client that fetches frames with one GET after the other, on asyncio and trio.

Frames are queued until the client polls. A session expires when its client does not poll any more.
Source: Phoenix's `transports/long_poll_server.ex`.
"""

import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, Protocol, TypeAlias

import anyio
import anyio.lowlevel
from anyio.lowlevel import RunVar
from msgspec import Struct

from starlette_channels.arguments import check_fields
from starlette_channels.channels.backpressure import Place
from starlette_channels.connection.connection import Connection
from starlette_channels.exceptions import ProtocolError
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.runtime.tasks import Cancel, Tasks
from starlette_channels.runtime.turn_budget import turns_of_this_loop
from starlette_channels.transports import BEHIND_BYTES, STEP_SECONDS, TURNS_TO_READ
from starlette_channels.transports.longpoll.bodies import BodyRefused, RequestBody, no_room
from starlette_channels.transports.longpoll.sessions import Sessions
from starlette_channels.transports.send_queue import ONE_BY_ONE, OneByOne, SendQueue
from starlette_channels.transports.state import TransportState
from starlette_channels.wire.messages import Frame, Message, frame_size

logger: logging.Logger = logging.getLogger("starlette_channels.transport")

EXPIRY_WINDOWS = 1.75
"""Windows from the last poll to the expiry of a session; 1.5 to 3 in Phoenix, because it checks periodically."""

BETWEEN_POLLS_SECONDS = 1.0
"""Normal time from one poll to the next: only a client that takes longer is slow, regardless of its queue."""

MOST_POSTS = 8
"""POST requests that one session may have at the same time; clients send one at a time."""

SLICE_MESSAGES = 8
SLICE_BYTES = 1 << 16
"""Messages, or bytes of them, of one body that are handled in one turn of the event loop."""


class LongPoll(Struct, frozen=True, kw_only=True):
    """Options of long-polling: `Channels(longpoll=LongPoll(window_seconds=5.0))`; `longpoll=True` for the defaults."""

    path: str = "/longpoll"
    """Path below the mount; it may have variables, as in `Channels(path=...)`. phoenix.js expects the default."""

    window_seconds: float = 10.0
    """Seconds that a poll waits for messages. phoenix.js gives up after 20 seconds.

    A session expires 1.75 windows after its last poll.
    """

    body_bytes: int = 8_000_000
    """Size of the body of a request in bytes. A longer one is answered 400.

    While it is read, its bytes count against `Limits.message_rate`, as one message for each 16,384; beyond the rate,
    the answer is 429. One body of a session is read at a time.
    """

    batch_lines: int = 100
    """Messages in one request. Further ones are ignored, logged and counted."""

    held_bytes: int = 16_000_000
    """Maximum bytes of all bodies being read or handled in this process, without the first 16,384 of each. When there
    are more, the largest body is answered 503."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for values out of bounds."""
        check_fields(self)


Gone: TypeAlias = Callable[[], Coroutine[Any, Any, object]]
"""Waits until the client of a request has disconnected."""


class PollAnswer(Protocol):
    """Sends the response to a poll."""

    def __call__(self, status: int, frames: Iterable[Frame] = ()) -> Coroutine[Any, Any, object]:
        """Send it; raises the exception of the server if the client is gone."""
        ...


class LongPollTransport:
    """One session: frames to and from a client that polls."""

    outlet: OneByOne = ONE_BY_ONE
    shelf: None = None

    def __init__(
        self,
        options: LongPoll,
        limits: Bounds,
        error_log: ErrorLog,
        sessions: Sessions["LongPollTransport"],
        connect: Callable[["LongPollTransport"], Connection],
    ) -> None:
        self.token: str = sessions.issue()
        self._options = options
        self._limits = limits
        self._error_log = error_log
        self._sessions = sessions
        self.state: TransportState = TransportState.OPEN
        self._loop = anyio.lowlevel.current_token()
        self.tasks: Tasks = Tasks(error_log.counts)
        self.writer: Callable[[Frame], None] = self.write
        self._session_tasks = Tasks()
        self.heard: float = anyio.current_time()
        self._outbox = SendQueue[Frame](limits.outbox_bytes, error_log.counts)
        self._taken: list[Frame] = []
        self._taken_bytes = 0
        self._answering = False
        self._behind = False
        self._behind_bytes = min(BEHIND_BYTES, limits.outbox_bytes // 2)
        self._slow_check: Cancel | None = None
        self._polls: set[anyio.Event] = set()
        self._newest: anyio.Event | None = None
        self._answered = 0
        self._posting = anyio.Lock()
        self._posts: set[RequestBody] = set()
        self._resumed: anyio.Event | None = None
        self._fetched: anyio.Event | None = None
        self._expires_at = self._next_expiry()
        self._open = anyio.CancelScope(deadline=self._expires_at)
        self._connection = connect(self)
        sessions.add(self.token, self)
        self._session_tasks.spawn(self._run)

    @property
    def is_closed(self) -> bool:
        """Whether the session is closed; its channels may still be ending."""
        return self.state is TransportState.CLOSED

    @property
    def is_here(self) -> bool:
        """Whether the session belongs to the running event loop."""
        return self._loop == anyio.lowlevel.current_token()

    # Called by the connection.

    def write(self, frame: Frame, place: Place | None = None) -> None:
        """Queue a frame for the next poll. If too much is queued, and no poll comes, the session closes with 1008."""
        if self.is_closed:
            return
        self._outbox.add(frame, frame_size(frame), place)
        self._note_whether_behind()
        self._wake()
        if self._waiting_bytes > self._limits.outbox_bytes and self._slow_check is None:
            self._slow_check = self.tasks.spawn(self._watch_slow_client)

    @property
    def _waiting_bytes(self) -> int:
        return self._outbox.bytes + self._taken_bytes

    def _note_whether_behind(self) -> None:
        """Tell the channels when the client falls behind, so that they may drop messages, and when it has caught up."""
        behind = bool(self._waiting_bytes) if self._behind else self._waiting_bytes > self._behind_bytes
        if behind is not self._behind:
            self._behind = behind
            (self._connection.hold if behind else self._connection.flow)()

    def close(self, code: int, reason: str = "") -> None:
        """Close the session. A poll that waits gets the queued messages; later requests are answered 410."""
        if self.is_closed:
            return
        self.state = TransportState.CLOSED
        self._sessions.remove(self.token)
        self._open.cancel()
        for poll in self._polls:
            poll.set()
        for body in self._posts:
            body.cancel()
        self.resume()
        logger.debug(
            "Session closed with %d (%s): %d messages were not fetched",
            code,
            reason,
            len(self._taken) + len(self._outbox),
        )

    def unfetched(self) -> anyio.Event | None:
        """Return an event that is set when the client has fetched the queued messages; `None` if there are none."""
        if self.is_closed or not (self._taken or self._outbox):
            return None
        self._fetched = self._fetched or anyio.Event()
        return self._fetched

    def pause(self) -> None:
        """Stop handling messages of the client until `resume`."""
        self._resumed = self._resumed or anyio.Event()

    def resume(self) -> None:
        """Handle messages again."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    # POST: messages of the client.

    async def take(self, body: RequestBody, chunks: AsyncIterator[bytes]) -> int:
        """Read a body, hand its messages to the connection in order, and return 200; 410 if the session is closed.

        One body of a session is read and handled at a time; the bodies of further requests are not read meanwhile.
        Returns 408 if handlers are so far behind that not all messages are handled within a window. Raises
        `BodyRefused` for a body beyond the limits, and `ProtocolError` for a malformed message; those before it have
        been handled then. Too many of either close the session.
        """
        self.heard = anyio.current_time()
        if len(self._posts) >= MOST_POSTS:
            raise BodyRefused(429, "too_many_posts", f"{MOST_POSTS} requests of this session are not answered yet")
        self._posts.add(body)
        try:
            with anyio.CancelScope() as scope:
                body.cancel = scope.cancel
                return await self._take_in_turn(body, chunks)
            if body.is_evicted:
                raise no_room()
            return 410
        except (BodyRefused, ProtocolError):
            self._connection.count_refused_body(body.size)
            raise
        finally:
            self._posts.discard(body)

    async def _take_in_turn(self, body: RequestBody, chunks: AsyncIterator[bytes]) -> int:
        with anyio.move_on_after(self._options.window_seconds) as waiting:
            await self._posting.acquire()
        if waiting.cancelled_caught:
            return self._note_that_handlers_are_behind()
        try:
            if self.is_closed:
                return 410
            await self._read(body, chunks)
            return await self._hand_over(body)
        finally:
            self._posting.release()

    async def _read(self, body: RequestBody, chunks: AsyncIterator[bytes]) -> None:
        """Read a body; raises `BodyRefused` if the rates of the client, or the memory for bodies, do not allow it."""
        seconds = self._limits.idle_seconds
        with anyio.move_on_after(seconds):
            async for chunk in chunks:
                before = body.size
                body.feed(chunk)
                self._check_size(body, body.size)
                excess = self._connection.count_bytes(before, body.size)
                if excess is not None:
                    raise BodyRefused(429, excess.code, "rate limited", excess.seconds)
                if body.size > SLICE_BYTES:
                    async with _turn_of_bodies():
                        pass  # of all large bodies, one chunk is read at a time
            return
        raise BodyRefused(408, "body_timeout", f"the body has not come within {seconds:g} seconds")

    def check_announced(self, body: RequestBody, size: int) -> None:
        """Raise `BodyRefused` or `ProtocolError` for a body whose content-length is too big, before it is read."""
        try:
            self._check_size(body, size)
        except (BodyRefused, ProtocolError):
            self._connection.count_refused_body(0)
            raise

    def _check_size(self, body: RequestBody, size: int) -> None:
        if size > self._options.body_bytes:
            raise BodyRefused(400, "body_too_big", f"a body of over {self._options.body_bytes} bytes")
        if size > self._limits.message_bytes and not body.is_batch:
            raise ProtocolError(f"a message of over {self._limits.message_bytes} bytes")

    async def _hand_over(self, body: RequestBody) -> int:
        """Hand over the messages slice by slice, with turns for other bodies, and for other tasks, in between."""
        with anyio.move_on_after(self._options.window_seconds):
            beyond, frames = body.lines_beyond, body.frames(self._limits.message_bytes)
            while True:
                async with _turn_of_bodies():
                    status = self._take_slice(frames)
                if status is not None:
                    break
                while self._resumed is not None:
                    await self._resumed.wait()
            if beyond:
                text = "%d lines of a batch were ignored: it may have %d"
                self._error_log.note("batch_too_long", logger, text, beyond, self._options.batch_lines, number=beyond)
            return status
        return self._note_that_handlers_are_behind()

    def _take_slice(self, frames: Iterator[Frame]) -> int | None:
        """Hand some messages over; return the HTTP status when there are no more."""
        room, turns = SLICE_BYTES, turns_of_this_loop()
        for _ in range(SLICE_MESSAGES):
            if self._resumed is not None or room <= 0:
                return None
            frame = next(frames, None)
            if frame is None:
                return 200
            if self.is_closed:
                return 410
            room -= len(frame)
            message = self._decode(frame)
            self._connection.take(message, self._connection.weigh(frame) - len(frame))
            turns.left -= 1
            if turns.left < 0 and not turns.goes_on():  # WebSockets share the budget of the turn
                return None
        return None

    def _note_that_handlers_are_behind(self) -> int:
        text = "A batch was answered 408: the handlers are behind by more than %s"
        self._error_log.note("handlers_behind", logger, text, self._limits.backlog)
        return 408

    def _decode(self, frame: Frame) -> Message:
        """Decode a message; raises `ProtocolError` also if the serializer fails: the request is answered with it."""
        try:
            return self._connection.read(frame)
        except ProtocolError:
            raise
        except Exception as error:
            self._connection.note_failed_serializer(error)
            raise ProtocolError("the serializer failed") from error

    # GET: messages for the client.

    async def poll(self, gone: Gone, answer: PollAnswer) -> None:
        """Answer a poll: 200 with the queued messages, as soon as there are any; 204 if there are none in a window.

        It is answered 410 if the session is closed meanwhile. Of several polls the newest gets the messages. If its
        response cannot be sent, they stay queued for the next one.
        """
        woken = self._newest = anyio.Event()
        self._polls.add(woken)
        self._expire_at(math.inf)
        try:
            there = self._has_news() or self.is_closed or await self._wait(woken, gone)
            if there and self._newest is woken and self._has_news():
                await self._send(answer)
            else:
                await answer(410 if self.is_closed else 204)
        finally:
            self._polls.discard(woken)
            if self._newest is woken:
                self._newest = None
            self._expire_at(self._next_expiry())  # later than the end of any waiting poll

    async def _wait(self, woken: anyio.Event, gone: Gone) -> bool:
        """Wait for messages, for a window at most; return whether the client is still there."""
        there = True

        async def watch() -> None:
            nonlocal there
            await gone()
            there = False
            tasks.cancel_scope.cancel()

        with anyio.move_on_after(self._options.window_seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch)
                await woken.wait()
                tasks.cancel_scope.cancel()
        return there

    async def _send(self, answer: PollAnswer) -> None:
        """Answer with all queued messages; if the response cannot be sent, the next one begins with them."""
        self._taken_bytes += self._outbox.bytes
        self._taken += self._outbox.drain()
        self._answering = True
        try:
            with anyio.move_on_after(self._options.window_seconds):
                await answer(200, self._taken)
                self._taken, self._taken_bytes = [], 0
                self._answered += 1
                self._note_fetched()
        finally:
            self._answering = False
            self._note_whether_behind()
            self._wake()

    def _note_fetched(self) -> None:
        if self._fetched is not None and not self._outbox:
            self._fetched.set()
            self._fetched = None

    def _has_news(self) -> bool:
        """Whether there are messages for a poll; none while a response is being sent, because that may fail."""
        return bool(self._taken or self._outbox) and not self._answering

    def _wake(self) -> None:
        if self._newest is not None and self._has_news():
            self._newest.set()

    async def _watch_slow_client(self) -> None:
        """Close the session if too much is queued, and the client does not poll in time."""
        while self._waiting_bytes > self._limits.outbox_bytes and not self.is_closed:
            before = self._answered
            await anyio.sleep(BETWEEN_POLLS_SECONDS)
            if self._answered == before and self._waiting_bytes > self._limits.outbox_bytes and not self.is_closed:
                text = "Session closed with 1008: %d bytes wait"
                self._error_log.note("slow_client", logger, text, self._waiting_bytes)
                self.close(1008, "slow_client")
        self._slow_check = None

    # Expiry and end.

    async def _run(self) -> None:
        """Wait until the session is closed or expires, then end its channels."""
        try:
            await self._wait_for_end()
            if not self.is_closed:
                text = "Session expired: its client has not polled for %g windows"
                self._error_log.note("session_expired", logger, text, EXPIRY_WINDOWS, level=logging.INFO)
        except BaseException:
            self._connection.abort()  # the event loop ends
            raise
        finally:
            self.close(1001, "session_expired")
            with anyio.CancelScope(shield=True):
                await self._connection.end()
                await self.tasks.finish(self._limits.shutdown_seconds)

    async def _wait_for_end(self) -> None:
        """Wait until the session is closed or expires.

        The next poll may be unread in a socket if the process has been blocked or suspended. So the event loop has
        some turns to read it before the session expires.
        """
        while True:
            with self._open:
                await anyio.sleep_forever()
            for _ in range(TURNS_TO_READ):
                if self.is_closed:
                    return
                await anyio.sleep(STEP_SECONDS)
            if self.is_closed or self._expires_at <= anyio.current_time():
                return
            self._open = anyio.CancelScope(deadline=self._expires_at)

    def _expire_at(self, until: float) -> None:
        self._expires_at = self._open.deadline = until

    def _next_expiry(self) -> float:
        return anyio.current_time() + EXPIRY_WINDOWS * self._options.window_seconds


_turns: RunVar[anyio.Lock] = RunVar("starlette_channels_turn_of_bodies")


def _turn_of_bodies() -> anyio.Lock:
    """Return the lock that one body of an event loop holds at a time, for one slice, first come, first served."""
    try:
        return _turns.get()
    except LookupError:
        lock = anyio.Lock()
        _turns.set(lock)
        return lock
