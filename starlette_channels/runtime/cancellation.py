"""Cancellation of application code: paced, bounded, and logged with the name of the function that ignores it.

A cancel scope of anyio repeats its cancellation in every turn of the event loop, so that one bare `except:` in a loop
keeps a core busy for ever. Here a cancellation is repeated after growing pauses; then the function is given up: nobody
waits for it any more, and it goes on by itself.
"""

import asyncio
import atexit
import contextvars
import ctypes
import logging
from collections import Counter
from collections.abc import Callable
from types import CoroutineType
from typing import Any, Protocol, cast

import anyio

from starlette_channels.observability.error_log import Mishaps

logger: logging.Logger = logging.getLogger("starlette_channels.tasks")

PAUSES = (0.2, 0.4, 0.8, 1.6)
"""Seconds after each cancellation: the function is cancelled so many times, and given up 3 seconds after the first."""

GIVEN_UP_SECONDS = sum(PAUSES) + 0.5
"""After so many seconds it is certain that what was cancelled has ended, or been given up."""

IGNORED = Mishaps(Counter())
"""The throttle of the lines about functions that ignore their cancellation, of the whole process."""

OURS = ("starlette_channels.", "anyio.", "trio.", "asyncio.")


def always() -> bool:
    """Whether a cancellation is still wanted: as long as the task is not done."""
    return True


def nothing() -> None:
    """Do nothing when a function is given up."""


def function_in(coroutine: object) -> str:
    """Return the name of the application's function that a suspended task waits in: `chat.rooms.new_msg`.

    Frames of this package and of the event loop are skipped.
    """
    name = "?"
    while isinstance(coroutine, CoroutineType):
        suspended = cast("CoroutineType[Any, Any, Any]", coroutine)
        module: str = "" if suspended.cr_frame is None else suspended.cr_frame.f_globals.get("__name__", "")
        name = f"{module}.{suspended.__qualname__}"
        if not f"{module}.".startswith(OURS):
            break
        coroutine = suspended.cr_await
    return name


def note_given_up(coroutine: object, counts: Counter[str] | None) -> None:
    """Count and log that a function ignores its cancellation."""
    if counts is not None:
        counts["cancellation_ignored"] += 1
    text = "%s ignores its cancellation: given up after %d times in %g seconds; let CancelledError pass in `except`"
    name = function_in(coroutine)
    IGNORED.note("cancellation_ignored", logger, text, name, len(PAUSES), sum(PAUSES), level=logging.ERROR)


# asyncio

_being_cancelled: "set[asyncio.Task[Any]]" = set()


def cancel_task(
    task: "asyncio.Task[Any]",
    counts: Counter[str] | None,
    wanted: Callable[[], bool] = always,
    give_up: Callable[[], None] = nothing,
) -> None:
    """Cancel a task of asyncio now, and after each pause while `wanted` says so; then call `give_up`.

    A second call for the same task is in vain while the first goes on.
    """
    if task not in _being_cancelled and not task.done():
        _being_cancelled.add(task)
        _cancel_again(task, 0, counts, wanted, give_up)


def _cancel_again(
    task: "asyncio.Task[Any]",
    times: int,
    counts: Counter[str] | None,
    wanted: Callable[[], bool],
    give_up: Callable[[], None],
) -> None:
    loop = task.get_loop()
    if task.done() or not wanted():
        _being_cancelled.discard(task)
    elif asyncio.current_task(loop) is task:  # not in the middle of itself: it may be about to end
        loop.call_soon(_cancel_again, task, times, counts, wanted, give_up)
    elif times == len(PAUSES):
        _being_cancelled.discard(task)
        note_given_up(task.get_coro(), counts)
        _let_the_loop_end_without(task)
        give_up()
    else:
        task.cancel()
        loop.call_later(PAUSES[times], _cancel_again, task, times + 1, counts, wanted, give_up)


_given_up: "set[asyncio.Task[Any]]" = set()


def _let_the_loop_end_without(task: "asyncio.Task[Any]") -> None:
    """Keep `asyncio.run` and the interpreter from waiting for a task that has been given up: they would never end."""
    unregister: Callable[[object], None] = asyncio._unregister_task  # pyright: ignore - "Extending asyncio" has it
    unregister(task)
    if not _given_up:
        atexit.register(_leave_open)
    _given_up.add(task)
    task.add_done_callback(_given_up.discard)


