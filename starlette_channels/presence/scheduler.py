"""Where the work of presence is done: one desk for each event loop."""

import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

from starlette_channels.runtime.tasks import Cancel, Tasks

T = TypeVar("T")


class Desk(Generic[T]):
    """The tasks of one event loop, and what is to be done there later."""

    __slots__ = ("_called", "_tasks", "_waiting", "native", "now")

    def __init__(self, native: object) -> None:
        self.native: object = native
        self.now: Callable[[], float] = getattr(native, "time", anyio.current_time)
        """The time of the event loop, also where it runs no task: there, anyio does not know it."""
        self._tasks = Tasks()
        self._called = False
        self._waiting: deque[tuple[float, T]] = deque()

    def run(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Cancel:
        """Run an async function soon; return what cancels it."""
        return self._tasks.spawn(function, *args)

    def call_once(self, function: Callable[[], None]) -> None:
        """Call a function when the event loop has done what it is about; further calls until then are in vain."""
        if not self._called:
            self._called = True
            self._tasks.spawn(self._call, function)

    async def _call(self, function: Callable[[], None]) -> None:
        self._called = False
        function()

    def keep(self, item: T, seconds: float, let_go: Callable[[T], None]) -> None:
        """Keep something, always for the same time, and then let it go."""
        self._waiting.append((anyio.current_time() + seconds, item))
        if len(self._waiting) == 1:
            self._tasks.spawn(self._let_go, let_go)

    async def _let_go(self, let_go: Callable[[T], None]) -> None:
        while self._waiting:
            due, item = self._waiting[0]
            await anyio.sleep(max(0.0, due - anyio.current_time()))
            self._waiting.popleft()
            let_go(item)

    def kept(self) -> list[T]:
        """What is kept."""
        return [item for _, item in self._waiting]


class Desks(Generic[T]):
    """The desks of all event loops. What one kept whose event loop is over is let go by the next of its thread."""

    __slots__ = ("_desks", "_let_go")

    def __init__(self, let_go: Callable[[T], None]) -> None:
        self._desks: dict[int, Desk[T]] = {}
        self._let_go = let_go

    def here(self) -> Desk[T] | None:
        """Return the desk of the running event loop; `None` in a thread that runs none."""
        try:
            native = anyio.lowlevel.current_token().native_token
        except RuntimeError:
            return None
        thread = threading.get_ident()
        desk = self._desks.get(thread)
        if desk is None or desk.native is not native:
            former, desk = desk, Desk[T](native)
            self._desks[thread] = desk
            for item in former.kept() if former is not None else ():
                self._let_go(item)
        return desk
