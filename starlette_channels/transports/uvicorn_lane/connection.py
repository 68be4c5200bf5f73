"""The fast lane: bytes go from the event loop's transport straight to a client's connection, frames straight back.

Nothing is parked for an idle client: no task, no queue, no timer. An outbox exists only while a client is behind.
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
"""A frame with so many characters may go to several clients in one turn, as a state of presence does."""


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
        self._straight = True  # nothing waits, nothing is held, nothing has ended: what comes can be dealt with at once
        self._closing = False
        self._deaf = False
        self._gone = False

    def start(self, connect: Callable[[Transport], Connection]) -> None:
        """Begin: from now on the client's messages reach its connection."""
        self._connection: Connection = connect(self)
        self._register.add(self)
        self._pulse.add(self)

    def listen(self) -> None:
        """Read from the connection, which nobody has done during the handshake."""
        self._regulate()

    # What the connection calls.

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
        """What broadcasts wait on while the client is behind."""
        return None if self._outbox is None else (self.outlet.shelf, self._queue)

    def close(self, code: int, reason: str = "") -> None:
        """Send what is queued, then close. The first call decides."""
        if self._closing:
            return
        self._say_goodbye(code, reason)

    def unfetched(self) -> None:
        """Nothing is lost by closing: what is queued goes first."""

    def pause(self) -> None:
        """Read nothing more until `resume`."""
        self._held = True
        self._straight = False
        self._regulate()

    def resume(self) -> None:
        """Read again, beginning with what has been kept."""
        self._held = False
        if self._intake is None:
            self._straight = not self._closing
            self._regulate()
        else:
            self._queue_up()

    # What the pulse calls.

    @property
    def idle_seconds(self) -> float:
        """How long the client may be silent."""
        return self._limits.idle_seconds

    def is_silent(self, now: float) -> bool:
        """Whether the client has been silent for too long, of its own accord."""
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

    # What the event loop calls.

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
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
        """Deal with a slice of what has come at once, if there is time left in this turn."""
        turns = self._turns
        turns.left -= 1
        # Who sends much does not overtake those who wait: they would be read from in ever smaller pieces.
        if turns.is_crowded or not (turns.left >= 0 or turns.goes_on()):
            self._queue_up(fresh=size <= SELDOM_BYTES and self._is_fresh())
        elif not self._held or self._closing:
            turns.left -= self.visit(EVENTS_AT_ONCE) - 1
        if self._intake is not None:
            self._regulate()

    def _read_no_more(self, data: bytes) -> None:
        """Keep what has come behind what waits, and read nothing more until that is dealt with."""
        assert self._intake is not None
        if self._deaf:
            self._ignore()
        else:
            self._intake.add(data)  # with TLS, some may come although nothing is read any more
            self._regulate()

    def _ignore(self) -> None:
        """Read nothing more of a client that has been told to go, and goes on as if nothing were."""
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
        """Act on one slice of what has come, and leave the rest for the next turn of the event loop."""
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
            return done  # the client is not listened to any more
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
        """Act on what is no message."""
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
        """Close when all that is logged has been written: a client that has nothing more to say has gone.

        The last of it may be a close frame that says why. With TLS the transport closes by itself.
        """
        if not self._transport.can_write_eof():
            return False
        self.outlet.afterwards(self._transport.close)
        return True

    def pause_writing(self) -> None:
        """Keep frames back: the client has to catch up."""
        self._outbox = SendQueue(self._limits.outbox_bytes, self._error_log.counts)
        self._connection.hold()
        self._regulate()

    def resume_writing(self) -> None:
        """Go on: the client has caught up."""
        self._release()
        if not self._closing and self._outbox is None:  # what was kept back may have been too much at once, again
            self._connection.flow()
        self._regulate()

    def _release(self) -> None:
        """Send what has been kept back, behind what is still on its way."""
        self._suspicion = None
        outbox, self._outbox = self._outbox, None
        if outbox is not None and len(outbox):
            self.outlet.send(self.writer, b"".join(outbox.pop() for _ in range(len(outbox))))

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the client is gone."""
        if self._gone:
            return
        self._gone = self._closing = True
        self._straight = False
        self._outbox = None
        self.outlet.leave_out(self.writer)
        self._pulse.remove(self)
        self.tasks.begin(self._end())  # held by the server's tasks

    # What uvicorn calls.

    def shutdown(self) -> None:
        """Close because the server stops."""
        self.close(1012, "restart")

    def _answer_close(self, close: Close) -> None:
        if not self._closing:
            self._write_last(close_frame(close.code, ""))
        self.outlet.afterwards(self._transport.close)

    def _hang_up(self) -> None:
        """Tell the client that nothing more comes: who broke the protocol is not listened to, so its answer neither.

        RFC 6455, §7.1.7. Closing outright would reset the connection while bytes of the client are unread, and then the
        client might never see the close frame.
        """
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            with suppress(OSError):  # the client was faster
                self._transport.write_eof()
        else:  # TLS, which says so itself
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
        self._regulate()  # to hear the answer

    def _write_last(self, data: bytes) -> None:
        self._release()
        self._closing = True
        self._straight = False
        self.outlet.leave_out(self.writer)
        self.outlet.send(self.writer, data)
        self._loop.call_later(CLOSE_SECONDS, self._transport.abort)

    def _suspect_slow_client(self) -> None:
        if self._suspicion is None:
            # How much waits is known when the burst is over.
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
        """Read only while handlers keep up, and the client with reading what it asked for."""
        if self._gone:
            return
        if self._intake is not None or ((self._held or self._outbox is not None) and not self._closing):
            self._is_reading = False
            self._transport.pause_reading()
        elif not self._is_reading:  # as good as always it is, and that is asked for each message
            self._is_reading = True
            self.heard = self._loop.time()
            self._transport.resume_reading()

    async def _end_all(self) -> None:
        """Let the channels end, and what they have started; nothing of it may be left when the event loop ends."""
        await self._connection.end()
        await self.tasks.finish(self._limits.shutdown_seconds)

    async def _end(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        # The server waits for those in either of these before it ends the lifespan, so it must find this one.
        self._server_tasks.add(task)
        self._register.discard(self)
        ending = cast("asyncio.Task[None]", self.tasks.begin(self._end_all()))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            self._connection.abort()  # a server that cancels us has no more patience
            raise
        finally:
            self._server_tasks.discard(task)
            self.outlet.forget(self.writer)
            del self._connection  # the two would keep each other until the garbage collector comes
