"""Replication of presence between processes: the replica of this process, and its lines on a broker."""

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
from msgspec import Struct

from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.presence.codec import Assembler, Splitter
from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Part
from starlette_channels.presence.crdt.state import Changes, State
from starlette_channels.presence.diffs import DiffPublisher
from starlette_channels.presence.scheduler import Scheduler
from starlette_channels.presence.timing import PresenceTiming
from starlette_channels.presence.tracker import MergeOutcome, Outgoing, Replica, TrackerMessage
from starlette_channels.pubsub.broker import Broker

logger: logging.Logger = logging.getLogger("starlette_channels.presence")


class Settings(Struct, frozen=True):
    """The settings of a `Presence` that concern other processes."""

    name: str
    timing: PresenceTiming
    grace_seconds: float


class Replication:
    """A replica on the lines of a broker, in one event loop, until the broker closes or the event loop ends.

    The lock is held while the state changes and while the publisher is given the changes.
    """

    def __init__(
        self,
        settings: Settings,
        life: int,
        broker: Broker,
        state: State,
        lock: threading.Lock,
        publisher: DiffPublisher,
        scheduler: Scheduler[Any],
    ) -> None:
        self.broker: Broker = broker
        self.is_closed: bool = False
        self._line = f"presence:{settings.name}"
        if broker.has_exchange(self._line):
            raise ValueError(
                f"there are two Presence objects of the name {settings.name!r} on one broker: "
                f"use one of them everywhere, or give one a name of its own, Presence(name=...)"
            )
        self._me = ReplicaId(broker.node, life)
        self._settings = settings
        self._lock = lock
        self._publisher = publisher
        self._error_log = ErrorLog(publisher.counts)
        self._scheduler = scheduler
        self._splitter = Splitter(self._me)
        self._replica = Replica(self._me, settings.timing, state)
        self._arrived: deque[tuple[int, Iterator[TrackerMessage | None]]] = deque()
        self._is_working = False
        self._assemblers = Assembler(), Assembler()
        of_all, of_one = (partial(self._hear, assembler) for assembler in self._assemblers)
        self._exchanges = (
            broker.exchange(self._line, of_all, stopping=self._leave),
            broker.exchange(self._line_of(self._me), of_one),
        )
        self._stop_ticking = scheduler.run(self._tick)

    def serves(self, broker: Broker, scheduler: Scheduler[Any]) -> bool:
        """Whether it can serve a socket of this broker and event loop; call it with the lock held.

        Raises `ValueError` if it is in use with another broker.
        """
        if self.is_closed:
            return False
        is_running = scheduler is self._scheduler or self._exchanges[0].hub.is_running
        if not is_running or self.broker.node != self._me.name:  # its event loop has ended, or this process is a fork
            self._put(self._replica.forget_everybody().changes)
            self._close()
            return False
        if broker is not self.broker:
            raise ValueError(
                "the sockets of a Presence must have one broker: make one, Broker(...), and give it to all Channels"
            )
        return True

    def record(self, part: Part) -> None:
        """Record a change of an own entry; call it with the lock held."""
        if not self.is_closed:
            self._replica.record(part)

    def is_settled(self) -> bool:
        """Whether the state of all other replicas has been merged since the start. From any thread."""
        is_heard = all(exchange.is_in_force for exchange in self._exchanges)
        with self._lock:
            return self._replica.settle(self._scheduler.now(), is_heard=is_heard)

    # Ticks and messages.

    async def _tick(self) -> None:
        timing = self._settings.timing
        await anyio.sleep(random.uniform(0, timing.news_seconds / 4))  # so that processes do not tick at the same time
        while not self.is_closed:
            outcome = self._do(self._replica.tick)
            for event in outcome.events:
                if event.kind == "down":
                    self._report_silent(event.replica)
            self.is_settled()  # starts the time limit for answers, once the subscriptions are in force
            await anyio.sleep(timing.news_seconds)

    def _report_silent(self, replica: ReplicaId) -> None:
        seconds = self._settings.timing.down_seconds
        self._error_log.note(
            "presence_node_down", logger, "%s is silent for %g s: its presences leave", replica.name, seconds
        )

    def _hear(self, assembler: Assembler, data: bytes) -> None:
        self._arrived.append((len(data), assembler.take(data)))
        if not self._is_working:
            self._read()
            if self._has_work:
                self._is_working = True
                self._scheduler.run(self._work)

    @property
    def _has_work(self) -> bool:
        return bool(self._arrived) or self._replica.is_merging

    async def _work(self) -> None:
        """Decode and merge the rest of large messages: one step, or one slice, in each turn of the event loop."""
        try:
            while self._has_work and not self.is_closed:
                await anyio.lowlevel.checkpoint()
                if self._replica.is_merging:
                    self._do(lambda _: self._replica.merge_next())
                else:
                    self._read()
        finally:
            self._is_working = False

    def _read(self) -> None:
        """Take the messages that have arrived, in order, until one of them is large."""
        while self._arrived and not self._replica.is_merging:
            size, steps = self._arrived[0]
            try:
                message = next(steps)
            except StopIteration:
                self._arrived.popleft()
            except ValueError as error:
                self._arrived.popleft()
                self._error_log.note("presence_message_malformed", logger, "%d bytes: %s", size, error)
            else:
                if message is None:
                    return
                self._do(partial(self._replica.receive, message))

    def _do(self, step: Callable[[float], MergeOutcome]) -> MergeOutcome:
        """Run a step of the replica, and apply its outcome: diffs, messages, log lines."""
        with self._lock:
            outcome = MergeOutcome() if self.is_closed else step(self._scheduler.now())
            self._put(outcome.changes)
        for outgoing in outcome.outgoing:
            self._send(outgoing)
        for event in outcome.events:
            logger.info("%s is %s", event.replica.name, event.kind)
            for assembler in self._assemblers:
                assembler.forget(event.replica)
        self._publisher.publish_soon(self._scheduler)
        return outcome

    def _put(self, changes: Changes) -> None:
        topics: dict[str, Changes] = {}
        for entry in changes.joins:
            topics.setdefault(entry.topic, Changes()).joins.append(entry)
        for entry in changes.leaves:
            topics.setdefault(entry.topic, Changes()).leaves.append(entry)
        for topic, of_topic in topics.items():
            self._publisher.put(self.broker, topic, of_topic.joins, of_topic.leaves)

    def _send(self, outgoing: Outgoing) -> None:
        to = None if outgoing.to is None else self._line_of(outgoing.to)
        for piece in self._splitter.split(outgoing.message):
            self._exchanges[0].send(piece, to)

    def _line_of(self, replica: ReplicaId) -> str:
        return f"{self._line}:{replica.name}"

    # The end.

    def _leave(self) -> None:
        """Send a `Goodbye` to the other replicas, because the broker is about to close, and forget them."""
        self._do(lambda _: self._replica.leave(self._settings.grace_seconds))
        with self._lock:
            self._close()
        self._stop_ticking()

    def _close(self) -> None:
        self.is_closed = True
        for exchange in self._exchanges:
            exchange.close()
