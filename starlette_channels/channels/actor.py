"""Actor: a mailbox whose messages are handled one at a time, by a task that exists only while there are any.

Phoenix gives every joined channel a process. An actor has the same guarantees (order inside a channel, channels
independent of each other, a crash that stays inside) without the price: an idle actor owns no task, no queue and no
timer.

An entry of the mailbox is a `letter`: a message of the client, a broadcast, an info message or a command.
"""

import inspect
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from enum import Enum, auto
from typing import Any, TypeAlias

import anyio

from starlette_channels.channels.client import ChannelClient
from starlette_channels.channels.socket import Cleanup, End
from starlette_channels.observability.log_context import HERE, Scene
from starlette_channels.runtime.callables import name_of
from starlette_channels.runtime.cancellation import current_task, is_crash
from starlette_channels.runtime.tasks import Cancel, Run, within
from starlette_channels.runtime.turn_budget import Room, turns_of_this_loop
from starlette_channels.wire.messages import Message

logger: logging.Logger = logging.getLogger("starlette_channels.channel")

Step: TypeAlias = Callable[[Any], Coroutine[Any, Any, Any] | None]
"""The function that handles a letter: at once, or in the coroutine that it returns."""

NO_LETTER: Any = object()
"""The value of the current letter while none is handled; any other value may be a letter."""

INTERRUPTING = frozenset({"error", "duplicate_join", "closed", "draining", "shutdown"})
"""The reasons to end that do not wait for the running handler, if they come from outside of it."""


class Stage(Enum):
    """The state of an actor."""

    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


class Marker:
    """An empty letter: when it is handled, all before it are."""

    __slots__ = ("reached",)

    def __init__(self) -> None:
        self.reached: anyio.Event = anyio.Event()

    def set(self) -> None:
        """Wake the waiters."""
        self.reached.set()


