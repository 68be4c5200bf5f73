"""One life of a relay: a thread with an event loop of its own, from the first use to the close.

The application's event loops, which may be trio's, are never blocked by it, and code without any can use it as well.
"""

import asyncio
import contextlib
import itertools
import random
import secrets
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import partial
from typing import Any, TypeAlias

from starlette_channels.brokers.engine import Engine, MakeEngine, Parcel
from starlette_channels.brokers.envelope import ID_BYTES, Kind, seal
from starlette_channels.brokers.interests import LINGER_SECONDS, Interests
from starlette_channels.brokers.options import Options
from starlette_channels.brokers.outbox import Outbox, Waiting
from starlette_channels.brokers.receiver import Arrival, Receiver
from starlette_channels.brokers.reports import Reports, logger
from starlette_channels.exceptions import explain
from starlette_channels.messages import Body

STEP_SECONDS = 5.0
"""How long an engine may take for one step: to connect, or to take a batch."""

SUBSCRIBE_BATCH = 500
"""How many channels are subscribed to, or unsubscribed from, in one step."""

AWAY_SECONDS = 0.5
"""An engine that takes longer than this to connect to was away before, as far as the others are concerned."""

STOP_SECONDS = 0.2
"""How long a relay that has had its time to close has to stop."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""How long the relay waits, in seconds, before it connects anew: twice as long each time, up to the longest."""

HandOn: TypeAlias = Callable[[list[Arrival]], None]
"""Takes what has come, in the relay's thread; it returns at once, and never raises."""


