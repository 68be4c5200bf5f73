"""Actor: a mailbox with messages handled one at a time, by a task that exists only while the mailbox has messages.

Phoenix gives every joined channel a process. An actor has the same guarantees (order inside a channel, channels
independent of each other, a crash limited to its channel) at a lower cost: an idle actor owns no task, no queue and no
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
"""The function that handles a letter: at once, or in a returned coroutine."""

NO_LETTER: Any = object()
"""The value of `_letter` while no letter is handled; any other value, `None` included, may be a letter."""

INTERRUPTING = frozenset({"error", "duplicate_join", "closed", "draining", "shutdown"})
"""The end reasons that interrupt the running handler, unless it ended the channel itself."""


class Stage(Enum):
    """The state of an actor."""

    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


class Marker:
    """An empty letter: once it is handled, all letters before it are handled."""

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
        """Whether the running handler must finish although the actor has a reason to end."""

    @abstractmethod
    def _answer(self, letter: Any, answer: Any) -> None:
        """Send the return value of a letter's handler."""

    @abstractmethod
    def _answer_refusal(self, letter: Any, error: Exception) -> bool:
        """Answer a letter after its handler has raised a refusal; return False if the error is not a refusal."""

    @abstractmethod
    def _describe(self, step: Step, letter: Any) -> str:
        """Return the kind of a letter, and the name of its handler, for logs."""

    @abstractmethod
    def _reject(self, letter: object) -> None:
        """Answer a letter that does not fit into the full mailbox."""

    @abstractmethod
    async def _close_channel(self, leftovers: Iterable[Any]) -> None:
        """Close, shielded from cancellation. `leftovers` are the unhandled letters."""

    @property
    def is_closed(self) -> bool:
        """Whether it is closed, cleanups included."""
        return self._stage is Stage.CLOSED

    async def closed(self) -> None:
        """Wait until it is closed, cleanups included."""
        if self._stage is not Stage.CLOSED:
            self._closed = self._closed or anyio.Event()
            await self._closed.wait()

    @property
    def is_busy(self) -> bool:
        """Whether a letter is being handled, or the close is in progress."""
        return self._busy

    async def drained(self) -> None:
        """Wait until the letters now in the mailbox have been handled or dropped."""
        if self._busy and self._stage is Stage.OPEN:
            self._mailbox = self._mailbox or deque()
            self._mailbox.append((Marker.set, marker := Marker()))
            await marker.reached.wait()

    def _start(self, step: Step, letter: object) -> None:
        """Handle a letter at once if the actor is idle, else append it to the mailbox."""
        tasks = self._client.tasks
        if self._busy or not tasks.eager or self._stage is not Stage.OPEN:
            self._enqueue(step, letter)
            return
        self._busy = True
        run = tasks.begin(self._work(step, letter))
        if self._busy:
            self._suspended(run, letter)

    def _suspended(self, run: Run, letter: object) -> None:
        """Register the run of a handler that was started at once and is now suspended."""
        self._run = run
        if self._letter is letter and type(letter) is Message:
            self._client.add_backlog(letter)
        if self.end_reason in INTERRUPTING and not self._must_finish():
            self._interrupt()
        self._watch()

    def _enqueue(self, step: Step, letter: object) -> None:
        """Append a letter to the mailbox; it is never handled within this call."""
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
        """End: at once if `interrupt`, else after the running handler. The first reason is kept, except "stopped"."""
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
        """Close without waiting for the running handler, because it ignores its cancellation. Its task continues."""
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
        """Restart the time limit of the handler."""
        watch = self._client.handler_watch
        if watch is not None:
            watch.begin(self)

    @property
    def is_working(self) -> bool:
        """Whether letters are being handled; for the watch over slow handlers."""
        return self._busy and self._stage is Stage.OPEN

    def overrun(self, seconds: float) -> None:
        """End, because the running handler has taken too long."""
        if self._letter is NO_LETTER:  # letters wait for a turn, and no handler is running
            self._watch()
        elif not self._must_finish():
            text = "%r ended: a handler took more than %g seconds"
            self._client.error_log.note("handler_timeout", logger, text, self, seconds, level=logging.ERROR)
            self._end("error")

    async def _work(self, step: Step | None = None, letter: Any = None) -> None:
        """Handle a letter, and all letters that arrive meanwhile; then close, if there is an end reason."""
        # The letter that wakes the worker was counted on arrival. A second wait would change the order of channels.
        kept, room = False, 1 if step is None else 0
        try:
            while self.end_reason is None or self._must_finish():
                if step is None:
                    if not self._mailbox:
                        break
                    if room:
                        room -= 1
                    else:  # letters that waited for a slow handler count against the budget, too
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
                except BaseException as error:  # noqa: BLE001 - raised again unless it is a crash
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
            if self._given_up:  # the channel has closed without this task
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
        """End because of the error of a handler; raise it again if it concerns more than this actor."""
        is_crash = self._is_crash(error)
        if is_crash or isinstance(error, KeyboardInterrupt):
            self._failed(self._describe(step, letter), error, interrupt=False)
        if not is_crash:
            raise error

    def _is_crash(self, error: BaseException) -> bool:
        """Whether an error of a handler ends this actor, and nothing else."""
        # During an eager start `_run` is not set yet: its task is the running task.
        return is_crash(error, current_task() if self._run is None else getattr(self._run, "task", self._run))

    def _failed(self, what: str, error: BaseException, *, interrupt: bool) -> None:
        self._client.counts["channel_crashed"] += 1
        text = "%r ended: %s raised"
        self._client.error_log.note("channel_crashed", logger, text, self, what, cause=error, number=0)
        self._end("error", interrupt=interrupt)

    async def _close_actor(self) -> None:
        """Close the channel and run the cleanups; then release the remaining letters, even after an error."""
        leftovers = [letter for _, letter in self._mailbox or ()]
        self._mailbox = None
        for cancel in tuple((self._children or {}).values()):
            if cancel is not None:
                cancel()
        try:
            await self._close_channel(leftovers)
            while self._cleanups:
                await self._clean_up(self._cleanups.pop())
        except Exception as error:  # noqa: BLE001 - any error concerns this channel only
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
        """Register a function to call at the end; call it now if the channel has closed."""
        if self._stage is Stage.CLOSED:
            self._client.tasks.begin(self._clean_up(cleanup))
        else:
            self._cleanups = self._cleanups or []
            self._cleanups.append(cleanup)

    async def _clean_up(self, cleanup: Cleanup) -> None:
        what = f"on_close, {name_of(cleanup)},"
        try:
            waiting = cleanup()
        except BaseException as error:  # noqa: BLE001 - raised again unless it is a crash
            self._note_failed_end(what, error)
        else:
            if inspect.isawaitable(waiting):
                await self._within_time(what, _wait_for(waiting))

    async def _within_time(self, what: str, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await within(self._client.limits.shutdown_seconds, self._client.counts, coroutine)
        except BaseException as error:  # noqa: BLE001 - raised again unless it is a crash
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
