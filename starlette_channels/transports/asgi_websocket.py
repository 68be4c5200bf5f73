"""The portable transport: a WebSocket through the `receive` and `send` of any ASGI server, on asyncio and trio."""

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

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
from starlette_channels.runtime.timers import clock_of_this_loop
from starlette_channels.runtime.turn_budget import SELDOM_BYTES, Pace, turns_of_this_loop
from starlette_channels.transports import BEHIND_BYTES, CLOSE_SECONDS, STEP_SECONDS, TURNS_TO_READ
from starlette_channels.transports.asgi_idle_sweep import idle_sweep_of_this_loop
from starlette_channels.transports.asgi_writer import CloseMessage, SendItem, writer_of_this_loop
from starlette_channels.transports.send_queue import ONE_BY_ONE, SendQueue
from starlette_channels.transports.slow_client import SlowClientCheck
from starlette_channels.transports.state import TransportState
from starlette_channels.wire.messages import Frame, OutgoingFrame, as_frame, frame_size

if TYPE_CHECKING:
    from starlette_channels.pubsub.hub import Outlet, Writer

logger: logging.Logger = logging.getLogger("starlette_channels.transport")

OPEN, CLOSING, ABORTING, CLOSED = TransportState

MESSAGES_IN_A_ROW = 16
"""Maximum messages of one client read before other tasks run."""

SLOWEST = 1_000_000
"""Bytes per second: a frame sent more slowly counts as stuck. ASGI does not report the progress of a send."""


