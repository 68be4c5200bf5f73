"""Timers: one task for all of an event loop, and none while no timer runs."""

import asyncio
import contextvars
import heapq
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, TypeAlias

import anyio

from starlette_channels.runtime.tasks import Cancel, Tasks

Awake: TypeAlias = Callable[[float], float | None]
"""Called with the time when the timer is due; returns when to be called again, or `None`. It must not raise."""


class Waker:
    """The timers of one event loop, in a heap. A timer costs an entry in it."""

    def __init__(self, loop: object, clock: Callable[[], float]) -> None:
        self.now: Callable[[], float] = clock
        self.kept: dict[float, Any] = {}
        """Objects that live as long as a timer runs, by a number of the caller's."""
        self._loop = loop
        self._tasks: Tasks = contextvars.Context().run(Tasks)  # not in the context of the first client
        self._order = count()
        self._waiting: list[tuple[float, int, Awake]] = []
        self._running = False
        self._sleep: anyio.CancelScope | None = None

    def wake(self, seconds: float, awake: Awake) -> Cancel:
        """Call a function after `seconds`; return a function that cancels it, in time linear in the timers that run."""
        number = next(self._order)
        heapq.heappush(self._waiting, (self.now() + seconds, number, awake))
        if not self._running:
            self._running = True
            self._tasks.spawn(self._run)
        if self._sleep is not None:
            self._sleep.deadline = self._waiting[0][0]
        return partial(self._cancel, number)

    def _cancel(self, number: int) -> None:
        self._waiting = [entry for entry in self._waiting if entry[1] != number]
        heapq.heapify(self._waiting)
        if self._sleep is not None and not self._waiting:
            self._sleep.cancel()  # the task ends now, not when the timer would have been due

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
            _, number, awake = heapq.heappop(self._waiting)
            again = awake(now)
            if again is not None:
                heapq.heappush(self._waiting, (again, number, awake))


_wakers: dict[object, Waker] = {}


def waker_of_this_loop() -> Waker:
    """Return the timers of the event loop; do not keep them. It may be called from plain callbacks."""
    loop, clock = _loop_and_clock()
    return _wakers.get(loop) or _wakers.setdefault(loop, Waker(loop, clock))


def call_later(seconds: float, function: Callable[[float], None]) -> Cancel:
    """Call a plain function, with the time, after `seconds`; return a function that cancels it.

    On asyncio it is called outside of any task, so most of anyio cannot be used in it: start a task with `Tasks`.
    Trio has no timers without a task, so there the `Waker` calls it.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return waker_of_this_loop().wake(seconds, function)
    # Not in the context of the first client.
    return loop.call_later(seconds, lambda: function(loop.time()), context=contextvars.Context()).cancel


def clock_of_this_loop() -> Callable[[], float]:
    """Return the clock of the event loop, on asyncio and trio; a call of it costs a tenth of `anyio.current_time`."""
    return _loop_and_clock()[1]


def _loop_and_clock() -> tuple[object, Callable[[], float]]:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio  # it is there if its event loop runs, and not needed otherwise

        return trio.lowlevel.current_trio_token(), trio.current_time
    return loop, loop.time
