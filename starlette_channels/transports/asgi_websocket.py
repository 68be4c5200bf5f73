"""The portable transport: a WebSocket through the `receive` and `send` of any ASGI server, on asyncio and trio."""

import logging
import sys
from collections.abc import Callable

import anyio
import anyio.lowlevel
from starlette.types import Receive, Send

from starlette_channels.channels.backpressure import Place
from starlette_channels.connection.connection import Connection
from starlette_channels.connection.rate_limiter import HEAVY
from starlette_channels.connection.transport import Transport
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.runtime.tasks import Cancel, Tasks
from starlette_channels.runtime.turn_budget import Pace, Turns, turns_of_this_loop
from starlette_channels.transports import BEHIND_BYTES, CLOSE_SECONDS, HANGING_SECONDS, STEP_SECONDS, TURNS_TO_READ
from starlette_channels.transports.asgi_idle_sweep import silence_watch_of_this_loop
from starlette_channels.transports.asgi_writer import sweeper_of_this_loop
from starlette_channels.transports.send_queue import ONE_BY_ONE, OneByOne, SendQueue
from starlette_channels.wire.messages import Frame, Outgoing, as_frame, frame_size

logger: logging.Logger = logging.getLogger("starlette_channels.transport")

MESSAGES_IN_A_ROW = 16
"""So many of one client are dealt with before others have their turn."""

SLOWEST = 1_000_000
"""Bytes per second. A frame that leaves slower hangs; through ASGI we see it leave as a whole only."""


