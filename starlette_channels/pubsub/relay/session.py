"""Relay session: a thread with its own event loop, from the first use of a relay to its close.

So it never blocks the event loops of the application, works with trio, and in code without an event loop.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import secrets
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from starlette_channels.exceptions import explain
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.engines.base import Engine, MakeEngine, Parcel
from starlette_channels.pubsub.engines.url import Options
from starlette_channels.pubsub.relay.channel_names import COMMANDS, as_bytes
from starlette_channels.pubsub.relay.command_log import CommandLog, LostCommands
from starlette_channels.pubsub.relay.envelope import ID_BYTES, Following, Kind, seal
from starlette_channels.pubsub.relay.publish_queue import PublishQueue, QueuedMessage, runs
from starlette_channels.pubsub.relay.receiver import Arrival, Receiver
from starlette_channels.pubsub.relay.subscriptions import LINGER_SECONDS, Interests
from starlette_channels.runtime.uptime import uptime
from starlette_channels.wire.messages import Body

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

STEP_SECONDS = 5.0
"""Time limit of an engine for one step, such as a connect or the publish of a batch, in seconds."""

SUBSCRIBE_BATCH = 500
"""Number of channels in one subscribe or unsubscribe step."""

AWAY_SECONDS = 0.5
"""A connect that takes longer means that the other processes were probably disconnected, too."""

STOP_SECONDS = 0.2
"""Time for cancelling the session when the time for its close is up, in seconds."""

LONGEST_SLEEP = 60.0
"""Maximal sleep, in seconds: after each, the session checks whether the process was suspended."""

DEAF_SECONDS = 3_600.0
"""A process that has received nothing for longer may have missed commands that are no longer repeated."""

URGENT_SECONDS = 0.5
"""Maximal delay of a command behind queued broadcasts, in seconds."""

COMMAND_BATCH = 16
"""Number of command messages in one step, each of at most `CHUNK_BYTES`."""

LAST_WORDS_SECONDS = 0.3
"""Part of the time for the close that is reserved for the last marks, in seconds."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""Pauses before reconnects, in seconds: doubled after each attempt, up to the longest."""

HandOn: TypeAlias = Callable[[list[Arrival]], None]
"""Takes arrivals in the thread of the session; must not block or raise."""


class SessionOutcome(NamedTuple):
    """Result of a flush or close."""

    left: int
    """Number of unpublished broadcasts."""

    error: Exception | None
    """The last error of the engine, if it is disconnected."""

    unheard: int = 0
    """Number of commands that no process has acknowledged."""