class WebSocketTransport:
    """Frames to and from one client.

    The ASGI call of the server reads. On asyncio the shared writer of the event loop sends. A client has a queue, and a
    task of its own that sends, only while a send is suspended. On trio each client with frames to send has that task.
    """

    __slots__ = (
        *("in_flight", "state", "send"),  # read for each client of a broadcast; side by side in memory
        "_behind",
        "_behind_bytes",
        "_cancel_send",
        "_clock",
        "_connection",
        "_error_log",
        "_in_flight_bytes",
        "_limits",
        "_pace",
        "_paused",
        "_postponed",
        "_progress",
        "_queue",
        "_reading",
        "_shared_writer",
        "_silence_check",
        "_slow_check",
        "__weakref__",
        "heard",
        "outlet",
        "tasks",
    )

    shelf: None = None

    def __init__(self, send: Send, tasks: Tasks, limits: Bounds, error_log: ErrorLog) -> None:
        self.tasks: Tasks = tasks
        self.send: Send = send
        self.state: TransportState = OPEN
        self._limits = limits
        self._error_log = error_log
        self._connection: Connection | None = None
        self._clock = clock_of_this_loop()
        self.heard: float = self._clock()
        # Sending.
        self._shared_writer = writer_of_this_loop()
        self.outlet: Outlet = self._shared_writer or ONE_BY_ONE
        self.in_flight: SendItem | None = None
        self._in_flight_bytes = 0
        self._cancel_send: Cancel | None = None
        self._queue: SendQueue[SendItem] | None = None
        self._behind = False
        self._behind_bytes = min(BEHIND_BYTES, limits.outbox_bytes // 2)
        self._slow_check: SlowClientCheck | None = None
        # Reading.
        self._reading: anyio.CancelScope | None = None
        self._paused = False
        self._pace: Pace | None = None
        self._postponed: Frame | None = None
        self._silence_check: float | None = None
        self._progress: anyio.Event | None = None

    # Called by the connection.

    @property
    def writer(self) -> "Writer":
        """The object that represents this client in the outlet."""
        return self.write if self._shared_writer is None else self

    def write(self, frame: OutgoingFrame, place: Place | None = None) -> None:
        """Send a frame behind those before. A client with too much queued is closed with 1008."""
        if self.state is OPEN:
            self._send_soon(as_frame(frame), place)

    def close(self, code: int, reason: str = "") -> None:
        """Send the queued frames, then close. Calls after the first do nothing."""
        if self.state is OPEN:
            self.state = CLOSING
            self._send_soon(CloseMessage(code, reason))
            self._stop_reading()

    def unfetched(self) -> None:
        """Return `None`: nothing is lost by closing, since queued frames are sent first."""

    def pause(self) -> None:
        """Stop reading until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self.heard = self._clock()
        self._note_progress()

    # Reading.

    async def read(self, receive: Receive, connection: Connection) -> bool:
        """Hand the client's messages to its connection until one side closes; return whether the client did.

        A client that is silent for too long is closed.
        """
        self._connection = connection
        idle_sweep = idle_sweep_of_this_loop()
        idle_sweep.add(self)
        try:
            with anyio.CancelScope() as self._reading:
                return await self._read_until_end(receive, connection)
            return False
        finally:
            idle_sweep.remove(self)

    async def _read_until_end(self, receive: Receive, connection: Connection) -> bool:
        turns, clock = turns_of_this_loop(), self._clock
        in_a_row = 0
        while self.state is OPEN:
            if self._paused or self._in_flight_bytes:
                await self._wait_for_room()
            message = await receive()
            self.heard = now = clock()
            if self._postponed is not None:
                await self._wait_for_turn()
            if message["type"] == "websocket.disconnect":
                self._end()
                return True
            # Servers may send both keys, one of them empty.
            text: str | None = message.get("text")
            frame: Frame = message["bytes"] if text is None else text
            turns.left -= 1 if len(frame) < HEAVY else 1 + len(frame) // HEAVY
            is_late = turns.left < 0 and not turns.goes_on()
            if is_late or turns.is_crowded:
                self._pace = self._pace or Pace()
                is_fresh = len(frame) <= SELDOM_BYTES and self._pace.is_fresh(now)
                if is_late or not is_fresh:
                    self._postponed = frame
                    turns.enter(self, fresh=is_fresh)
                    continue
            connection.receive(frame)
            in_a_row += 1
            if in_a_row == MESSAGES_IN_A_ROW:  # servers may return buffered messages without suspending
                in_a_row = 0
                await anyio.lowlevel.checkpoint()
        return False

    def visit(self, most: int) -> int:
        """Handle the message postponed from an earlier turn of the event loop.

        Servers return buffered messages without suspending, so a client with many of them would always be next.
        """
        frame, self._postponed = self._postponed, None
        if frame is None or self._connection is None:
            return 0
        if self.state is OPEN:
            self._connection.receive(frame)
        self._note_progress()
        return 1 + len(frame) // HEAVY

    async def _wait_for_turn(self) -> None:
        while self._postponed is not None:
            await self._wait_for_progress()

    async def _wait_for_room(self) -> None:
        """Wait while handlers are too far behind, or too much is queued for the client."""
        while self._paused or self._waiting_bytes > self._limits.outbox_bytes // 2:
            await self._wait_for_progress()
            self.heard = self._clock()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    # Silence.

    @property
    def idle_seconds(self) -> float:
        """Idle timeout of the client in seconds."""
        return self._limits.idle_seconds

    def check_silence(self, now: float) -> None:
        """Close if the client has been silent for too long, after another look for unread messages."""
        if self._is_silent(now) and self._silence_check != self.heard:
            self._silence_check = self.heard
            self.tasks.spawn(self._read_first, self.heard)

    def _is_silent(self, now: float) -> bool:
        is_listened_to = self.state is OPEN and not self._paused and self._postponed is None
        return is_listened_to and now - self.heard >= self._limits.idle_seconds

    async def _read_first(self, heard: float) -> None:
        """Close a client that has been silent since `heard`, unless one of its messages is read meanwhile.

        Its messages may lie unread in the socket, or in a queue of the server: the process may have been blocked, or
        suspended. So the event loop has some turns to read them.
        """
        for _ in range(TURNS_TO_READ):
            await anyio.sleep(STEP_SECONDS)
        if self.heard != heard or not self._is_silent(self._clock()):
            self._silence_check = None
        elif self._waiting_bytes:
            self._abort_slow_client()
        else:
            text, seconds = "Connection closed: nothing from the client for %g seconds", self._limits.idle_seconds
            self._error_log.note("idle_timeout", logger, text, seconds, level=logging.INFO)
            self.close(1002, "idle_timeout")

    # Sending: the writer of the event loop, or a task of this client.

    def _send_soon(self, item: SendItem, place: Place | None = None) -> None:
        if place is not None:
            hash(place)  # raises TypeError here, where the caller of `push` sees it
        if self._shared_writer is None or (self.in_flight is not None and self._shared_writer.is_idle):
            self.enqueue(item, place)
        else:
            self._shared_writer.send(self, item, place)

    def enqueue(self, item: SendItem, place: Place | None = None) -> None:
        """Queue an item behind the one in flight; if there is none, send it in a task of its own."""
        if self.state is ABORTING or self.state is CLOSED:
            return
        if self.in_flight is None:
            self._put_in_flight(item)
            self._cancel_send = self.tasks.spawn(self.flush)
        else:
            self._queue = self._queue or SendQueue(self._limits.outbox_bytes, self._error_log.counts)
            self._queue.add(item, _size(item), place)
            if self._is_queue_full and self._slow_check is None and self.state is OPEN:
                self._slow_check = SlowClientCheck(sys.maxsize)
                self.tasks.spawn(self._watch_slow_client, self._slow_check)
        self._note_whether_behind()

    def suspended(self, item: SendItem, cancel: Cancel) -> None:
        """Note that the server has not taken an item at once; `cancel` ends the send."""
        if self.in_flight is None:
            self._put_in_flight(item)
        self._cancel_send = cancel
        self._note_whether_behind()

    async def flush(self) -> None:
        """Send the item in flight and the queued ones; an error means that the client is gone."""
        try:
            if self.state is CLOSED:
                self.in_flight = None
            while self.in_flight is not None and self._cancel_send is not None:
                if isinstance(self.in_flight, CloseMessage):
                    code, reason = self.in_flight
                    await self.send({"type": "websocket.close", "code": code, "reason": reason})
                    self._end()
                else:
                    key = "text" if isinstance(self.in_flight, str) else "bytes"
                    await self.send({"type": "websocket.send", key: self.in_flight})
                self.sent()
        except Exception as error:  # noqa: BLE001 - its type depends on the server
            self.connection_lost(error)
        finally:
            self.stopped()

    def sent(self) -> None:
        """Note that the item in flight has been sent, and take the next one from the queue."""
        if self.state is ABORTING and self._cancel_send is None:
            return  # the close is sent by another task: this one has been cancelled
        self.in_flight, self._in_flight_bytes = None, 0
        if self._queue is not None:
            self._put_in_flight(self._queue.pop())
            if not self._queue:
                self._queue = None
        if self._behind:
            self._note_whether_behind()
        if not self._is_queue_full:
            self._slow_check = None
        self._note_progress()

    def stopped(self) -> None:
        """Note that the task that was sending ends."""
        was_cancelled = self.in_flight is not None
        self.in_flight, self._in_flight_bytes, self._cancel_send = None, 0, None
        if self.state is ABORTING and self._queue is not None:
            self._put_in_flight(self._queue.pop())
            self._queue = None
            self._cancel_send = self.tasks.spawn(self.flush)
        elif was_cancelled:  # because the event loop ends
            self._end()
        self._note_progress()

    def _put_in_flight(self, item: SendItem) -> None:
        self.in_flight, self._in_flight_bytes = item, _size(item)

    @property
    def _waiting_bytes(self) -> int:
        return self._in_flight_bytes + (self._queue.bytes if self._queue is not None else 0)

    @property
    def _is_queue_full(self) -> bool:
        """Whether the queue exceeds its limit, after all drops that the policies allow."""
        return self._queue is not None and self._queue.is_full

    def _note_whether_behind(self) -> None:
        """Tell the channels when the client falls behind, so that they may drop messages, and when it has caught up."""
        behind = bool(self._waiting_bytes) if self._behind else self._waiting_bytes > self._behind_bytes
        if behind is not self._behind and self._connection is not None:
            self._behind = behind
            (self._connection.hold if behind else self._connection.flow)()

    async def _watch_slow_client(self, check: SlowClientCheck) -> None:
        """Abort if the queue stays full for `HANGING_SECONDS`, and for the time that a large frame in flight needs."""
        while check is self._slow_check and self._is_queue_full and self.state is OPEN:
            if check.is_confirmed(self._waiting_bytes, min(self._in_flight_bytes / SLOWEST, CLOSE_SECONDS)):
                self._abort_slow_client()
            else:
                await anyio.sleep(STEP_SECONDS)
        if check is self._slow_check:
            self._slow_check = None

    # Ending.

    def _abort_slow_client(self) -> None:
        """Drop the queued frames, and close. The sending task is stuck in the middle of a frame, so it is cancelled."""
        self._error_log.note("slow_client", logger, "Connection closed with 1008: %d bytes wait", self._waiting_bytes)
        self.state = ABORTING
        self._queue = SendQueue(self._limits.outbox_bytes, self._error_log.counts)
        self._queue.add(CloseMessage(1008, "slow_client"), 0)
        cancel, self._cancel_send = self._cancel_send, None
        if cancel is not None:
            cancel()
        self._stop_reading()

    def connection_lost(self, error: Exception) -> None:
        """Note that a send has failed: the client is gone."""
        logger.debug("The client is gone: %r", error)
        self._end()

    def _end(self) -> None:
        self.state = CLOSED
        self._queue = self._slow_check = None
        self._stop_reading()
        self._note_progress()

    async def closed(self) -> None:
        """Wait until the last frame and the close have been sent, for at most `CLOSE_SECONDS`."""
        await anyio.lowlevel.checkpoint()  # items in the log of the writer are sent, or in flight
        with anyio.move_on_after(CLOSE_SECONDS):
            while self.in_flight is not None or self.state is CLOSING:
                await self._wait_for_progress()
        self._end()
        self._connection = None  # breaks the reference cycle of the two
        if self._cancel_send is not None:
            self._cancel_send()

    def _note_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    async def _wait_for_progress(self) -> None:
        self._progress = self._progress or anyio.Event()
        await self._progress.wait()


def _size(item: SendItem) -> int:
    return 0 if isinstance(item, CloseMessage) else frame_size(item)


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
    is_client_gone = False

    async def end() -> None:
        try:
            await connection.end()
            await transport.closed()
        finally:
            over.set()

    try:
        is_client_gone = await transport.read(receive, connection)
    except Exception as error:  # noqa: BLE001 - it is logged
        error_log.note("transport_failed", logger, "The connection failed", cause=error)
        transport.close(1011, "transport_failed")
    except BaseException:
        connection.abort()  # the server has cancelled this call
        raise
    finally:
        # In a separate task, so that it continues if the server cancels this call.
        tasks.spawn(end)
        await _wait_for_end(over, connection)
        await tasks.finish(limits.shutdown_seconds)
    if not is_client_gone:
        discard_incoming(receive)


async def _wait_for_end(over: anyio.Event, connection: Connection) -> None:
    try:
        with anyio.CancelScope(shield=True):
            await over.wait()
    except BaseException:
        connection.abort()
        raise


def discard_incoming(receive: Receive) -> None:
    """Discard messages that hypercorn delivers after the close, in a task; the ASGI call does not wait for it."""
    if "hypercorn" in sys.modules:
        Tasks().spawn(_discard_incoming, receive)


async def _discard_incoming(receive: Receive) -> None:
    """Read until no message arrives for `CLOSE_SECONDS`.

    Hypercorn 0.18 passes messages, and the disconnect, through a queue of ten. If the queue is full and the ASGI call
    has ended, hypercorn blocks forever, and keeps the memory of the connection.
    """
    is_over = False
    while not is_over:
        with anyio.move_on_after(CLOSE_SECONDS) as waiting:
            await receive()
        is_over = waiting.cancelled_caught


def warn_about_server() -> None:
    """Log a warning under daphne: it does not wait for slow clients, and buffers without limit for them."""
    if "daphne" in sys.modules:
        logger.warning("daphne buffers without bound for clients that do not read: prefer uvicorn or hypercorn")