class WebSocketTransport:
    """Frames to and from one client. A writer task exists only while frames wait."""

    outlet: OneByOne = ONE_BY_ONE
    shelf: None = None

    def __init__(self, send: Send, tasks: Tasks, limits: Bounds, error_log: ErrorLog) -> None:
        self.tasks: Tasks = tasks
        self.writer: Callable[[Frame], None] = self.write
        self._send = send
        self._limits = limits
        self._error_log = error_log
        self._outbox: SendQueue[Frame] | None = None
        self._connection: Connection | None = None
        self._behind = False
        self._leaving: Frame | None = None
        self._leaving_bytes = 0
        self._sweeper = sweeper_of_this_loop()
        self._flushing = False
        self._abandoned = False
        self._cancel_send: Cancel | None = None
        self._suspected = False
        self._relieved = False
        self._closing: tuple[int, str] | None = None
        self._gone = False
        self.disconnected: bool = False
        self.heard: float = anyio.current_time()
        self._paused = False
        self._in_a_row = 0
        self._reading: anyio.CancelScope | None = None
        self._progress: anyio.Event | None = None
        self._waits = False  # for the client, to send or to take something
        self._suspected_silent = False
        self._pace: Pace | None = None
        self._turn: anyio.Event | None = None

    # What the connection calls.

    def write(self, frame: Outgoing, place: Place | None = None) -> None:
        """Queue a frame. A client that does not take what is sent is closed with 1008 once too much waits for it."""
        if self._gone or self._closing is not None:
            return
        frame = as_frame(frame)
        if not self._flushing and self._outbox is None:  # nothing waits, so this leaves next
            self._leaving, self._leaving_bytes = frame, frame_size(frame)
            if self._leaving_bytes > BEHIND_BYTES:
                self._note_whether_behind()
            self._start_flush()
            return
        if self._waiting_bytes > self._limits.outbox_bytes and not self._suspected:
            self._suspected = True
            self.tasks.spawn(self._watch_slow_client)
        if self._outbox is None:
            self._outbox = SendQueue(self._limits.outbox_bytes, self._error_log.counts)
        self._outbox.add(frame, frame_size(frame), place)
        self._note_whether_behind()
        self._start_flush()

    @property
    def _waiting_bytes(self) -> int:
        return self._leaving_bytes + (self._outbox.bytes if self._outbox is not None else 0)

    def _note_whether_behind(self) -> None:
        """Let the channels know that they may drop something now, or need not any more."""
        behind = bool(self._waiting_bytes) if self._behind else self._waiting_bytes > BEHIND_BYTES
        if behind is not self._behind and self._connection is not None:
            self._behind = behind
            (self._connection.hold if behind else self._connection.flow)()

    def close(self, code: int, reason: str = "") -> None:
        """Send what is queued, then close. The first call decides."""
        if self._gone or self._closing is not None:
            return
        self._closing = (code, reason)
        self._start_flush()
        if self._reading is not None:
            self._reading.cancel()

    def unfetched(self) -> None:
        """Nothing is lost by closing: what is queued goes first."""

    def pause(self) -> None:
        """Read nothing more until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self._note_progress()

    # Reading.

    async def read(self, receive: Receive, connection: Connection) -> None:
        """Hand the client's messages to its connection until one side closes, or the client is silent for too long."""
        self._connection = connection
        turns, watch = turns_of_this_loop(), silence_watch_of_this_loop()
        watch.add(self)
        try:
            await self._read_until_end(receive, connection, turns)
        finally:
            watch.remove(self)

    async def _read_until_end(self, receive: Receive, connection: Connection, turns: Turns) -> None:
        with anyio.CancelScope() as self._reading:
            while self._closing is None:
                await self._wait_for_room()
                self._waits = True
                message = await receive()
                self._waits = False
                self.heard = anyio.current_time()
                if message["type"] == "websocket.disconnect":
                    self.disconnected = True
                    self._lose()
                    return
                turns.left -= 1
                is_late = turns.left < 0 and not turns.goes_on()
                if is_late or turns.is_crowded:
                    await self._wait_for_turn(turns, is_late=is_late)
                # Servers may send both keys, one of them empty.
                text: str | None = message.get("text")
                frame: Frame = message["bytes"] if text is None else text
                if len(frame) >= HEAVY:
                    turns.left -= len(frame) // HEAVY
                connection.receive(frame)
                await self._let_others_go_on()

    async def _let_others_go_on(self) -> None:
        """Give way now and then: servers hand over what they have in store without a wait."""
        self._in_a_row += 1
        if self._in_a_row == MESSAGES_IN_A_ROW:
            self._in_a_row = 0
            await anyio.lowlevel.checkpoint()

    async def _wait_for_turn(self, turns: Turns, *, is_late: bool) -> None:
        """Wait until the event loop has time for a message, because others have sent many.

        Servers hand over what they have in store at once, so a client with much of it would always be the next. What is
        left of a turn is for clients that send seldom.
        """
        self._pace = self._pace or Pace()
        fresh = self._pace.is_fresh(self.heard)
        if is_late or not fresh:
            self._turn = anyio.Event()
            turns.enter(self, fresh=fresh)
            await self._turn.wait()

    def visit(self, most: int) -> int:
        """Let the reader go on with its message."""
        if self._turn is not None:
            self._turn.set()
            self._turn = None
        return 1

    async def _wait_for_room(self) -> None:
        """Wait while handlers are too far behind, or the client is with reading what it asked for."""
        while self._paused or self._waiting_bytes > self._limits.outbox_bytes // 2:
            self._waits = not self._paused
            await self._wait_for_progress()
            self._waits = False
            self.heard = anyio.current_time()

    # Silence.

    @property
    def idle_seconds(self) -> float:
        """How long the client may be silent."""
        return self._limits.idle_seconds

    def check_silence(self, now: float) -> None:
        """Close if the client has been silent for too long, and what it has sent has been read."""
        if self._waits and not self._suspected_silent and now - self.heard >= self._limits.idle_seconds:
            self._suspected_silent = True
            self.tasks.spawn(self._read_first, self.heard)

    async def _read_first(self, heard: float) -> None:
        """Close a client that has been silent since then, and goes on to be.

        Its messages may lie unread in the socket, or in a queue of the server: the process may have been blocked, or
        suspended. So the event loop has some turns to read them.
        """
        for _ in range(TURNS_TO_READ):
            await anyio.sleep(STEP_SECONDS)
        self._suspected_silent = False
        if self._closing is not None or self._gone or self.heard != heard or not self._waits:
            return
        if self._waiting_bytes:
            self._give_up_on_slow_client()
        else:
            text, seconds = "Connection closed: nothing from the client for %g seconds", self._limits.idle_seconds
            self._error_log.note("idle_timeout", logger, text, seconds, level=logging.INFO)
            self.close(1002, "idle_timeout")

    # Writing.

    def _start_flush(self) -> None:
        if self._flushing:
            return
        self._flushing = True
        if self._sweeper is not None:
            self._sweeper.add(self)
        else:
            self._cancel_send = self.tasks.spawn(self.flush)

    def waits(self, cancel: Cancel) -> None:
        """Take note that the client does not take what is sent, for now."""
        self._cancel_send = cancel

    async def flush(self) -> None:
        """Send what waits, and the close after it; then there is no writer until something waits again."""
        try:
            frame = self._turn_to_next() if self._leaving is None else self._leaving
            while frame is not None:
                await self._send({"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame})
                frame = self._turn_to_next()
            if self._closing is not None and not self._abandoned:
                await self._send_close(*self._closing)
                self._gone = True
        except Exception as error:  # noqa: BLE001 - servers raise what they like when the client is gone
            logger.debug("The client is gone: %r", error)
            self._lose()
        finally:
            self._flushing = self._abandoned = False
            self._leaving, self._leaving_bytes = None, 0
            self._cancel_send = None
            if self._closing is not None and not self._gone:
                self._start_flush()  # this writer was cancelled in the middle of a frame, but the close is still to go
            if self._progress is not None:
                self._note_progress()

    def _turn_to_next(self) -> Frame | None:
        """Take note that a frame has left, and return the one that leaves next."""
        self._leaving, self._leaving_bytes = None, 0
        if self._outbox:
            self._leaving = self._outbox.pop()
            self._leaving_bytes = frame_size(self._leaving)
            if not self._outbox:
                self._outbox = None
        if self._behind:
            self._note_whether_behind()
        if self._suspected:
            self._relieved = self._relieved or self._waiting_bytes <= self._limits.outbox_bytes
        if self._progress is not None:
            self._note_progress()
        return self._leaving

    async def _watch_slow_client(self) -> None:
        """Give up on a client for which too much waits and no less after a moment, or after what a large frame needs.

        A burst alone is no reason, nor is a second one after the first has left, nor a server that was busy.
        """
        while self._waiting_bytes > self._limits.outbox_bytes and self._closing is None:
            before, self._relieved = self._waiting_bytes, False
            waited = 0.0
            while waited < HANGING_SECONDS + min(self._leaving_bytes / SLOWEST, CLOSE_SECONDS):
                await anyio.sleep(STEP_SECONDS)
                waited += STEP_SECONDS
            if self._waiting_bytes >= before and not self._relieved and self._closing is None:
                self._give_up_on_slow_client()
        self._suspected = False

    async def _send_close(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason})

    def _give_up_on_slow_client(self) -> None:
        """Drop what waits, and close; the writer hangs in the middle of a frame, so it is cancelled."""
        self._error_log.note("slow_client", logger, "Connection closed with 1008: %d bytes wait", self._waiting_bytes)
        self._forget_what_waits()
        self._closing = (1008, "slow_client")
        self._abandoned = self._flushing
        self._start_flush()
        if self._cancel_send is not None:
            self._cancel_send()
        if self._reading is not None:
            self._reading.cancel()

    # Ending.

    def _lose(self) -> None:
        self._gone = True
        self._forget_what_waits()
        if self._reading is not None:
            self._reading.cancel()
        self._note_progress()

    def _forget_what_waits(self) -> None:
        self._leaving = self._outbox = None

    async def finished(self) -> None:
        """Wait until the last frame and the close have left, for as long as that may take."""
        with anyio.move_on_after(CLOSE_SECONDS):
            while self._flushing:
                await self._wait_for_progress()
        self._gone = True
        if self._cancel_send is not None:
            self._cancel_send()

    def _note_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    async def _wait_for_progress(self) -> None:
        self._progress = self._progress or anyio.Event()
        await self._progress.wait()


async def serve_websocket(
    receive: Receive,
    send: Send,
    connect: Callable[[Transport], Connection],
    limits: Bounds,
    error_log: ErrorLog,
) -> None:
    """Serve an accepted WebSocket until it is closed and its channels have ended."""
    tasks = Tasks(error_log.counts)
    transport = WebSocketTransport(send, tasks, limits, error_log)
    connection = connect(transport)
    over = anyio.Event()

    async def end() -> None:
        try:
            await connection.end()
            await transport.finished()
        finally:
            over.set()

    try:
        await transport.read(receive, connection)
    except Exception as error:  # noqa: BLE001 - it is logged
        error_log.note("transport_failed", logger, "The connection failed", cause=error)
        transport.close(1011, "transport_failed")
    except BaseException:
        connection.abort()  # a server that cancels us has no more patience
        raise
    finally:
        # In a task of its own, because a server's cancelling may come while we wait, and must not cut it short.
        tasks.spawn(end)
        await _wait_for_end(over, connection)
        await tasks.finish(limits.shutdown_seconds)
    if not transport.disconnected:
        forget_what_comes(receive)


async def _wait_for_end(over: anyio.Event, connection: Connection) -> None:
    try:
        with anyio.CancelScope(shield=True):
            await over.wait()
    except BaseException:
        connection.abort()
        raise


def forget_what_comes(receive: Receive) -> None:
    """Let hypercorn get rid of what comes after the close; it closes when the ASGI call has ended, so nobody waits."""
    if "hypercorn" in sys.modules:
        Tasks().spawn(_forget_what_comes, receive)


async def _forget_what_comes(receive: Receive) -> None:
    """Read on until nothing comes for a while.

    Hypercorn 0.18 hands over each message and then the end by way of a queue of ten, and waits for ever, with all that
    the connection holds, when that is full and the call has ended.
    """
    nothing_came = False
    while not nothing_came:
        with anyio.move_on_after(CLOSE_SECONDS) as waiting:
            await receive()
        nothing_came = waiting.cancelled_caught


def warn_about_server() -> None:
    """Warn of a server that does not wait for slow clients: what it buffers for them, no limit of ours can see."""
    if "daphne" in sys.modules:
        logger.warning("daphne buffers without bound for clients that do not read: prefer uvicorn or hypercorn")
