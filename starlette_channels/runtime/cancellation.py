"""Cancellation of application code: repeated after growing pauses, then given up and logged.

A cancel scope of anyio repeats its cancellation in every iteration of the event loop, so a bare `except:` in a loop
would keep a core busy for ever. Here a function that ignores its cancellation is given up after a few attempts: it
keeps running, but nothing waits for it any more.
"""

import asyncio
import atexit
import contextvars
import ctypes
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import CoroutineType
from typing import Any, Protocol, cast

import anyio

from starlette_channels.observability.error_log import ErrorLog

logger: logging.Logger = logging.getLogger("starlette_channels.tasks")

PAUSES = (0.2, 0.4, 0.8, 1.6)
"""Seconds after each attempt to cancel a function; it is given up after the last one, 3 seconds after the first."""

GIVEN_UP_SECONDS = sum(PAUSES) + 0.5
"""Seconds after which a cancelled function has certainly ended or been given up."""

IGNORED = ErrorLog(Counter())
"""Throttles the log lines about ignored cancellations, for the whole process."""

OURS = ("starlette_channels.", "anyio.", "trio.", "asyncio.")


def always() -> bool:
    """Return true: the default for `wanted`."""
    return True


def nothing() -> None:
    """Do nothing: the default for `give_up`."""


def function_in(coroutine: object) -> str:
    """Return the name of the application's function in which a task is suspended: `chat.rooms.new_msg`.

    Skips frames of this package and of the event loop.
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
    """Count and log a function that has been given up."""
    if counts is not None:
        counts["cancellation_ignored"] += 1
    text = "%s ignores its cancellation: given up after %d attempts in %g seconds; do not catch CancelledError"
    name = function_in(coroutine)
    IGNORED.note("cancellation_ignored", logger, text, name, len(PAUSES), sum(PAUSES), level=logging.ERROR)


PASSED_ON: set[object] = set()
"""Tasks that were cancelled, have cancelled the code that they wait for, and end when it has ended or is given up."""


# asyncio

_being_cancelled: "set[asyncio.Task[Any]]" = set()


def cancel_task(
    task: "asyncio.Task[Any]",
    counts: Counter[str] | None,
    wanted: Callable[[], bool] = always,
    give_up: Callable[[], None] = nothing,
) -> None:
    """Cancel an asyncio task now, and again after each pause while `wanted()` is true; in the end call `give_up`.

    A second call for a task does nothing until the first has finished.
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
    if task.done() or not wanted() or task in PASSED_ON:
        _being_cancelled.discard(task)
    elif asyncio.current_task(loop) is task:  # it calls this itself, and may be about to end
        loop.call_soon(_cancel_again, task, times, counts, wanted, give_up)
    elif times == len(PAUSES):
        _being_cancelled.discard(task)
        note_given_up(task.get_coro(), counts)
        for started in (*_pace_task_groups(task, again=False), *_tasks_of_groups(task.get_coro())):
            _let_the_loop_end_without(started)
        _let_the_loop_end_without(task)
        give_up()
    else:
        task.cancel()
        if times:
            _pace_task_groups(task, again=True)
        loop.call_later(PAUSES[times], _cancel_again, task, times + 1, counts, wanted, give_up)


def _pace_task_groups(task: "asyncio.Task[Any]", *, again: bool) -> "list[asyncio.Task[Any]]":
    """Keep anyio's task groups in a cancelled function from repeating the cancellation in every turn.

    With `again`, it is repeated once. Returns the tasks of the groups. Anyio has no public way to either.
    """
    states: Any = getattr(sys.modules.get("anyio._backends._asyncio"), "_task_states", {})
    scope = getattr(states.get(task), "cancel_scope", None)
    scopes: list[Any] = []
    while scope is not None and scope._host_task is task:
        scopes.append(scope)
        scope = scope._parent_scope
    started: list[asyncio.Task[Any]] = []
    for scope in scopes:  # which grows meanwhile
        scopes += [child for child in scope._child_scopes if child not in scopes]
        started += [one for one in scope._tasks if one is not task]
        for repeat in (again, False):
            if scope._cancel_handle is not None:
                scope._cancel_handle.cancel()
                if repeat:
                    scope._deliver_cancellation(scope)
    return started


