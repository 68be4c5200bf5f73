"""Actors: letters handled one at a time, by a worker that exists only while there are any.

Phoenix gives every joined channel a process. An actor keeps what that promises (order inside a channel, channels
independent of each other, a crash that stays inside) without its price: an idle actor owns no task, no queue and no
timer.
"""

import inspect
import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from enum import Enum, auto
from typing import Any, Literal, TypeAlias

import anyio

from starlette_channels.channels.definition import EndReason
from starlette_channels.channels.socket import Cleanup
from starlette_channels.channels.spawner import Spawner
from starlette_channels.observability.log_context import HERE, Scene
from starlette_channels.runtime.callables import name_of
from starlette_channels.runtime.cancellation import current_task, is_crash
from starlette_channels.runtime.handler_deadlines import watch_of_this_loop
from starlette_channels.runtime.tasks import Cancel, Run, within
from starlette_channels.runtime.turn_budget import Room, turns_of_this_loop

logger: logging.Logger = logging.getLogger("starlette_channels.channel")

Fate: TypeAlias = EndReason | Literal["refused"]
Step: TypeAlias = Callable[[Any], Coroutine[Any, Any, Any] | None]
"""What handles a letter: at once, or in the coroutine that it returns."""

NO_LETTER: Any = object()
"""Stands where the letter would be that is being handled; any value may be a letter."""

INTERRUPTING = frozenset({"error", "duplicate_join", "closed", "draining", "shutdown"})
"""The fates that do not wait for the running handler, if they come from outside of it."""


class Stage(Enum):
    """Where an actor is in its life."""

    LIVING = auto()
    ENDING = auto()
    ENDED = auto()


class Mark:
    """A letter that says nothing: when it is handled, all before it are."""

    __slots__ = ("reached",)

    def __init__(self) -> None:
        self.reached: anyio.Event = anyio.Event()

    def reach(self) -> None:
        """Let go on who waits for it."""
        self.reached.set()


