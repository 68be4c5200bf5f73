"""One process's part in the presence of all: its replica, on the lines of a broker."""

import logging
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
from msgspec import Struct

from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.presence.codec import Joiner, Splitter
from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Part
from starlette_channels.presence.crdt.state import State
from starlette_channels.presence.diffs import DiffPublisher
from starlette_channels.presence.scheduler import Desk
from starlette_channels.presence.timing import PresenceTiming
from starlette_channels.presence.tracker import MergeOutcome, Outgoing, Replica
from starlette_channels.pubsub.broker import Broker

logger: logging.Logger = logging.getLogger("starlette_channels.presence")


class Settings(Struct, frozen=True):
    """What the application has said of a presence between processes."""

    name: str
    timing: PresenceTiming
    grace_seconds: float


class Replication:
    """A state on the lines of a broker, in one event loop, until the broker closes or the event loop is over.

    The lock is held for whatever changes the state, and while the publisher is given the changes.
    """

    def __init__(
        self,
        settings: Settings,
        life: int,
        broker: Broker,
        state: State,
        lock: threading.Lock,
        publisher: DiffPublisher,
        desk: Desk[Any],
    ) -> None:
        self.broker: Broker = broker
        self.is_over: bool = False
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
        self._desk = desk
        self._splitter = Splitter(self._me)
        self._replica = Replica(self._me, settings.timing, state)
        self._joiners = Joiner(), Joiner()
        of_all, of_one = (partial(self._hear, joiner) for joiner in self._joiners)
        self._exchanges = (
            broker.exchange(self._line, of_all, stopping=self._say_goodbye),
            broker.exchange(self._line_of(self._me), of_one),
        )
        self._stop_ticking = desk.run(self._tick)

    def serves(self, broker: Broker, desk: Desk[Any]) -> bool:
        """Whether it can go on as it is, now that a socket of this broker and event loop needs it; the lock is held.

        Raises `ValueError` if it is at work for another broker.
        """
        if self.is_over:
            return False
        is_running = desk is self._desk or self._exchanges[0].hub.is_running
        if not is_running or self.broker.node != self._me.name:  # its event loop is over, or this process is a fork
            self._put(self._replica.forget_everybody())
            self._close()
            return False
        if broker is not self.broker:
            raise ValueError(
                "the sockets of a Presence must have one broker: make one, Broker(...), and give it to all Channels"
            )
        return True

    def record(self, part: Part) -> None:
        """Take note of a change of the state; the lock is held."""
        if not self.is_over:
            self._replica.record(part)

    def is_settled(self) -> bool:
        """Whether it has heard what all others have to say to one that is new; from any thread."""
        is_heard = all(exchange.is_in_force for exchange in self._exchanges)
        with self._lock:
            return self._replica.settle(self._desk.now(), is_heard=is_heard)

    # What time brings, and the others say.

    async def _tick(self) -> None:
        timing = self._settings.timing
        await anyio.sleep(random.uniform(0, timing.news_seconds / 4))  # not all processes at the same time
        while not self.is_over:
            outcome = self._do(self._replica.tick)
            for event in outcome.events:
                if event.kind == "down":
                    self._report_silent(event.replica)
            self.is_settled()  # the time that others need begins when they can be heard
            await anyio.sleep(timing.news_seconds)

    def _report_silent(self, replica: ReplicaId) -> None:
        seconds = self._settings.timing.down_seconds
        self._error_log.note(
            "presence_node_down", logger, "%s is silent for %g s: its presences leave", replica.name, seconds
        )

    def _hear(self, joiner: Joiner, data: bytes) -> None:
        try:
            message = joiner.take(data)
        except ValueError as error:
            self._error_log.note("presence_message_malformed", logger, "%d bytes: %s", len(data), error)
            return
        if message is not None:
            self._do(partial(self._replica.receive, message))

    def _do(self, step: Callable[[float], MergeOutcome]) -> MergeOutcome:
        with self._lock:
            outcome = MergeOutcome() if self.is_over else step(self._desk.now())
            self._put(outcome)
        for outgoing in outcome.outgoing:
            self._send(outgoing)
        for event in outcome.events:
            logger.info("%s is %s", event.replica.name, event.kind)
            for joiner in self._joiners:
                joiner.forget(event.replica)
        self._publisher.publish_soon(self._desk)
        return outcome

    def _put(self, outcome: MergeOutcome) -> None:
        for entry in outcome.changes.joins:
            self._publisher.put(self.broker, entry.topic, (entry,), ())
        for entry in outcome.changes.leaves:
            self._publisher.put(self.broker, entry.topic, (), (entry,))

    def _send(self, outgoing: Outgoing) -> None:
        to = None if outgoing.to is None else self._line_of(outgoing.to)
        for piece in self._splitter.split(outgoing.message):
            self._exchanges[0].send(piece, to)

    def _line_of(self, replica: ReplicaId) -> str:
        return f"{self._line}:{replica.name}"

    # The end.

    def _say_goodbye(self) -> None:
        """The broker is about to close: let the others know, and know nothing of them any more."""
        self._do(lambda now: self._replica.leave(self._settings.grace_seconds))
        with self._lock:
            self._close()
        self._stop_ticking()

    def _close(self) -> None:
        self.is_over = True
        for exchange in self._exchanges:
            exchange.close()