def _tasks_of_groups(coroutine: object) -> "Iterator[asyncio.Task[Any]]":
    """Yield the tasks of asyncio's task groups that suspended functions have, such as `tasks` in `as tasks:`."""
    while isinstance(coroutine, CoroutineType):
        suspended = cast("CoroutineType[Any, Any, Any]", coroutine)
        for local in () if suspended.cr_frame is None else tuple(suspended.cr_frame.f_locals.values()):
            if isinstance(local, asyncio.TaskGroup):
                yield from tuple(cast("Any", local)._tasks)
        coroutine = suspended.cr_await


_given_up: "set[asyncio.Task[Any]]" = set()


def _let_the_loop_end_without(task: "asyncio.Task[Any]") -> None:
    """Hide a given-up task from `asyncio.run` and the interpreter, which would wait for it for ever."""
    unregister: Callable[[object], None] = asyncio._unregister_task  # pyright: ignore - "Extending asyncio" has it
    unregister(task)
    if not _given_up:
        atexit.register(_leave_open)
    _given_up.add(task)
    task.add_done_callback(_given_up.discard)


def _leave_open() -> None:
    """Keep the interpreter from closing given-up coroutines at exit: one that ignores `GeneratorExit` in a loop would
    never end.
    """
    for task in _given_up:
        cast("Any", task)._log_destroy_pending = False
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(task.get_coro()))


# trio


class TrioRun:
    """One run of an async function on trio.

    Trio repeats a cancellation at each await. So the outer scope is cancelled once, and an inner shielded scope lets
    the cancellation through only for a moment after each pause.
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
        """Cancel the function; if it has not started, at its first await."""
        if not self.cancelled:
            self.cancelled = True
            if self._inner is not None:
                self._begin_to_cancel()

    def _begin_to_cancel(self) -> None:
        import trio  # an optional dependency, installed if its event loop runs

        trio.lowlevel.spawn_system_task(self._pace, context=contextvars.Context())

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Run the function, and absorb the cancellation of this run."""
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
                await trio.lowlevel.checkpoint()  # for a function that is not waiting right now
                self._inner.shield = True
                await trio.sleep(pause)
                if not self.wanted() or self.task in PASSED_ON:
                    return
            if self.task is not None:
                note_given_up(self.task.coro, self.counts)
            self.give_up()


TRIO_RUN: contextvars.ContextVar[TrioRun | None] = contextvars.ContextVar("starlette_channels_trio_run", default=None)
"""The current run, on trio."""


# both


class CurrentTask(Protocol):
    """A task of asyncio or trio."""


def current_task() -> CurrentTask | None:
    """Return the running task of asyncio or trio, or `None`."""
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
    """Whether the running task is being cancelled, by a cancel scope, by asyncio or by its `TrioRun`."""
    if anyio.current_effective_deadline() == float("-inf"):
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:
        run = TRIO_RUN.get()
        return run is not None and run.cancelled
    return task is not None and task.cancelling() > 0


def is_crash(error: BaseException, task: object = None) -> bool:
    """Whether an exception raised by application code is a crash of that code only, and must not propagate.

    A cancellation error is a crash if the running task is not being cancelled: the code awaited a cancelled task.
    `SystemExit` is a crash, so that a client cannot stop the server with input that makes a parser exit.
    `GeneratorExit` is a crash if `task`, the task of the code, is the running one; otherwise the coroutine is being
    garbage-collected.
    """
    if isinstance(error, Exception | SystemExit):
        return True
    if isinstance(error, KeyboardInterrupt):
        return False
    if isinstance(error, GeneratorExit):
        return task is None or task is current_task()
    return not being_cancelled()


def alone(error: BaseException) -> BaseException:
    """Unwrap an exception group with a single error, as a task group raises it; return any other error unchanged."""
    if isinstance(error, BaseExceptionGroup):
        inside = cast("BaseExceptionGroup[BaseException]", error).exceptions
        return alone(inside[0]) if len(inside) == 1 else cast("BaseException", error)
    return error
