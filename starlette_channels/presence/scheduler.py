"""Scheduling for presence: callbacks, tasks and grace periods, one scheduler for each event loop."""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

from starlette_channels.runtime.tasks import Cancel, Tasks

T = TypeVar("T")


class Scheduler(Generic[T]):
    """Scheduler of one event loop: callbacks, tasks, and items with a grace period."""

    __slots__ = ("_call_soon", "_is_called", "_tasks", "_waiting", "native", "now")

    def __init__(self, native: Any) -> None:
        self.native: object = native
        """The event loop of asyncio, or the token of trio."""
        self.now: Callable[[], float] = getattr(native, "time", anyio.current_time)
        """The time of the event loop in seconds. It may be called outside of a task."""
        if hasattr(native, "call_soon"):
            self._call_soon = partial(native.call_soon, context=contextvars.copy_context())
        else:
            self._call_soon = native.run_sync_soon
        self._tasks = Tasks()
        self._is_called = False
        self._waiting: deque[tuple[float, T]] = deque()

    def run(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Cancel:
        """Run an async function soon; return a function that cancels it."""
        return self._tasks.spawn(function, *args)

    def call_once(self, function: Callable[[], None]) -> None:
        """Call a function in the next turn of the event loop. Further calls until then have no effect."""
        if not self._is_called:
            self._is_called = True
            self._call_soon(self._call, function)

    def _call(self, function: Callable[[], None]) -> None:
        self._is_called = False
        function()

    def keep(self, item: T, seconds: float, release: Callable[[T], None]) -> None:
        """Keep an item for some seconds, then release it. The time must be the same for all items."""
        self._waiting.append((anyio.current_time() + seconds, item))
        if len(self._waiting) == 1:
            self._tasks.spawn(self._release, release)

    async def _release(self, release: Callable[[T], None]) -> None:
        while self._waiting:
            due, item = self._waiting[0]
            await anyio.sleep(max(0.0, due - anyio.current_time()))
            self._waiting.popleft()
            release(item)

    def kept(self) -> list[T]:
        """Return the items not released yet."""
        return [item for _, item in self._waiting]


class Schedulers(Generic[T]):
    """The schedulers of all event loops.

    The items that were kept when an event loop ended are released by the next event loop of its thread.
    """

    __slots__ = ("_release", "_schedulers")

    def __init__(self, release: Callable[[T], None]) -> None:
        self._schedulers: dict[int, Scheduler[T]] = {}
        self._release = release

    def here(self) -> Scheduler[T] | None:
        """Return the scheduler of the running event loop; `None` in a thread without one."""
        try:
            native = anyio.lowlevel.current_token().native_token
        except RuntimeError:
            return None
        thread = threading.get_ident()
        scheduler = self._schedulers.get(thread)
        if scheduler is None or scheduler.native is not native:
            former, scheduler = scheduler, Scheduler[T](native)
            self._schedulers[thread] = scheduler
            for item in former.kept() if former is not None else ():
                self._release(item)
        return scheduler
