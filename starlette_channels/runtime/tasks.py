"""Tasks of one client, on asyncio and trio.

They are started from plain functions, outside of any cancel scope: when a server cancels the ASGI call of a connection,
its handlers still end in order. The creator of a `Tasks` waits for them with `finish`.
"""

import asyncio
import contextvars
import functools
import logging
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import anyio

from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.runtime.cancellation import (
    GIVEN_UP_SECONDS,
    PASSED_ON,
    TRIO_RUN,
    TrioRun,
    always,
    cancel_task,
    current_task,
    is_crash,
    nothing,
)

logger: logging.Logger = logging.getLogger("starlette_channels.tasks")

Function: TypeAlias = Callable[..., Coroutine[Any, Any, None]]
Cancel: TypeAlias = Callable[[], object]
R = TypeVar("R")

FAILURES = ErrorLog(Counter())
"""Throttles the log lines about spawned functions that raised."""

_NOTHING = nullcontext()


class Run(Protocol):
    """One run of a coroutine: an asyncio task, or a `TrioRun`."""

    def cancel(self) -> object:
        """Cancel the run."""
        ...


class TaskRun:
    """One run of an async function on asyncio; it can be cancelled before it starts."""

    __slots__ = ("_begun", "cancelled", "counts", "give_up", "task", "wanted")

    def __init__(self, counts: Counter[str] | None) -> None:
        self.counts: Counter[str] | None = counts
        self.task: asyncio.Task[None] | None = None  # event loops hold their tasks weakly
        self.cancelled: bool = False
        self.wanted: Callable[[], bool] = always
        self.give_up: Callable[[], None] = nothing
        self._begun = False

    def cancel(self) -> None:
        """Cancel the function; if it has not started, at its first await."""
        if not self.cancelled:
            self.cancelled = True
            if self._begun and self.task is not None:
                cancel_task(self.task, self.counts, self.wanted, self.give_up)

    async def run(self, function: Function, args: tuple[Any, ...]) -> None:
        """Run the function, and absorb the cancellation of this run."""
        self._begun = True
        self.task = asyncio.current_task()
        if self.cancelled and self.task is not None:
            cancel_task(self.task, self.counts, self.wanted, self.give_up)
        try:
            await function(*args)
        except asyncio.CancelledError:
            if not self.cancelled:
                raise


class Tasks:
    """Runs async functions concurrently, in copies of the context in which this object was created.

    `counts` counts functions that ignore their cancellation.
    """

    __slots__ = ("_context", "_counts", "_done", "_loop", "_running", "eager")

    def __init__(self, counts: Counter[str] | None = None) -> None:
        self._context = contextvars.copy_context()
        self._counts = counts
        self._loop = _asyncio_loop()
        self._running: set[TaskRun | TrioRun] | None = None
        self._done: anyio.Event | None = None
        self.eager: bool = sys.version_info >= (3, 12) and self._loop is not None

    # Short runs: nothing but an asyncio task for each coroutine.

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> Run:
        """Run a coroutine, which must not raise: if `eager`, at once up to its first wait, otherwise soon.

        Costs less than a microsecond for a coroutine that does not wait.
        """
        if sys.version_info >= (3, 12) and self._loop is not None:
            return asyncio.Task(coroutine, loop=self._loop, context=self._context.copy(), eager_start=True)
        return self.later(coroutine)

    def later(self, coroutine: Coroutine[Any, Any, None]) -> Run:
        """Run a coroutine, which must not raise, in the next iteration of the event loop."""
        if self._loop is not None:
            return asyncio.Task(coroutine, loop=self._loop, context=self._context.copy())
        run = TrioRun(self._counts)
        _start_on_trio(self._context.copy(), run.run, lambda: coroutine, ())
        return run

    def interrupt(self, run: Run, wanted: Callable[[], bool], give_up: Callable[[], None]) -> None:
        """Cancel a run, again after each pause while `wanted()` is true; if it ignores all attempts, call `give_up`."""
        if isinstance(run, asyncio.Task) and run.done():  # cancelled before it began, by who ends the event loop
            give_up()
        if not wanted():
            return
        if isinstance(run, asyncio.Task):
            cancel_task(cast("asyncio.Task[Any]", run), self._counts, wanted, give_up)
        elif isinstance(run, TrioRun):
            run.wanted, run.give_up = wanted, give_up
            run.cancel()

    def shield(self) -> AbstractContextManager[object]:
        """Return a context manager that shields from the cancellation of a run; on asyncio, use `recover` instead."""
        return anyio.CancelScope(shield=True) if self._loop is None else _NOTHING

    def recover(self) -> None:
        """Reset the cancellation of the running task, so that it can wait again; it was meant for an earlier await."""
        task = asyncio.current_task() if self._loop is not None else None
        while task is not None and task.cancelling():
            task.uncancel()

    # Long runs.

    def spawn(self, function: Function, *args: Any) -> Cancel:
        """Run an async function soon; return a function that cancels it. May be called from plain callbacks.

        An exception of the function is logged. Costs about 6 microseconds on asyncio.
        """
        self._running = self._running or set()
        if self._loop is None:
            trio_run = TrioRun(self._counts)
            self._running.add(trio_run)
            trio_run.give_up = functools.partial(self._forget, trio_run)
            _start_on_trio(self._context.copy(), self._run, trio_run, function, args)
            return trio_run.cancel
        run = TaskRun(self._counts)
        self._running.add(run)
        run.give_up = functools.partial(self._forget, run)
        run.task = self._loop.create_task(self._run(run, function, args), context=self._context.copy())
        return run.cancel

    async def finish(self, seconds: float) -> bool:
        """Wait for all spawned functions; after `seconds`, cancel the rest, and in the end give them up.

        Returns whether all ended without being cancelled.
        """
        if not self._running:
            return True
        with anyio.move_on_after(seconds):
            await self._idle()
        late = tuple(self._running or ())
        for run in late:
            run.cancel()
        with anyio.move_on_after(GIVEN_UP_SECONDS):
            await self._idle()
        return not late

    async def _idle(self) -> None:
        while self._running:
            self._done = anyio.Event()
            await self._done.wait()

    async def _run(self, run: TaskRun | TrioRun, function: Function, args: tuple[Any, ...]) -> None:
        try:
            await run.run(function, args)
        except BaseException as error:  # trio would end the whole run for it, asyncio for a SystemExit
            if not is_crash(error, run.task):
                raise
            FAILURES.note("task_failed", logger, "%r failed", function, cause=error)
        finally:
            self._forget(run)

    def _forget(self, run: TaskRun | TrioRun) -> None:
        """Remove a run that has ended or been given up."""
        if self._running is not None:
            self._running.discard(run)
            if not self._running:
                self._running = None
                if self._done is not None:
                    self._done.set()


