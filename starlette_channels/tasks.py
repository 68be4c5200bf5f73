"""The tasks of one client, on asyncio and on trio.

They are started from plain functions and belong to nobody's scope: when a server cancels what it runs for a connection,
the handlers of that connection are still ended by us, in order. Whoever makes a `Tasks` waits for them in the end.
"""

import asyncio
import contextvars
import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

import anyio

from starlette_channels.mishaps import Mishaps

logger: logging.Logger = logging.getLogger("starlette_channels.tasks")

Function: TypeAlias = Callable[..., Coroutine[Any, Any, None]]
Cancel: TypeAlias = Callable[[], object]

AGAIN_SECONDS = 0.05
"""How long after being cancelled a function is cancelled again, if it has overheard that."""


FAILURES = Mishaps(Counter())
"""Functions that raised although they must not: there is no service here that could count them."""

_NOTHING = nullcontext()


class Run(Protocol):
    """One run of a coroutine: a task of asyncio, or what stands for one of trio."""

    def cancel(self) -> object:
        """Cancel what it waits for."""
        ...


class ScopedRun:
    """One run of an async function, from the wish for it to its end; a cancelling of it ends with it."""

    __slots__ = ("_cancelled", "_scope", "task")

    def __init__(self) -> None:
        self.task: object = None  # event loops hold their tasks weakly
        self._cancelled = False
        self._scope: anyio.CancelScope | None = None

    def cancel(self) -> None:
        """Cancel the function, at its first await if it has not begun."""
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    async def __call__(self, function: Function, args: tuple[Any, ...]) -> None:
        """Run the function; a cancelling of this run ends here."""
        with anyio.CancelScope() as self._scope:
            if self._cancelled:
                self._scope.cancel()
            await function(*args)


class Tasks:
    """Runs async functions beside each other, in the context of whoever made this, not of whoever starts them."""

    __slots__ = ("_context", "_done", "_loop", "_running", "eager")

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._loop = _asyncio_loop()
        self._running: set[ScopedRun] | None = None
        self._done: anyio.Event | None = None
        self.eager: bool = sys.version_info >= (3, 12) and self._loop is not None

    # For many short runs: an asyncio task of its own is all that a coroutine costs.

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> Run:
        """Run a coroutine: where `eager` is true at once, up to its first wait, else soon; it must not raise.

        Costs less than a microsecond for a coroutine that does not wait.
        """
        if sys.version_info >= (3, 12) and self._loop is not None:
            return asyncio.Task(coroutine, loop=self._loop, context=self._context.copy(), eager_start=True)
        return self.later(coroutine)

    def later(self, coroutine: Coroutine[Any, Any, None]) -> Run:
        """Run a coroutine soon; it must not raise."""
        if self._loop is not None:
            return asyncio.Task(coroutine, loop=self._loop, context=self._context.copy())
        run = ScopedRun()
        run.task = self._start(run, lambda: coroutine, ())
        return run

    def interrupt(self, run: Run, wanted: Callable[[], bool]) -> None:
        """Cancel what a run waits for, again and again while that is wanted: a function may overhear it once."""
        if not wanted():
            return
        if self._loop is None:
            run.cancel()
        elif asyncio.current_task(self._loop) is run:  # not in the middle of itself: it may be about to end
            self._loop.call_soon(self.interrupt, run, wanted)
        else:
            run.cancel()
            self._loop.call_later(AGAIN_SECONDS, self.interrupt, run, wanted)

    def shield(self) -> AbstractContextManager[object]:
        """Return what keeps the cancelling of a run away from what is done in it; on asyncio `recover` does that."""
        return anyio.CancelScope(shield=True) if self._loop is None else _NOTHING

    def recover(self) -> None:
        """Let the running task wait again, although it has been cancelled: that was meant for something else."""
        task = asyncio.current_task() if self._loop is not None else None
        while task is not None and task.cancelling():
            task.uncancel()

    # For what may run for long.

    def spawn(self, function: Function, *args: Any) -> Cancel:
        """Run an async function soon; return what cancels it, at its first await if it has not begun.

        The function must not raise. Costs about 6 microseconds on asyncio. May be called from plain callbacks.
        """
        run = ScopedRun()
        self._running = self._running or set()
        self._running.add(run)
        run.task = self._start(self._run, run, function, args)
        return run.cancel

    async def finish(self, seconds: float) -> None:
        """Wait until none that was spawned is left; those that take longer are cancelled."""
        with anyio.move_on_after(seconds):
            while self._running:
                self._done = anyio.Event()
                await self._done.wait()
        for run in tuple(self._running or ()):
            run.cancel()

    def _start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> object:
        context = self._context.copy()
        if self._loop is not None:
            return self._loop.create_task(function(*args), context=context)
        import trio  # it is there if its event loop runs, and not needed otherwise

        return trio.lowlevel.spawn_system_task(function, *args, context=context)

    async def _run(self, run: ScopedRun, function: Function, args: tuple[Any, ...]) -> None:
        try:
            await run(function, args)
        except Exception as error:  # noqa: BLE001 - trio would end the whole run for it
            FAILURES.note("task_failed", logger, "%r failed", function, cause=error)
        finally:
            assert self._running is not None
            self._running.discard(run)
            if not self._running:
                self._running = None
                if self._done is not None:
                    self._done.set()


def being_cancelled() -> bool:
    """Whether the running task is being cancelled, on purpose, by whatever means its event loop has."""
    if anyio.current_effective_deadline() == -math.inf:
        return True
    if _asyncio_loop() is None:
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _asyncio_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
