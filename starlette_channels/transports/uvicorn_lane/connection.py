"""The fast lane: bytes go directly from the event loop's transport to a client's connection, and frames directly back.

An idle client has no task, no queue and no timer. An outbox exists only while a client is behind.
"""

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from starlette_channels.channels.backpressure import Place
from starlette_channels.connection.connection import Connection
from starlette_channels.connection.rate_limiter import HEAVY
from starlette_channels.connection.transport import Transport
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.hub import ShortCut
from starlette_channels.runtime.tasks import Tasks
from starlette_channels.runtime.turn_budget import EVENTS_AT_ONCE, SELDOM_BYTES, Pace
from starlette_channels.transports import CLOSE_SECONDS, STEP_SECONDS
from starlette_channels.transports.send_queue import SendQueue
from starlette_channels.transports.slow_client import SlowClientCheck
from starlette_channels.transports.uvicorn_lane.frames import (
    FAILURES,
    SLICE_BYTES,
    Close,
    Event,
    Failure,
    FrameReader,
    Ping,
    close_frame,
    pong_frame,
)
from starlette_channels.transports.uvicorn_lane.idle_sweep import IdleSweep
from starlette_channels.transports.uvicorn_lane.read_buffer import ReadBuffer
from starlette_channels.transports.uvicorn_lane.write_batch import WriteBatch, WriteBytes, wire
from starlette_channels.wire.messages import OutgoingFrame

logger: logging.Logger = logging.getLogger("starlette_channels.transport")

LARGE_FRAME = 1 << 15
"""Characters from which a frame shares its bytes: it may go to several clients in a turn, like a presence state."""