class _Attempt(Generic[R]):
    """One call of application code by `within`: its result, its error, or that it was given up."""

    __slots__ = ("_coroutine", "ended", "error", "given_up", "result")

    def __init__(self, coroutine: Coroutine[Any, Any, R]) -> None:
        self._coroutine = coroutine
        self.ended: anyio.Event | None = None
        self.error: BaseException | None = None
        self.given_up: bool = False
        self.result: R | None = None

    async def run(self) -> None:
        """Run the coroutine; keep its result or error."""
        task = current_task()
        try:
            self.result = await self._coroutine
        except BaseException as error:
            self.error = error
            if isinstance(error, KeyboardInterrupt) or (
                not isinstance(error, Exception | SystemExit) and not is_crash(error, task)
            ):
                raise
        finally:
            if self.ended is None:
                self.ended = _OVER
            else:
                self.ended.set()

    def give_up(self) -> None:
        """Wake `within`, although the coroutine has not ended."""
        self.given_up = True
        if self.ended is not None:
            self.ended.set()


_OVER: Any = object()


class OutOfTime(TimeoutError):
    """Application code exceeded its time limit."""


async def within(seconds: float, counts: Counter[str] | None, coroutine: Coroutine[Any, Any, R]) -> R:
    """Run application code in a task of its own with a time limit; return its result, or raise its error.

    After `seconds` it is cancelled, and given up if it ignores that: this is logged, and counted as
    `cancellation_ignored`. Raises `OutOfTime`, unless it returns a result after all. If the caller is cancelled, so is
    the code. Context variables that the code sets are set for the caller.
    """
    attempt = _Attempt(coroutine)
    context = contextvars.copy_context()
    cancel = _start_attempt(attempt, context, counts)
    timed_out = False
    if attempt.ended is not _OVER:
        attempt.ended = ended = anyio.Event()
        try:
            with anyio.move_on_after(seconds) as patience:
                await ended.wait()
            if patience.cancelled_caught and not ended.is_set():
                timed_out = True
                cancel()
                await ended.wait()
        except BaseException:
            cancel()
            task = current_task()
            PASSED_ON.add(task)
            try:
                with anyio.CancelScope(shield=True):
                    await _wait_stubbornly(ended)
            finally:
                PASSED_ON.discard(task)
            raise
    if attempt.given_up or (timed_out and attempt.error is not None and not isinstance(attempt.error, Exception)):
        raise OutOfTime
    for variable, value in context.items():
        if variable.get(_OVER) is not value and variable is not TRIO_RUN:
            variable.set(value)
    error, attempt.error = attempt.error, None
    if error is not None:
        try:
            raise error
        finally:
            del error  # a reference cycle with this frame, garbage for each error
    return attempt.result  # pyright: ignore[reportReturnType] - set if there is no error


def _start_attempt(attempt: _Attempt[Any], context: contextvars.Context, counts: Counter[str] | None) -> Cancel:
    loop = _asyncio_loop()
    if loop is None:
        trio_run = TrioRun(counts)
        trio_run.give_up = attempt.give_up
        _start_on_trio(context, trio_run.run, attempt.run, ())
        return trio_run.cancel
    run = TaskRun(counts)
    run.give_up = attempt.give_up
    if sys.version_info >= (3, 12):
        run.task = asyncio.Task(run.run(attempt.run, ()), loop=loop, context=context, eager_start=True)
    else:
        run.task = loop.create_task(run.run(attempt.run, ()), context=context)
    return run.cancel


async def _wait_stubbornly(ended: anyio.Event) -> None:
    """Wait for an event that is certain to come, and ignore cancellations meanwhile."""
    while not ended.is_set():
        try:
            await ended.wait()
        except asyncio.CancelledError:
            continue


def _start_on_trio(context: contextvars.Context, function: Callable[..., Any], *args: Any) -> None:
    import trio  # an optional dependency, installed if its event loop runs

    trio.lowlevel.spawn_system_task(function, *args, context=context)


def _asyncio_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