class RelaySession:
    """One publisher id, its queue and commands, and its state as a receiver."""

    def __init__(
        self,
        make: MakeEngine,
        options: Options,
        interests: Interests,
        error_log: ErrorLog,
        hand_on: HandOn,
        has_room: Callable[[], bool],
    ) -> None:
        self.id: bytes = secrets.token_bytes(ID_BYTES)
        self._make, self._options = make, options
        self._interests, self._error_log = interests, error_log
        self._hand_on, self._has_room = hand_on, has_room
        self._queue = PublishQueue(options.queue, options.queue_bytes, uptime)
        self.commands: CommandLog = CommandLog(self.id, random.random, threading.Lock())
        self._receiver = Receiver(self.id, error_log, uptime, self.commands)
        self._alive_at = uptime()
        self._reported_given_up = 0
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

    # For other threads.

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def publish(self, kind: Kind, channel: str, event: str, body: Body) -> None:
        """Queue a message for the other processes."""
        self._queue.put(kind, channel, event, body)
        self.wake()

    def command(self, socket_id: str, slot: str, body: bytes) -> int:
        """Queue a command for the clients with a `socket_id` in other processes; return its number.

        It is kept and repeated even while the engine is disconnected; see `CommandLog`.
        """
        number = self.commands.say(as_bytes(socket_id), as_bytes(slot), body, uptime())
        self.wake()
        return number

    def keep_commands(self) -> None:
        """Keep and repeat the commands of other processes, because this one has clients."""
        if not self.commands.keeps:
            self.commands.begin_to_keep(uptime())
            self.wake()

    def withdraw(self, number: int) -> None:
        """Withdraw a command."""
        self.commands.withdraw(number)
        self.wake()

    def wait_until_heard(self, number: int, seconds: float) -> tuple[bool, Exception | None]:
        """Block until another process has acknowledged a command, `seconds` at most.

        Returns whether it has, and the last error of the engine.
        """
        with contextlib.suppress(TimeoutError, RuntimeError):
            asyncio.run_coroutine_threadsafe(self._is_heard(number), self._loop).result(seconds)
        return self.commands.is_heard(number), self._error

    def wake(self) -> None:
        """Wake the session. Thread-safe."""
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self._awake.set)

    def flush(self, seconds: float) -> SessionOutcome:
        """Block until everything is published, `seconds` at most."""
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._published(), self._loop).result(seconds)
        self._report_drops()
        return self._outcome()

    def close(self, seconds: float) -> SessionOutcome:
        """Publish the queue and end the thread; blocks `seconds` at most."""
        self._closing_until = uptime() + seconds
        self.wake()
        self._thread.join(seconds)
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._abort)
            self._thread.join(STOP_SECONDS)
        self._report_drops()
        return self._outcome()

    def _outcome(self) -> SessionOutcome:
        log = self.commands
        return SessionOutcome(self._queue.unpublished(), self._error, log.unsent() if log.keeps else log.unheard())

    def _abort(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # The thread.

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        except asyncio.CancelledError:
            return

    async def _main(self) -> None:
        """Connect, and reconnect after errors, until the session is closed."""
        self._task = asyncio.current_task()
        pause = FIRST_PAUSE
        while True:
            began = uptime()
            engine = self._make()
            try:
                await self._use(engine)
                return
            except Exception as error:  # noqa: BLE001 - engines may raise any exception
                self._error = error
                self._note("relay_disconnected", "The engine between the processes is away: %s", explain(error))
            finally:
                await self._close_engine(engine)
            if uptime() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            if await self._is_over_after(pause * random.uniform(0.5, 1.0)):
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _close_engine(self, engine: Engine) -> None:
        try:
            async with asyncio.timeout(1.0):
                await engine.close()
        except Exception as error:  # noqa: BLE001 - the engine is discarded anyway
            logger.debug("Closing %r failed: %s", engine, explain(error))

    async def _is_over_after(self, seconds: float) -> bool:
        """Pause before a reconnect; return true if the session is closing instead."""
        until = uptime() + seconds
        while True:
            self._drop_expired()
            closing_until = self._closing_until
            left = self._queue.unpublished() or self.commands.unsent() or self._is_unacknowledged()
            if closing_until is not None and (closing_until < uptime() or not left):
                return True
            pause = until - uptime()
            if pause <= 0:
                return False
            await self._sleep(pause)

    async def _use(self, engine: Engine) -> None:
        """Run an engine until the session is closed; raises if the engine fails."""
        broken: asyncio.Future[Exception] = self._loop.create_future()

        def note(error: Exception) -> None:
            if not broken.done():
                broken.set_result(error)

        began = uptime()
        await self._step(engine.start(self._deliver, note))
        self._was_away = self._error is not None or uptime() - began > AWAY_SECONDS
        pump = asyncio.create_task(self._pump(engine))
        try:
            await asyncio.wait((pump, broken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._interests.lose(engine)
            pump.cancel()
            await asyncio.wait((pump,))
        if not pump.cancelled():
            pump.result()
            return
        raise broken.result()

    async def _pump(self, engine: Engine) -> None:
        """Publish and subscribe until the close."""
        was_away = self._error is not None  # commands that are published meanwhile clear the error
        self._drop_expired()
        await self._resubscribe(engine)
        self._queue.restart_marks()
        if was_away:
            logger.info("The engine between the processes is back")
        if self._was_away:
            await self._await_other_reconnects(engine)
        while self._closing_until is None:
            await self._follow_interests(engine)
            self._queue.put_marks()
            await self._publish(engine)
            await self._sleep(min(self._pauses(), default=None))
        await self._publish(engine)
        await self._await_acknowledgements(engine)
        self._queue.put_ends()
        await self._publish(engine)
        self._error = None

    async def _await_other_reconnects(self, engine: Engine) -> None:
        """Delay queued broadcasts after a reconnect: the other processes may take a little longer to reconnect."""
        until = uptime() + LONGEST_PAUSE
        while self._closing_until is None and (left := until - uptime()) > 0:
            await self._follow_interests(engine)
            await self._publish_due_commands(engine)
            await self._sleep(min(left, *self._pauses()))

    async def _await_acknowledgements(self, engine: Engine) -> None:
        """Wait for acknowledgements of own commands, because after the close no other process would repeat them."""
        if self._is_unacknowledged():
            self.commands.insist(uptime())
        while self._is_unacknowledged() and self._seconds_to_close() > 0:
            await self._publish_due_commands(engine)
            await self._sleep(min(self._seconds_to_close(), *self._pauses()))

    def _is_unacknowledged(self) -> bool:
        """Whether there are unacknowledged commands, and processes that could acknowledge them."""
        log = self.commands
        return log.unheard() > 0 and (not log.keeps or log.has_peers(uptime()))

    def _seconds_to_close(self) -> float:
        """Return the seconds left to wait for acknowledgements."""
        return 0.0 if self._closing_until is None else self._closing_until - LAST_WORDS_SECONDS - uptime()

    def _pauses(self) -> Iterable[float]:
        yield LONGEST_SLEEP
        commands = self.commands.due()
        if commands is not None:
            yield max(0.0, commands - uptime())
        mark = self._queue.seconds_to_mark()
        if mark is not None:
            yield mark
        for due in self._leaving.values():  # the first one is due first
            yield max(0.0, due - uptime())
            return

    async def _sleep(self, seconds: float | None) -> None:
        """Sleep until `wake`, `seconds` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._awake.wait()
        self._awake.clear()
        self._is_woken = False

    # Publishing.

    async def _publish(self, engine: Engine) -> None:
        """Publish the queue; commands follow the broadcasts before them, unless that takes over `URGENT_SECONDS`."""
        self._check_suspension()
        commands: Sequence[Parcel] = ()
        number, urgent_at = 0, 0.0
        while True:
            if not commands:
                commands, number = self._commands(engine)
                urgent_at = uptime() + URGENT_SECONDS
            waiting = self._queue.take()
            self._report_drops()
            if not waiting and not commands:
                return
            if waiting:
                await self._step(engine.publish(self._seal_all(waiting, engine)))
                self._queue.done()
                self._progress.set()
                self._error = None
                await self._follow_interests(engine)  # joins do not wait for the whole queue
            if commands and (self._queue.is_empty() or uptime() > urgent_at):
                await self._publish_commands(engine, commands, number)
                commands = ()

    async def _publish_due_commands(self, engine: Engine) -> None:
        """Publish the due command messages only."""
        commands, number = self._commands(engine)
        if commands:
            await self._publish_commands(engine, commands, number)

    def _commands(self, engine: Engine) -> tuple[Sequence[Parcel], int]:
        now = uptime()
        bodies, number = self.commands.outgoing(now)
        given_up, self._reported_given_up = self.commands.given_up - self._reported_given_up, self.commands.given_up
        if given_up:
            text = (
                "%d commands to clients had no room: who was deaf closes the connections that may be meant, with 1012"
            )
            self._note("commands_given_up", text, given_up, number=given_up)
        parcels = [Parcel(COMMANDS, seal(Kind.COMMAND, self.id, 1, 1, COMMANDS, "", body, now)) for body in bodies]
        if too_large := sum(len(parcel.data) > engine.max_bytes for parcel in parcels):
            self._note("relay_dropped", "A command is too large for the engine", number=too_large)
        return [parcel for parcel in parcels if len(parcel.data) <= engine.max_bytes], number

    async def _publish_commands(self, engine: Engine, parcels: Sequence[Parcel], number: int) -> None:
        for start in range(0, len(parcels), COMMAND_BATCH):
            await self._step(engine.publish(parcels[start : start + COMMAND_BATCH]))
        self.commands.sent(number)
        self._progress.set()
        self._error = None

    def _check_suspension(self) -> None:
        """Detect a suspension of over an hour: commands may be lost, so the clients have to reconnect."""
        now, before = uptime(), self._alive_at
        self._alive_at = now
        if now - before > DEAF_SECONDS and self.commands.keeps:
            self._note("commands_lost", "No word of the others for over an hour: all clients come back")
            self._hand_on([LostCommands(now - DEAF_SECONDS)])

    async def _is_heard(self, number: int) -> None:
        while not self.commands.is_heard(number):
            self._progress.clear()
            await self._progress.wait()

    async def _published(self) -> None:
        while self._queue.unpublished() or (not self.commands.keeps and self.commands.unheard()):
            self._progress.clear()
            await self._progress.wait()

    def _seal_all(self, messages: Sequence[QueuedMessage], engine: Engine) -> list[Parcel]:
        """Put messages into envelopes, one for each run; those that cannot be sent are counted and logged."""
        now = uptime()
        parcels: list[Parcel] = []
        for run in runs(messages):
            parcel = self._seal(run, now)
            if parcel is not None and len(parcel.data) <= engine.max_bytes:
                parcels.append(parcel)
            elif len(run) > 1:  # each alone: only those that cannot be sent are dropped
                parcels += [parcel for one in run for parcel in self._seal_all([one], engine)]
            elif parcel is None:
                self._note("relay_dropped", "A topic or an event is no Unicode: it stays in this process")
            else:
                text = "A broadcast of %d bytes is too large for the engine"
                self._note("relay_dropped", text, len(parcel.data))
        return parcels

    def _seal(self, run: Sequence[QueuedMessage], now: float) -> Parcel | None:
        """Put messages into one envelope; `None` if a topic or an event has lone surrogates."""
        kind, channel, event, body, (epoch, number, age, quiet), since, _ = run[0]
        waited = now - since
        following = tuple([Following(one.kind, one.event, bytes(one.body)) for one in run[1:]])
        age, quiet = age + waited, quiet + waited
        try:
            data = seal(kind, self.id, epoch, number, channel, event, body, now, age, quiet, following)
        except UnicodeEncodeError:
            return None
        return Parcel(channel, data)

    def _drop_expired(self) -> None:
        self._queue.expire(self._options.buffer_seconds)
        self._report_drops()

    def _report_drops(self) -> None:
        with self._reporting:  # flush and close report drops, too, and read the count when this returns
            dropped, self._reported_drops = self._queue.dropped - self._reported_drops, self._queue.dropped
            if dropped:
                self._note("relay_dropped", "%d broadcasts do not get to the other processes", dropped, number=dropped)
        if dropped:
            self._progress.set()

    def _note(self, code: str, text: str, *args: object, number: int = 1) -> None:
        self._error_log.note(code, logger, text, *args, number=number)

    # Subscribing and receiving.

    async def _resubscribe(self, engine: Engine) -> None:
        self._interests.begin(engine)
        wanted = self._interests.all()
        self._leaving.clear()
        self._receiver.begin_anew(wanted)
        if COMMANDS in wanted:  # before the others, which may be many
            await self._step(self._subscribe(engine, [COMMANDS]))
            self.commands.connected(uptime())
            await self._publish_due_commands(engine)
        others = [channel for channel in wanted if channel != COMMANDS]
        await self._in_batches(partial(self._subscribe, engine), others)
        self._interests.complete(engine)

    async def _follow_interests(self, engine: Engine) -> None:
        wanted, unwanted = self._interests.take()
        for channel in wanted:
            self._leaving.pop(channel, None)
        new = {channel: since for channel, since in wanted.items() if channel not in self._receiver.channels}
        if new:
            self._receiver.want(new)
            await self._in_batches(partial(self._subscribe, engine), new)
        now = uptime()
        for channel in unwanted & self._receiver.channels:
            self._leaving[channel] = now + LINGER_SECONDS
        due = [channel for channel, when in self._leaving.items() if when <= now]
        for channel in due:
            del self._leaving[channel]
        gone = self._interests.release(due)  # channels that are wanted again stay subscribed
        if gone:
            self._receiver.forget(gone)
            await self._in_batches(engine.unsubscribe, gone)

    async def _in_batches(
        self, do: Callable[[Collection[str]], Coroutine[Any, Any, None]], channels: Collection[str]
    ) -> None:
        """Subscribe or unsubscribe in steps, each with its own time limit; stops at the close of the relay."""
        waiting = iter(channels)
        while self._closing_until is None and (batch := list(itertools.islice(waiting, SUBSCRIBE_BATCH))):
            await self._step(do(batch))

    async def _subscribe(self, engine: Engine, channels: Collection[str]) -> None:
        """Subscribe to channels, and confirm the subscriptions."""
        await engine.subscribe(channels)
        self._receiver.confirm(channels)
        self._interests.confirm(engine, channels)

    async def _step(self, step: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(STEP_SECONDS):
            await step

    def _deliver(self, batch: Sequence[bytes]) -> None:
        if not self._arrived:
            self._loop.call_soon(self._take_delivery)
        self._arrived += batch

    def _take_delivery(self) -> None:
        """Pass on the messages of this turn of the event loop; without room they are dropped, and a gap follows."""
        arrived, self._arrived = self._arrived, []
        arrivals = self._receiver.take(arrived, has_room=self._has_room())
        if arrivals:
            self._hand_on(arrivals)
        if not self.commands.is_settled:
            self._progress.set()
            self._awake.set()