class Lane(asyncio.Protocol):
    """One client on the fast lane; to its connection it is the transport."""

    __slots__ = (
        *("_closing", "_connection", "_deaf", "_error_log", "_gone", "_held", "_intake", "_is_reading", "_limits"),
        *("_loop", "_outbox", "_pace", "_pulse", "_queued", "_reader", "_register", "_server_tasks", "_straight"),
        *("_suspicion", "_transport", "_turns", "heard", "outlet", "tasks", "writer"),
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        pulse: IdleSweep,
        limits: Bounds,
        error_log: ErrorLog,
        max_bytes: int,
        register: set[Any],
        server_tasks: set[asyncio.Task[Any]],
    ) -> None:
        self.tasks: Tasks = Tasks(error_log.counts)
        self.outlet: WriteBatch = pulse.outlet
        self.writer: WriteBytes = transport.write
        self._transport = transport
        self._loop = loop
        self._pulse = pulse
        self._turns = pulse.turns
        self._limits = limits
        self._error_log = error_log
        self._reader = FrameReader(max_bytes)
        self._register = register
        self._server_tasks = server_tasks
        self.heard: float = loop.time()
        self._outbox: SendQueue[bytes] | None = None
        self._suspicion: SlowClientCheck | None = None
        self._is_reading = False
        self._held = False
        self._intake: ReadBuffer | None = None
        self._pace: Pace | None = None
        self._queued = False
        self._straight = True  # data can be handled at once: no buffer, no pause, not closing
        self._closing = False
        self._deaf = False
        self._gone = False

    def start(self, connect: Callable[[Transport], Connection]) -> None:
        """Create the connection, the receiver of the client's messages from now on."""
        self._connection: Connection = connect(self)
        self._register.add(self)
        self._pulse.add(self)

    def listen(self) -> None:
        """Resume reading, which was paused during the handshake."""
        self._regulate()

    # Called by the connection.

    def write(self, frame: OutgoingFrame, place: Place | None = None) -> None:
        """Queue a frame for the end of this turn of the loop, or until the client has caught up."""
        if self._closing:
            return
        if self._outbox is None:
            data = wire(frame) if len(frame) < LARGE_FRAME else self.outlet.shared_wire(frame)
            self.outlet.send(self.writer, data)
        else:
            self._queue(self.outlet.shared_wire(frame), place)

    def _queue(self, data: bytes, place: Place | None = None) -> None:
        if self._closing:
            return
        if self._outbox is None:
            self.outlet.send(self.writer, data)
            return
        self._outbox.add(data, len(data), place)
        if self._outbox.is_full:
            self._suspect_slow_client()

    @property
    def shelf(self) -> ShortCut | None:
        """The queue for broadcasts while the client is behind; `None` otherwise."""
        return None if self._outbox is None else (self.outlet.shelf, self._queue)

    def close(self, code: int, reason: str = "") -> None:
        """Send the queued frames, then close. Calls after the first do nothing."""
        if self._closing:
            return
        self._say_goodbye(code, reason)

    def unfetched(self) -> None:
        """Return `None`: nothing is lost by closing, since queued frames are sent first."""

    def pause(self) -> None:
        """Stop reading until `resume`."""
        self._held = True
        self._straight = False
        self._regulate()

    def resume(self) -> None:
        """Read again, beginning with the buffered data."""
        self._held = False
        if self._intake is None:
            self._straight = not self._closing
            self._regulate()
        else:
            self._queue_up()

    # Called by the idle sweep.

    @property
    def idle_seconds(self) -> float:
        """Idle timeout of the client in seconds."""
        return self._limits.idle_seconds

    def is_silent(self, now: float) -> bool:
        """Whether the client has been silent for too long while its messages were read."""
        is_heard = self._closing or self._held or self._intake is not None
        return not is_heard and now - self.heard >= self._limits.idle_seconds

    def give_up(self) -> None:
        """Close because the client has been silent for too long."""
        if self._outbox is not None:
            self._give_up_on_slow_client()
            return
        text, seconds = "Connection closed: nothing from the client for %g seconds", self._limits.idle_seconds
        self._error_log.note("idle_timeout", logger, text, seconds, level=logging.INFO)
        self.close(1002, "idle_timeout")

    # Called by the event loop.

    def data_received(self, data: bytes) -> None:
        """Handle bytes of the client."""
        self.heard = self._loop.time()
        if self._straight:
            message = self._reader.read_one(data)
            if message is not None:
                turns = self._turns
                turns.left -= 1
                if turns.left >= 0 or turns.goes_on():
                    self._connection.receive(message)
                else:
                    self._begin_intake(ReadBuffer((message,)))
                    self._queue_up(fresh=self._is_fresh())
                return
        if self._intake is not None:
            self._read_no_more(data)
        elif self._deaf and len(data) > SLICE_BYTES:
            self._ignore()
        else:
            self._begin_intake(ReadBuffer(data=data))
            self._take_in(len(data))

    def _begin_intake(self, intake: ReadBuffer) -> None:
        self._intake = intake
        self._straight = False

    def _take_in(self, size: int) -> None:
        """Handle one slice of the received data at once, if there is time left in this turn."""
        turns = self._turns
        turns.left -= 1
        # A client that sends much must not overtake waiting clients: they would be read in ever smaller pieces.
        if turns.is_crowded or not (turns.left >= 0 or turns.goes_on()):
            self._queue_up(fresh=size <= SELDOM_BYTES and self._is_fresh())
        elif not self._held or self._closing:
            turns.left -= self.visit(EVENTS_AT_ONCE) - 1
        if self._intake is not None:
            self._regulate()

    def _read_no_more(self, data: bytes) -> None:
        """Buffer data behind the waiting data, and pause reading until that is handled."""
        assert self._intake is not None
        if self._deaf:
            self._ignore()
        else:
            self._intake.add(data)  # with TLS, data may arrive although reading is paused
            self._regulate()

    def _ignore(self) -> None:
        """Stop reading from a client that keeps sending after a close with a failure code."""
        self._reader.stop()
        self._is_reading = False
        self._transport.pause_reading()

    def _is_fresh(self) -> bool:
        self._pace = self._pace or Pace()
        return self._pace.is_fresh(self.heard)

    def _queue_up(self, *, fresh: bool = False) -> None:
        if self._intake is not None and not self._queued:
            self._queued = True
            self._turns.enter(self, fresh=fresh)

    def visit(self, most: int) -> int:
        """Handle one slice of the buffered data, and leave the rest for the next turn of the event loop."""
        self._queued = False
        intake = self._intake
        if intake is None or self._gone:
            return 0
        events = intake.events
        if not events:
            intake.read(self._reader)
            if self._reader.uncounted:
                self._count_frames()
        done = 0
        while events and done < most and self._intake is intake and (self._closing or not self._held):
            event = events.popleft()
            done += 1
            if (type(event) is str or type(event) is bytes) and len(event) >= HEAVY:
                done += len(event) // HEAVY
            self._act(event)
        if self._intake is not intake:
            return done  # dropped after a close with a failure code
        if intake.is_empty:
            self._intake = None
            self._straight = not (self._held or self._closing)
            self._regulate()
        elif self._closing or not self._held:
            self._queue_up()
        return done or 1

    def _count_frames(self) -> None:
        number, self._reader.uncounted = self._reader.uncounted, 0
        if not self._closing:
            self._connection.count_frames(number)

    def _act(self, event: Event) -> None:
        if type(event) is str or type(event) is bytes:
            if not self._closing:
                self._connection.receive(event)
        else:
            self._obey(event)

    def _obey(self, event: Event) -> None:
        """Handle pings, closes and protocol violations."""
        if isinstance(event, Ping):
            if not self._closing and self._outbox is None:
                self.outlet.send(self.writer, pong_frame(event.data))
        elif isinstance(event, Close):
            self._answer_close(event)
        elif isinstance(event, Failure):
            code = "message_too_big" if event.code == 1009 else "broken_frame"
            self._error_log.note(code, logger, "Connection closed with %d: %s", event.code, event.reason)
            self.close(event.code, event.reason if code == "broken_frame" else code)
            self.outlet.afterwards(self._hang_up)

    def eof_received(self) -> bool:
        """Close after everything logged has been written: the end of the client's data means that it is gone.

        The last data may be a close frame with the reason. With TLS the transport closes by itself.
        """
        if not self._transport.can_write_eof():
            return False
        self.outlet.afterwards(self._transport.close)
        return True

    def pause_writing(self) -> None:
        """Queue frames in the outbox: the client is behind with reading."""
        self._outbox = SendQueue(self._limits.outbox_bytes, self._error_log.counts)
        self._connection.hold()
        self._regulate()

    def resume_writing(self) -> None:
        """Send the outbox: the client has caught up."""
        self._release()
        if not self._closing and self._outbox is None:  # the outbox may have filled the buffer again
            self._connection.flow()
        self._regulate()

    def _release(self) -> None:
        """Send the outbox, behind the frames that are still being sent."""
        self._suspicion = None
        outbox, self._outbox = self._outbox, None
        if outbox is not None and len(outbox):
            self.outlet.send(self.writer, b"".join(outbox.pop() for _ in range(len(outbox))))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection: the client is gone."""
        if self._gone:
            return
        self._gone = self._closing = True
        self._straight = False
        self._outbox = None
        self.outlet.leave_out(self.writer)
        self._pulse.remove(self)
        self.tasks.begin(self._end())  # held by the server's tasks

    # Called by uvicorn.

    def shutdown(self) -> None:
        """Close because the server stops."""
        self.close(1012, "restart")

    def _answer_close(self, close: Close) -> None:
        if not self._closing:
            self._write_last(close_frame(close.code, ""))
        self.outlet.afterwards(self._transport.close)

    def _hang_up(self) -> None:
        """Send EOF after a protocol violation; the client's answer is not awaited (RFC 6455, §7.1.7).

        Closing outright would reset the connection while bytes of the client are unread, and then the client might
        never see the close frame.
        """
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            with suppress(OSError):  # the client has closed already
                self._transport.write_eof()
        else:  # TLS: closing includes its own end of data
            self._transport.close()

    def _say_goodbye(self, code: int, reason: str) -> None:
        self._write_last(close_frame(code, reason))
        if code in FAILURES:
            self._deaf = True
            if self._intake is not None and not self._intake.is_empty:
                self._reader.stop()
            self._intake = None
        else:
            self._queue_up()
        self._regulate()  # to read the client's close frame

    def _write_last(self, data: bytes) -> None:
        self._release()
        self._closing = True
        self._straight = False
        self.outlet.leave_out(self.writer)
        self.outlet.send(self.writer, data)
        self._loop.call_later(CLOSE_SECONDS, self._transport.abort)

    def _suspect_slow_client(self) -> None:
        if self._suspicion is None:
            # The number of queued bytes is final only after the burst.
            self._suspicion = SlowClientCheck(sys.maxsize)
            self._loop.call_later(STEP_SECONDS, self._look_again, self._suspicion)

    def _look_again(self, suspicion: SlowClientCheck) -> None:
        if suspicion is not self._suspicion or self._closing or self._outbox is None:
            return
        if not self._outbox.is_full:
            self._suspicion = None
        elif suspicion.is_confirmed(self._waiting_bytes()):
            self._give_up_on_slow_client()
        else:
            self._loop.call_later(STEP_SECONDS, self._look_again, suspicion)

    def _waiting_bytes(self) -> int:
        return self._transport.get_write_buffer_size() + (self._outbox.bytes if self._outbox is not None else 0)

    def _give_up_on_slow_client(self) -> None:
        self._error_log.note("slow_client", logger, "Connection closed with 1008: %d bytes wait", self._waiting_bytes())
        self._outbox = None
        self._say_goodbye(1008, "slow_client")

    def _regulate(self) -> None:
        """Pause or resume reading: read only while the handlers keep up, and the client keeps up with reading."""
        if self._gone:
            return
        if self._intake is not None or ((self._held or self._outbox is not None) and not self._closing):
            self._is_reading = False
            self._transport.pause_reading()
        elif not self._is_reading:  # the usual state is checked first: this runs for each message
            self._is_reading = True
            self.heard = self._loop.time()
            self._transport.resume_reading()

    async def _end_all(self) -> None:
        """End the channels and their tasks; none of them may be left when the event loop ends."""
        await self._connection.end()
        await self.tasks.finish(self._limits.shutdown_seconds)

    async def _end(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        # The server waits for both sets before it ends the lifespan, so this task must be in one of them.
        self._server_tasks.add(task)
        self._register.discard(self)
        ending = cast("asyncio.Task[None]", self.tasks.begin(self._end_all()))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            self._connection.abort()  # the server cancels its tasks: its shutdown timeout is over
            raise
        finally:
            self._server_tasks.discard(task)
            self.outlet.forget(self.writer)
            del self._connection  # breaks the reference cycle of the two
