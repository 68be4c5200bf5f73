"""Confirmations: wait in an event loop until the engine has confirmed subscriptions."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

import anyio

from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.wire.messages import Gap, shown

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

WAIT_SECONDS = 2.0
"""Maximal wait of a join for the engine, in seconds."""

TIMEOUT_CODE = "relay_subscribe_timeout"

BATCH = 64
"""Number of topics that are confirmed in one turn of the event loop."""


class Waiter(Protocol):
    """Waits for the confirmation of a subscription."""

    def miss(self, gap: Gap) -> None:
        """Take a gap; must not block."""
        ...


class Pending:
    """A topic whose subscription is not confirmed yet, and the number of its waiters."""

    __slots__ = ("confirmed", "waiting")

    def __init__(self) -> None:
        self.confirmed: anyio.Event = anyio.Event()
        self.waiting: int = 0


class Confirmations:
    """The unconfirmed topics of one event loop, and the waiters that have timed out.

    All methods but `is_wanted` must be called in that loop's thread.
    """

    __slots__ = ("_confirmed", "_error_log", "_is_in_force", "_late", "_pending", "_run_later")

    def __init__(
        self, is_in_force: Callable[[str], bool], run_later: Callable[[Callable[[], None]], object], error_log: ErrorLog
    ) -> None:
        self._is_in_force, self._run_later, self._error_log = is_in_force, run_later, error_log
        self._pending: dict[str, Pending] = {}
        self._late: dict[str, set[Waiter]] = {}
        self._confirmed: deque[str] = deque()

    @property
    def is_wanted(self) -> bool:
        """Whether there are waiters; thread-safe."""
        return bool(self._pending or self._late)

    async def wait(self, topics: Collection[str], waiter: Waiter, seconds: float) -> None:
        """Wait for the confirmation of subscriptions, `seconds` at most.

        A timeout is counted as `relay_subscribe_timeout`; then the waiter gets a `Gap` for each of these topics once
        its subscription is confirmed. A second wait for the same topic returns at once.
        """
        missing = [topic for topic in topics if not self._is_late(topic, waiter) and not self._is_in_force(topic)]
        if not missing:
            return
        with anyio.move_on_after(seconds):
            for topic in missing:
                await self._until_in_force(topic)
            return
        late = [topic for topic in missing if not self._is_in_force(topic)]
        for topic in late:
            self._late.setdefault(topic, set()).add(waiter)
            self._error_log.note(
                TIMEOUT_CODE,
                logger,
                "A join of %s went on after %g seconds although the engine has not confirmed the subscription",
                shown(topic),
                seconds,
            )
        self.confirm([topic for topic in late if self._is_in_force(topic)])  # confirmed before the waiters were noted

    def forget(self, topics: Iterable[str], waiter: Waiter) -> None:
        """Remove a closed waiter."""
        for topic in topics if self._late else ():
            waiters = self._late.get(topic)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._late[topic]

    def confirm(self, topics: Sequence[str]) -> None:
        """Wake the waiters for topics, and send a gap to those that timed out, `BATCH` topics in a turn of the loop."""
        idle = not self._confirmed
        self._confirmed.extend(topic for topic in topics if topic in self._pending or topic in self._late)
        if idle and self._confirmed:
            self._work()

    def _work(self) -> None:
        for _ in range(min(BATCH, len(self._confirmed))):
            topic = self._confirmed.popleft()
            pending = self._pending.pop(topic, None)
            if pending is not None:
                pending.confirmed.set()
            for waiter in self._late.pop(topic, ()):
                waiter.miss(Gap(topic, 0, ""))
        if self._confirmed:
            self._run_later(self._work)

    def _is_late(self, topic: str, waiter: Waiter) -> bool:
        return waiter in self._late.get(topic, ())

    async def _until_in_force(self, topic: str) -> None:
        while True:
            pending = self._pending.setdefault(topic, Pending())
            if self._is_in_force(topic):  # checked after the relay can see the waiter
                self._pending.pop(topic).confirmed.set()
                return
            pending.waiting += 1
            try:
                await pending.confirmed.wait()
            finally:
                pending.waiting -= 1
                if not pending.waiting and self._pending.get(topic) is pending:
                    del self._pending[topic]