class Actor(ABC):
    """Handles letters in order until it has a reason to end; then it closes, exactly once."""

    __slots__ = (
        *(
            "_busy",
            "_children",
            "_cleanups",
            "_client",
            "_closed",
            "_given_up",
            "_letter",
            "_mailbox",
            "_run",
            "_stage",
        ),
        "end_reason",
    )

    def __init__(self, client: ChannelClient) -> None:
        self.end_reason: End | None = None
        self._client = client
        self._stage = Stage.OPEN
        self._busy = False
        self._given_up = False
        self._run: Run | None = None
        self._letter: Any = NO_LETTER
        self._mailbox: deque[tuple[Step, Any]] | None = None
        self._children: dict[object, Cancel | None] | None = None
        self._cleanups: list[Cleanup] | None = None
        self._closed: anyio.Event | None = None

    @property
    @abstractmethod
    def scene(self) -> Scene:
        """The topic and connection of its handlers, for logs."""

    @abstractmethod
    def _must_finish(self) -> bool:
        """Whether the running handler must finish although the actor is to end."""

    @abstractmethod
    def _answer(self, letter: Any, answer: Any) -> None:
        """Send the return value of a letter's handler."""

    @abstractmethod
    def _answer_refusal(self, letter: Any, error: Exception) -> bool:
        """Answer a letter whose handler has raised a refusal; false if the error is no refusal."""

    @abstractmethod
    def _describe(self, step: Step, letter: Any) -> str:
        """Return the kind of a letter, and the name of its handler, for logs."""

    @abstractmethod
    def _reject(self, letter: object) -> None:
        """Answer a letter for which the mailbox has no room."""

    @abstractmethod
    async def _close_channel(self, leftovers: Iterable[Any]) -> None:
        """Close, shielded from cancellation. The leftovers are letters that came too late."""

    @property
    def is_closed(self) -> bool:
        """Whether it is over, cleanups included."""
        return self._stage is Stage.CLOSED

    async def closed(self) -> None:
        """Wait until it is over."""
        if self._stage is not Stage.CLOSED:
            self._closed = self._closed or anyio.Event()
            await self._closed.wait()

    @property
    def is_busy(self) -> bool:
        """Whether a letter is being handled, or the close is going on."""
        return self._busy

    async def drained(self) -> None:
        """Wait until the letters that wait now have been handled, or never will be."""
        if self._busy and self._stage is Stage.OPEN:
            self._mailbox = self._mailbox or deque()
            self._mailbox.append((Marker.set, marker := Marker()))
            await marker.reached.wait()

    def _start(self, step: Step, letter: object) -> None:
        """Handle a letter at once if the actor is idle, else behind those that wait."""
        tasks = self._client.tasks
        if self._busy or not tasks.eager or self._stage is not Stage.OPEN:
            self._enqueue(step, letter)
            return
        self._busy = True
        run = tasks.begin(self._work(step, letter))
        if self._busy:
            self._suspended(run, letter)

    def _suspended(self, run: Run, letter: object) -> None:
        """Note that the handler of a letter, which was begun at once, waits for something."""
        self._run = run
        if self._letter is letter and type(letter) is Message:
            self._client.add_backlog(letter)
        if self.end_reason in INTERRUPTING and not self._must_finish():
            self._interrupt()
        self._watch()

    def _enqueue(self, step: Step, letter: object) -> None:
        """Put a letter behind those that wait; it is not handled before the caller has gone on."""
        if self._stage is not Stage.OPEN:
            return
        client = self._client
        if self._mailbox is None:
            self._mailbox = deque()
        if len(self._mailbox) >= client.limits.mailbox:
            if self.end_reason in (None, "stopped"):
                text, waiting = "%r ended: %d letters wait", len(self._mailbox)
                client.error_log.note("mailbox_overflow", logger, text, self, waiting, level=logging.ERROR)
            self._end("error")
            self._reject(letter)
            return
        if type(letter) is Message:
            client.add_backlog(letter)
        self._mailbox.append((step, letter))
        if not self._busy:
            self._wake()

    def _end(self, reason: End, *, interrupt: bool = True) -> None:
        """End: at once if `interrupt`, else after the running handler. The first reason stays, but for "stopped"."""
        if self._stage is not Stage.OPEN or self.end_reason not in (None, "stopped"):
            return
        self.end_reason = reason
        if not self._busy:
            self._wake()
        if interrupt and not self._must_finish():
            self._interrupt()

    def _interrupt(self) -> None:
        if self._run is not None:
            self._client.tasks.interrupt(self._run, self._is_handling, self._give_up)

    def _is_handling(self) -> bool:
        return self._letter is not NO_LETTER and self._stage is Stage.OPEN

    def _give_up(self) -> None:
        """Close without the running handler, which ignores its cancellation: it goes on by itself."""
        self._given_up = True
        self._stage = Stage.CLOSING
        self._run = self._client.tasks.later(self._close_without_handler())

    async def _close_without_handler(self) -> None:
        with self._client.tasks.shield():
            await self._close_actor()
        self._busy = False
        self._run = self._mailbox = None

    def _wake(self) -> None:
        """Start the task that empties the mailbox."""
        self._busy = True
        self._run = self._client.tasks.later(self._work())
        self._watch()

    def _watch(self) -> None:
        """Restart the time that a handler may take."""
        watch = self._client.handler_watch
        if watch is not None:
            watch.begin(self)

    @property
    def is_working(self) -> bool:
        """Whether letters are being handled; for the watch over slow handlers."""
        return self._busy and self._stage is Stage.OPEN

    def overrun(self, seconds: float) -> None:
        """End, because the running handler has taken too long."""
        if self._letter is NO_LETTER:  # letters wait for time, and no handler is running
            self._watch()
        elif not self._must_finish():
            text = "%r ended: a handler took more than %g seconds"
            self._client.error_log.note("handler_timeout", logger, text, self, seconds, level=logging.ERROR)
            self._end("error")

    async def _work(self, step: Step | None = None, letter: Any = None) -> None:
        """Handle a letter, and those that come meanwhile; then close, if there is a reason to."""
        # The letter that wakes the worker was counted when it came. If it waited again, channels would change places.
        kept, room = False, 1 if step is None else 0
        try:
            while self.end_reason is None or self._must_finish():
                if step is None:
                    if not self._mailbox:
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
                    step, letter = self._mailbox.popleft()
                self._letter = letter
                if HERE.wanted:
                    HERE.enter(self, letter)
                try:
                    coroutine = step(letter)
                    if coroutine is not None:
                        answer = await coroutine
                        if answer is not None:
                            self._answer(letter, answer)
                except BaseException as error:  # noqa: BLE001 - what is no crash is raised again
                    if self._given_up or not isinstance(error, Exception) or not self._answer_refusal(letter, error):
                        self._crashed(step, letter, error)
                finally:
                    self._letter = NO_LETTER
                    if kept or self._run is not None:
                        if type(letter) is Message:
                            self._client.remove_backlog(letter)
                        self._watch()
                step = None
        except BaseException:
            if self._given_up:  # nobody waits for it any more
                return
            self.end_reason = self.end_reason or "shutdown"
            raise
        finally:
            if not self._given_up:
                if self.end_reason is not None:
                    self._stage = Stage.CLOSING
                    self._client.tasks.recover()
                    with self._client.tasks.shield():
                        await self._close_actor()
                self._busy = False
                self._run = self._mailbox = None

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
        self._client.counts["channel_crashed"] += 1
        text = "%r ended: %s raised"
        self._client.error_log.note("channel_crashed", logger, text, self, what, cause=error, number=0)
        self._end("error", interrupt=interrupt)

    async def _close_actor(self) -> None:
        """Close, whatever becomes of it; then the letters that are left are let go."""
        leftovers = [letter for _, letter in self._mailbox or ()]
        self._mailbox = None
        for cancel in tuple((self._children or {}).values()):
            if cancel is not None:
                cancel()
        try:
            await self._close_channel(leftovers)
            while self._cleanups:
                await self._clean_up(self._cleanups.pop())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this channel's
            self._client.error_log.note("end_failed", logger, "%r: its end failed", self, cause=error)
        finally:
            for letter in leftovers:
                if isinstance(letter, Marker):
                    letter.set()
                elif type(letter) is Message:
                    self._client.remove_backlog(letter)
            self._stage = Stage.CLOSED
            if self._closed is not None:
                self._closed.set()

    def _add_cleanup(self, cleanup: Cleanup) -> None:
        """Call a function at the end; if that is past, now."""
        if self._stage is Stage.CLOSED:
            self._client.tasks.begin(self._clean_up(cleanup))
        else:
            self._cleanups = self._cleanups or []
            self._cleanups.append(cleanup)

    async def _clean_up(self, cleanup: Cleanup) -> None:
        what = f"on_close, {name_of(cleanup)},"
        try:
            waiting = cleanup()
        except BaseException as error:  # noqa: BLE001 - what is no crash is raised again
            self._note_failed_end(what, error)
        else:
            if inspect.isawaitable(waiting):
                await self._within_time(what, _wait_for(waiting))

    async def _within_time(self, what: str, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await within(self._client.limits.shutdown_seconds, self._client.counts, coroutine)
        except BaseException as error:  # noqa: BLE001 - what is no crash is raised again
            self._note_failed_end(what, error)

    def _note_failed_end(self, what: str, error: BaseException) -> None:
        if not is_crash(error):
            raise error
        self._client.error_log.note("end_failed", logger, "%r: %s failed", self, what, cause=error)

    def _start_child(self, function: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> None:
        """Run a function beside the letters until it returns or the actor ends; if it raises, the actor ends."""
        if self._stage is not Stage.OPEN:
            return
        self._children = self._children or {}
        key = object()
        self._children[key] = None
        cancel = self._client.spawn(self._run_child, key, function, args)
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