class Life:
    """A publisher, with its id, and what it hears of the others."""

    def __init__(
        self,
        make: MakeEngine,
        options: Options,
        interests: Interests,
        reports: Reports,
        hand_on: HandOn,
        has_room: Callable[[], bool],
    ) -> None:
        self.id: bytes = secrets.token_bytes(ID_BYTES)
        self._make, self._options = make, options
        self._interests, self._reports = interests, reports
        self._hand_on, self._has_room = hand_on, has_room
        self._outbox = Outbox(options.queue, options.queue_bytes, time.monotonic)
        self._receiver = Receiver(self.id, reports, time.monotonic)
        self._arrived: list[bytes] = []
        self._leaving: dict[str, float] = {}
        self._reported_drops = 0
        self._reporting = threading.Lock()
        self._was_away = False
        self._error: Exception | None = None
        self._closing_until: float | None = None
        self._loop = asyncio.new_event_loop()
        self._awake = asyncio.Event()
        self._is_woken = False
        self._progress = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="starlette-channels-relay", daemon=True)

    # What other threads call.

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def publish(self, kind: Kind, channel: str, event: str, body: Body) -> None:
        """Send a message to the other processes, soon."""
        self._outbox.put(kind, channel, event, body)
        self.wake()

    def wake(self) -> None:
        """Say that there is something to do."""
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # it is over
                self._loop.call_soon_threadsafe(self._awake.set)

    def flush(self, seconds: float) -> tuple[int, Exception | None]:
        """Wait until everything is published, for at most so long; return how much is left, and why."""
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._everything_is_published(), self._loop).result(seconds)
        self._report_drops()
        return self._outbox.unpublished(), self._error

    def close(self, seconds: float) -> tuple[int, Exception | None]:
        """Publish what waits, for at most so long, and end; return how much is left, and why."""
        self._closing_until = time.monotonic() + seconds
        self.wake()
        self._thread.join(seconds)
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(STOP_SECONDS)
        self._report_drops()
        return self._outbox.unpublished(), self._error

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # The thread.

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._live())
        except asyncio.CancelledError:
            return

    async def _live(self) -> None:
        """Have one engine after the other until there is nothing more to do."""
        self._task = asyncio.current_task()
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            engine = self._make()
            try:
                await self._use(engine)
                return
            except Exception as error:  # noqa: BLE001 - engines raise what they like
                self._error = error
                self._reports.warn("relay_disconnected", "The engine between the processes is away: %s", explain(error))
            finally:
                await self._let_go(engine)
            if time.monotonic() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            if await self._is_over_after(pause * random.uniform(0.5, 1.0)):
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _let_go(self, engine: Engine) -> None:
        try:
            async with asyncio.timeout(1.0):
                await engine.close()
        except Exception as error:  # noqa: BLE001 - it is of no use any more
            logger.debug("Closing %r failed: %s", engine, explain(error))

    async def _is_over_after(self, seconds: float) -> bool:
        """Wait before the next attempt, and tell whether there is to be none."""
        until = time.monotonic() + seconds
        while True:
            self._drop_what_is_too_old()
            closing_until = self._closing_until
            if closing_until is not None and (closing_until < time.monotonic() or not self._outbox.unpublished()):
                return True
            left = until - time.monotonic()
            if left <= 0:
                return False
            await self._sleep(left)

    async def _use(self, engine: Engine) -> None:
        """Return when everything is over; raise when this engine is of no use any more."""
        broken: asyncio.Future[Exception] = self._loop.create_future()

        def note(error: Exception) -> None:
            if not broken.done():
                broken.set_result(error)

        began = time.monotonic()
        await self._step(engine.start(self._deliver, note))
        self._was_away = self._error is not None or time.monotonic() - began > AWAY_SECONDS
        pump = asyncio.create_task(self._pump(engine))
        try:
            await asyncio.wait((pump, broken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._interests.lose()
            pump.cancel()
            await asyncio.wait((pump,))
        if not pump.cancelled():
            pump.result()
            return
        raise broken.result()

    async def _pump(self, engine: Engine) -> None:
        """Do what there is to do until the close."""
        self._drop_what_is_too_old()
        await self._hear_everything(engine)
        self._outbox.restart_marks()
        if self._error is not None:
            logger.info("The engine between the processes is back")
        if self._was_away:
            await self._let_the_others_come_back(engine)
        while self._closing_until is None:
            await self._follow_interests(engine)
            self._outbox.put_marks()
            await self._publish(engine)
            await self._sleep(min(self._pauses(), default=None))
        self._outbox.put_ends()
        await self._publish(engine)
        self._error = None

    async def _let_the_others_come_back(self, engine: Engine) -> None:
        """Wait with what has piled up: those who are to hear it try as often as we do, and may be a little later."""
        until = time.monotonic() + LONGEST_PAUSE
        while self._closing_until is None and (left := until - time.monotonic()) > 0:
            await self._follow_interests(engine)
            await self._sleep(left)

    def _pauses(self) -> Iterable[float]:
        mark = self._outbox.seconds_to_mark()
        if mark is not None:
            yield mark
        for due in self._leaving.values():  # the first one is due first
            yield max(0.0, due - time.monotonic())
            return

    async def _sleep(self, seconds: float | None) -> None:
        """Wait until somebody wakes us, for at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._awake.wait()
        self._awake.clear()
        self._is_woken = False

    # Publishing.

    async def _publish(self, engine: Engine) -> None:
        while True:
            waiting = self._outbox.take()
            self._report_drops()
            if not waiting:
                return
            await self._step(engine.publish([parcel for one in waiting for parcel in self._seal(one, engine)]))
            self._outbox.done()
            self._progress.set()
            self._error = None
            await self._follow_interests(engine)  # joins do not wait for all that is to be published

    async def _everything_is_published(self) -> None:
        while self._outbox.unpublished():
            self._progress.clear()
            await self._progress.wait()

    def _seal(self, waiting: Waiting, engine: Engine) -> Iterable[Parcel]:
        kind, channel, event, body, stamp, since, _ = waiting
        now = time.monotonic()
        epoch, number, age, quiet = stamp.later(now - since)
        try:
            data = seal(kind, self.id, epoch, number, channel, event, body, now, age, quiet)
        except UnicodeEncodeError:
            self._reports.warn("relay_dropped", "A topic or an event is no Unicode: it stays in this process")
            return
        if len(data) > engine.max_bytes:
            self._reports.warn("relay_dropped", "A broadcast of %d bytes is too large for the engine", len(data))
            return
        yield Parcel(channel, data)

    def _drop_what_is_too_old(self) -> None:
        self._outbox.expire(self._options.buffer_seconds)
        self._report_drops()

    def _report_drops(self) -> None:
        with self._reporting:  # whoever flushes or closes does so as well
            dropped, self._reported_drops = self._outbox.dropped - self._reported_drops, self._outbox.dropped
        if dropped:
            self._progress.set()
            self._reports.warn(
                "relay_dropped", "%d broadcasts do not get to the other processes", dropped, number=dropped
            )

    # Hearing.

    async def _hear_everything(self, engine: Engine) -> None:
        wanted = self._interests.all()
        self._leaving.clear()
        self._receiver.begin_anew(wanted)
        await self._in_batches(partial(self._subscribe, engine), wanted)
        self._interests.is_complete = True

    async def _follow_interests(self, engine: Engine) -> None:
        wanted, unwanted = self._interests.take()
        for channel in wanted:
            self._leaving.pop(channel, None)
        new = {channel: since for channel, since in wanted.items() if channel not in self._receiver.channels}
        if new:
            self._receiver.want(new)
            await self._in_batches(partial(self._subscribe, engine), new)
        now = time.monotonic()
        for channel in unwanted & self._receiver.channels:
            self._leaving[channel] = now + LINGER_SECONDS
        due = [channel for channel, when in self._leaving.items() if when <= now]
        for channel in due:
            del self._leaving[channel]
        gone = self._interests.release(due)  # what is wanted again by now stays as it is
        if gone:
            self._receiver.forget(gone)
            await self._in_batches(engine.unsubscribe, gone)

    async def _in_batches(
        self, do: Callable[[Collection[str]], Coroutine[Any, Any, None]], channels: Collection[str]
    ) -> None:
        """Subscribe or unsubscribe in steps, each with its own time: how long all take depends on how many there are.

        A relay that closes leaves the rest undone.
        """
        waiting = iter(channels)
        while self._closing_until is None and (batch := list(itertools.islice(waiting, SUBSCRIBE_BATCH))):
            await self._step(do(batch))

    async def _subscribe(self, engine: Engine, channels: Collection[str]) -> None:
        """Subscribe, and let go on who waits for that."""
        await engine.subscribe(channels)
        self._interests.confirm(channels)

    async def _step(self, step: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(STEP_SECONDS):
            await step

    def _deliver(self, data: bytes) -> None:
        self._arrived.append(data)
        if len(self._arrived) == 1:
            self._loop.call_soon(self._take_delivery)

    def _take_delivery(self) -> None:
        """Hand on what has come in this turn of the event loop; what finds no room becomes a gap later."""
        arrived, self._arrived = self._arrived, []
        if not self._has_room():
            self._reports.warn(
                "relay_overflow",
                "The event loops are behind: %d arrivals are dropped",
                len(arrived),
                number=len(arrived),
            )
            return
        arrivals = self._receiver.take(arrived)
        if arrivals:
            self._hand_on(arrivals)