def _leave_open() -> None:
    """Keep the interpreter from closing coroutines that ignore that as well: one that loops would do so for ever."""
    for task in _given_up:
        cast("Any", task)._log_destroy_pending = False
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(task.get_coro()))


# trio


class TrioRun:
    """One run of an async function on trio. Two scopes pace its cancellation, which trio would repeat at each await.

    The outer scope is cancelled; the shield of the inner one is lifted for a moment each time.
    """

    __slots__ = ("_inner", "_outer", "_over", "_pacing", "cancelled", "counts", "give_up", "task", "wanted")

    def __init__(self, counts: Counter[str] | None) -> None:
        self.counts: Counter[str] | None = counts
        self.task: Any = None
        self.cancelled: bool = False
        self.wanted: Callable[[], bool] = always
        self.give_up: Callable[[], None] = nothing
        self._outer: Any = None
        self._inner: Any = None
        self._pacing: Any = None
        self._over = False

    def cancel(self) -> None:
        """Cancel the function, at its first await if it has not begun."""
        if not self.cancelled:
            self.cancelled = True
            if self._inner is not None:
                self._begin_to_cancel()

    def _begin_to_cancel(self) -> None:
        import trio  # it is there if its event loop runs, and not needed otherwise

        trio.lowlevel.spawn_system_task(self._pace, context=contextvars.Context())

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Run the function; a cancellation of this run ends here."""
        import trio  # as above

        TRIO_RUN.set(self)
        self.task = trio.lowlevel.current_task()
        try:
            with trio.CancelScope() as self._outer, trio.CancelScope() as self._inner:
                if self.cancelled:
                    self._begin_to_cancel()
                await function(*args)
        finally:
            self._over = True
            if self._pacing is not None:
                self._pacing.cancel()

    async def _pace(self) -> None:
        import trio  # as above

        assert self._outer is not None
        assert self._inner is not None
        with trio.CancelScope() as self._pacing:
            if self._over or not self.wanted():
                self.cancelled = self._over
                return
            self._inner.shield = True
            self._outer.cancel()
            for pause in PAUSES:
                self._inner.shield = False
                await trio.lowlevel.checkpoint()  # for one that is not waiting right now
                self._inner.shield = True
                await trio.sleep(pause)
                if not self.wanted():
                    return
            if self.task is not None:
                note_given_up(self.task.coro, self.counts)
            self.give_up()


TRIO_RUN: contextvars.ContextVar[TrioRun | None] = contextvars.ContextVar("starlette_channels_trio_run", default=None)
"""The run that the running code is part of, on trio."""


# both


class CurrentTask(Protocol):
    """A task of either event loop."""


def current_task() -> CurrentTask | None:
    """Return the running task of asyncio or trio; `None` outside one."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        pass
    try:
        import trio  # as above

        return trio.lowlevel.current_task()
    except (ImportError, RuntimeError):
        return None


def being_cancelled() -> bool:
    """Whether the running task is being cancelled, on purpose, by whatever means its event loop has."""
    if anyio.current_effective_deadline() == float("-inf"):
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:
        run = TRIO_RUN.get()
        return run is not None and run.cancelled
    return task is not None and task.cancelling() > 0


def is_crash(error: BaseException, task: object = None) -> bool:
    """Whether what application code let through is its own failure, and concerns nobody else.

    `task` is the one that ran it, if that is not certain to be the running one: a coroutine that is thrown away gets a
    `GeneratorExit` too, but then another task runs, or none. A cancellation that reaches a task that nobody cancels is
    a crash: the code awaited something cancelled. So is `SystemExit`: a client must not be able to stop the server by
    what makes some parser exit.
    """
    if isinstance(error, Exception | SystemExit):
        return True
    if isinstance(error, KeyboardInterrupt):
        return False
    if isinstance(error, GeneratorExit):
        return task is None or task is current_task()
    return not being_cancelled()


def alone(error: BaseException) -> BaseException:
    """Return the only error in an exception group, which is what a task group makes of it; any other as it is."""
    if isinstance(error, BaseExceptionGroup):
        inside = cast("BaseExceptionGroup[BaseException]", error).exceptions
        return alone(inside[0]) if len(inside) == 1 else cast("BaseException", error)
    return error
