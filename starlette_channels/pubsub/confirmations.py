"""Waiting until a subscription is in force at the engine between the processes, in one event loop."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

import anyio

from starlette_channels.observability.reports import Reports
from starlette_channels.wire.messages import Gap, shown

WAIT_SECONDS = 2.0
"""How long a join waits for the engine, at most."""

TIMEOUT_CODE = "relay_subscribe_timeout"

BATCH = 64
"""How many topics are confirmed before the event loop has a turn for something else."""


class Waiter(Protocol):
    """Who waits for a subscription to be in force."""

    def miss(self, gap: Gap) -> None:
        """Take the news that broadcasts may be lost, without waiting."""
        ...


class Pending:
    """A topic whose subscription is waited for."""

    __slots__ = ("confirmed", "waiting")

    def __init__(self) -> None:
        self.confirmed: anyio.Event = anyio.Event()
        self.waiting: int = 0


class Confirmations:
    """The topics of one event loop that are waited for, and who has gone on without.

    All methods but `is_wanted` belong to that loop's thread.
    """

    __slots__ = ("_confirmed", "_is_in_force", "_late", "_pending", "_reports", "_run_later")

    def __init__(
        self, is_in_force: Callable[[str], bool], run_later: Callable[[Callable[[], None]], object], reports: Reports
    ) -> None:
        self._is_in_force, self._run_later, self._reports = is_in_force, run_later, reports
        self._pending: dict[str, Pending] = {}
        self._late: dict[str, set[Waiter]] = {}
        self._confirmed: deque[str] = deque()

    @property
    def is_wanted(self) -> bool:
        """Whether anybody wants to know of a subscription; from any thread."""
        return bool(self._pending or self._late)

    async def wait(self, topics: Collection[str], waiter: Waiter, seconds: float) -> None:
        """Wait until the subscriptions to topics are in force, for at most so many seconds.

        Then it is counted as `relay_subscribe_timeout`, and the waiter gets a `Gap` for each of those topics as soon as
        its subscription is in force. A second wait for the same topic does not wait again.
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
            self._reports.warn(
                TIMEOUT_CODE,
                "A join of %s went on after %g seconds although the engine has not confirmed the subscription",
                shown(topic),
                seconds,
            )
        self.confirm([topic for topic in late if self._is_in_force(topic)])  # meanwhile, when nobody was noted yet

    def forget(self, topics: Iterable[str], waiter: Waiter) -> None:
        """Let a waiter go that has ended."""
        for topic in topics if self._late else ():
            waiters = self._late.get(topic)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._late[topic]

    def confirm(self, topics: Sequence[str]) -> None:
        """Let go on who waits for topics, and tell who went on without; many at a time, then the loop has a turn."""
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
            if self._is_in_force(topic):  # asked when the relay can see that somebody waits
                self._pending.pop(topic).confirmed.set()
                return
            pending.waiting += 1
            try:
                await pending.confirmed.wait()
            finally:
                pending.waiting -= 1
                if not pending.waiting and self._pending.get(topic) is pending:
                    del self._pending[topic]