class Actor(ABC):
    """Handles letters in order until it has a fate; then it ends, exactly once, and gives back what is left."""

    __slots__ = (
        *("_busy", "_children", "_cleanups", "_given_up", "_letter", "_mail", "_over", "_run", "_spawner", "_stage"),
        "fate",
    )

    def __init__(self, spawner: Spawner) -> None:
        self.fate: Fate | None = None
        self._spawner = spawner
        self._stage = Stage.LIVING
        self._busy = False
        self._given_up = False
        self._run: Run | None = None
        self._letter: Any = NO_LETTER
        self._mail: deque[tuple[Step, Any]] | None = None
        self._children: dict[object, Cancel | None] | None = None
        self._cleanups: list[Cleanup] | None = None
        self._over: anyio.Event | None = None

    @property
    @abstractmethod
    def scene(self) -> Scene:
        """Where its handlers are, for logs."""

    @abstractmethod
    def _finishes_first(self) -> bool:
        """Whether what is going on must be finished even though the fate is sealed."""

    @abstractmethod
    def _answered(self, letter: Any, answer: Any) -> None:
        """Take what the handler of a letter has returned."""

    @abstractmethod
    def _refused(self, letter: Any, error: Exception) -> bool:
        """Answer a letter whose handler refuses it by what it raised; false if that is no refusal."""

    @abstractmethod
    def _describe(self, step: Step, letter: Any) -> str:
        """Return what a letter is, and which function handles it, for logs."""

    @abstractmethod
    def _keep(self, letter: object) -> None:
        """Take note of a letter that has to wait, or whose handler does."""

    @abstractmethod
    def _turn_away(self, letter: object) -> None:
        """Take note of a letter for which there is no room."""

    @abstractmethod
    def _dealt_with(self, letter: object) -> None:
        """Take note of a letter that was kept, and has been handled or never will be."""

    @abstractmethod
    async def _end(self, leftovers: Iterable[Any]) -> None:
        """Do what the end takes; cancelling does not reach it. The leftovers are letters that came too late."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._stage is Stage.ENDED

    async def ended(self) -> None:
        """Wait until it has ended."""
        if self._stage is not Stage.ENDED:
            self._over = self._over or anyio.Event()
            await self._over.wait()

    @property
    def is_busy(self) -> bool:
        """Whether a letter is being handled, or the end is going on."""
        return self._busy

    async def settled(self) -> None:
        """Wait until what waits now has been handled, or never will be."""
        if self._busy and self._stage is Stage.LIVING:
            self._mail = self._mail or deque()
            self._mail.append((Mark.reach, mark := Mark()))
            await mark.reached.wait()

    def _take(self, step: Step, letter: object) -> None:
        """Handle a letter at once if nothing else is being handled, else behind those that wait."""
        tasks = self._spawner.tasks
        if self._busy or not tasks.eager or self._stage is not Stage.LIVING:
            self._post(step, letter)
            return
        self._busy = True
        run = tasks.begin(self._work(step, letter))
        if self._busy:
            self._run = run
            if self._letter is letter:
                self._keep(letter)
            if self.fate in INTERRUPTING and not self._finishes_first():
                self._interrupt()
            self._watch()

    def _post(self, step: Step, letter: object) -> None:
        """Put a letter behind those that wait; it is not handled before the caller has gone on."""
        if self._stage is not Stage.LIVING:
            return
        if self._mail is None:
            self._mail = deque()
        if len(self._mail) >= self._spawner.limits.mailbox:
            if self.fate in (None, "stopped"):
                text, waiting = "%r ended: %d letters wait", len(self._mail)
                self._spawner.error_log.note("mailbox_overflow", logger, text, self, waiting, level=logging.ERROR)
            self._seal("error")
            self._turn_away(letter)
            return
        self._keep(letter)
        self._mail.append((step, letter))
        self._wake()

    def _seal(self, fate: Fate, *, interrupt: bool = True) -> None:
        """End: at once if `interrupt`, else after the running handler. A stop can be overtaken, other fates stay."""
        if self._stage is not Stage.LIVING or self.fate not in (None, "stopped"):
            return
        self.fate = fate
        self._wake()
        if interrupt and not self._finishes_first():
            self._interrupt()

    def _settle(self, fate: Fate) -> None:
        """End after the running handler, whatever the fate was before."""
        self.fate = fate

    def _interrupt(self) -> None:
        if self._run is not None:
            self._spawner.tasks.interrupt(self._run, self._is_handling, self._give_up)

    def _is_handling(self) -> bool:
        return self._letter is not NO_LETTER and self._stage is Stage.LIVING

    def _give_up(self) -> None:
        """End without the running handler, which ignores its cancellation: it goes on by itself."""
        self._given_up = True
        self._stage = Stage.ENDING
        self._run = self._spawner.tasks.later(self._end_without_handler())

    async def _end_without_handler(self) -> None:
        with self._spawner.tasks.shield():
            await self._finish()
        self._busy = False
        self._run = self._mail = None

    def _wake(self) -> None:
        if not self._busy:
            self._busy = True
            self._run = self._spawner.tasks.later(self._work())
            self._watch()

    def _watch(self) -> None:
        """Let the time begin anew that a handler may take."""
        seconds = self._spawner.limits.handler_seconds
        if seconds < math.inf:
            watch_of_this_loop(seconds).begin(self)

    @property
    def is_working(self) -> bool:
        """Whether letters are being handled, which the watch wants to know."""
        return self._busy and self._stage is Stage.LIVING

    def overrun(self, seconds: float) -> None:
        """End, because the watch says that the handler has taken too long."""
        if self._letter is NO_LETTER:  # letters wait for time, and no handler is running
            self._watch()
        elif not self._finishes_first():
            text = "%r ended: a handler took more than %g seconds"
            self._spawner.error_log.note("handler_timeout", logger, text, self, seconds, level=logging.ERROR)
            self._seal("error")

    async def _work(self, step: Step | None = None, letter: Any = None) -> None:
        """Handle a letter, and those that come meanwhile."""
        # The letter that wakes the worker was counted when it came. If it waited again, channels would change places.
        kept, room = False, int(step is None)
        try:
            while self.fate is None or self._finishes_first():
                if step is None:
                    if not self._mail:
                        break
                    if room:
                        room -= 1
                    else:  # what waited for a slow handler is a turn's work like all else
                        turns = turns_of_this_loop()
                        turns.left -= 1
                        if turns.left < 0 and not turns.goes_on():
                            room = await Room().wait(turns)
                            continue
                    kept = True
                    step, letter = self._mail.popleft()
                self._letter = letter
                if HERE.wanted:
                    HERE.enter(self, letter)
                try:
                    coroutine = step(letter)
                    if coroutine is not None:
                        answer = await coroutine
                        if answer is not None:
                            self._answered(letter, answer)
                except BaseException as error:  # noqa: BLE001 - what is no crash is raised again
                    if self._given_up or not isinstance(error, Exception) or not self._refused(letter, error):
                        self._crashed(step, letter, error)
                finally:
                    self._letter = NO_LETTER
                    if kept or self._run is not None:
                        self._dealt_with(letter)
                        self._watch()
                step = None
        except BaseException:
            if self._given_up:  # nobody waits for it any more
                return
            self.fate = self.fate or "shutdown"
            raise
        finally:
            if not self._given_up:
                if self.fate is not None:
                    self._stage = Stage.ENDING
                    self._spawner.tasks.recover()
                    with self._spawner.tasks.shield():
                        await self._finish()
                self._busy = False
                self._run = self._mail = None

    def _crashed(self, step: Step, letter: Any, error: BaseException) -> None:
        """End because of what a handler has raised, or raise it again if that concerns others than this actor."""
        is_crash = self._is_crash(error)
        if is_crash or isinstance(error, KeyboardInterrupt):
            self._failed(self._describe(step, letter), error, interrupt=False)
        if not is_crash:
            raise error

    def _is_crash(self, error: BaseException) -> bool:
        """Whether what a handler let through ends this actor, and nothing else."""
        # While the run is being begun, its task is the running one, and it is not known yet.
        return is_crash(error, current_task() if self._run is None else getattr(self._run, "task", self._run))

    def _failed(self, what: str, error: BaseException, *, interrupt: bool) -> None:
        self._spawner.counts["channel_crashed"] += 1
        text = "%r ended: %s raised"
        self._spawner.error_log.note("channel_crashed", logger, text, self, what, cause=error, number=0)
        self._seal("error", interrupt=interrupt)

    async def _finish(self) -> None:
        leftovers = [letter for _, letter in self._mail or ()]
        self._mail = None
        for cancel in tuple((self._children or {}).values()):
            if cancel is not None:
                cancel()
        try:
            await self._end(leftovers)
            while self._cleanups:
                await self._clean_up(self._cleanups.pop())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this channel's
            self._spawner.error_log.note("end_failed", logger, "%r: its end failed", self, cause=error)
        finally:
            for letter in leftovers:
                if isinstance(letter, Mark):
                    letter.reach()
                else:
                    self._dealt_with(letter)
            self._stage = Stage.ENDED
            if self._over is not None:
                self._over.set()

    def _clean_up_with(self, cleanup: Cleanup) -> None:
        """Call a function at the end; if that is past, now."""
        if self._stage is Stage.ENDED:
            self._spawner.tasks.begin(self._clean_up(cleanup))
        else:
            self._cleanups = self._cleanups or []
            self._cleanups.append(cleanup)

    async def _clean_up(self, cleanup: Cleanup) -> None:
        what = f"on_close, {name_of(cleanup)},"
        try:
            waiting = cleanup()
        except BaseException as error:  # noqa: BLE001 - what is no crash is raised again
            self._end_failed(what, error)
        else:
            if inspect.isawaitable(waiting):
                await self._within_time(what, _wait_for(waiting))

    async def _within_time(self, what: str, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await within(self._spawner.limits.shutdown_seconds, self._spawner.counts, coroutine)
        except BaseException as error:  # noqa: BLE001 - what is no crash is raised again
            self._end_failed(what, error)

    def _end_failed(self, what: str, error: BaseException) -> None:
        if not is_crash(error):
            raise error
        self._spawner.error_log.note("end_failed", logger, "%r: %s failed", self, what, cause=error)

    def _start_child(self, function: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> None:
        """Run a function beside the letters until it returns or the actor ends; if it raises, the actor ends."""
        if self._stage is not Stage.LIVING:
            return
        self._children = self._children or {}
        key = object()
        self._children[key] = None
        cancel = self._spawner.spawn(self._run_child, key, function, args)
        if key in self._children:
            self._children[key] = cancel

    async def _run_child(
        self, key: object, function: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]
    ) -> None:
        task = current_task()
        if HERE.wanted:
            HERE.enter(self, None)
        try:
            coroutine = function(*args)
            if not inspect.isawaitable(coroutine):
                raise TypeError(f"start_soon({name_of(function)}): it must be `async def`")
            await coroutine
        except BaseException as error:
            what = f"start_soon({name_of(function)})"
            if isinstance(error, KeyboardInterrupt):
                self._failed(what, error, interrupt=True)
            if not is_crash(error, task):
                raise
            self._failed(what, error, interrupt=True)
        finally:
            assert self._children is not None
            del self._children[key]
            self._children = self._children or None


async def _wait_for(waiting: Awaitable[None]) -> None:
    await waiting
