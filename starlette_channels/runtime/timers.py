"""Calls at a time to come, with one task for all of an event loop, and none while there is nothing to come."""

import asyncio
import contextvars
import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, TypeAlias

import anyio

from starlette_channels.runtime.tasks import Tasks

Awake: TypeAlias = Callable[[float], float | None]
"""Does what is due at a time, without waiting, and returns when to be called again. It must not raise."""


class Waker:
    """Calls functions when their time has come. One that waits costs an entry in a list."""

    def __init__(self, loop: object, clock: Callable[[], float]) -> None:
        self.now: Callable[[], float] = clock
        self.kept: dict[float, Any] = {}
        """What is to be there as long as there is something to come."""
        self._loop = loop
        self._tasks: Tasks = contextvars.Context().run(Tasks)  # not in that of a client which happens to be the first
        self._order = count()
        self._waiting: list[tuple[float, int, Awake]] = []
        self._running = False
        self._sleep: anyio.CancelScope | None = None

    def wake(self, seconds: float, awake: Awake) -> None:
        """Call a function in so many seconds."""
        heapq.heappush(self._waiting, (self.now() + seconds, next(self._order), awake))
        if not self._running:
            self._running = True
            self._tasks.spawn(self._run)
        if self._sleep is not None:
            self._sleep.deadline = self._waiting[0][0]

    async def _run(self) -> None:
        try:
            while self._waiting:
                with anyio.CancelScope(deadline=self._waiting[0][0]) as self._sleep:
                    await anyio.sleep_forever()
                self._call_all(self.now())
        finally:
            del _wakers[self._loop]

    def _call_all(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            _, _, awake = heapq.heappop(self._waiting)
            again = awake(now)
            if again is not None:
                heapq.heappush(self._waiting, (again, next(self._order), awake))


_wakers: dict[object, Waker] = {}


def waker_of_this_loop() -> Waker:
    """Return the event loop's waker, which is to be used at once; it may be called from plain callbacks."""
    loop, clock = _loop_and_clock()
    return _wakers.get(loop) or _wakers.setdefault(loop, Waker(loop, clock))


def clock_of_this_loop() -> Callable[[], float]:
    """Return the event loop's clock, which tells the time in plain callbacks as well."""
    return _loop_and_clock()[1]


def _loop_and_clock() -> tuple[object, Callable[[], float]]:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio  # it is there if its event loop runs, and not needed otherwise

        return trio.lowlevel.current_trio_token(), trio.current_time
    return loop, loop.time
