"""Writing to many clients in one task, on asyncio.

A broadcast makes a thousand clients writable at once. Sending to one hardly ever waits, so one task that sends to all
of them in a row costs a tenth of a task for each. When a send does wait, its task stays with that client, and another
sweeps on: a client that does not read holds up nobody.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from anyio.lowlevel import RunVar


class Writable(Protocol):
    """A client with frames to send."""

    async def flush(self) -> None:
        """Send what waits. It must not raise."""
        ...

    def waits(self, cancel: Callable[[], object]) -> None:
        """Take note that a send does wait; `cancel` ends that."""
        ...


class Turn:
    """One task's turn at sweeping; it ends when the task is left to a client."""

    __slots__ = ("client", "task")

    def __init__(self) -> None:
        self.client: Writable | None = None
        self.task: asyncio.Task[None] | None = None


class Sweeper:
    """Flushes clients in the order in which they were added. One serves all transports of an event loop."""

    __slots__ = ("_clients", "_loop", "_turn")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._clients: deque[Writable] = deque()
        self._turn: Turn | None = None

    def add(self, client: Writable) -> None:
        """Flush a client soon."""
        self._clients.append(client)
        if self._turn is None:
            self._start()

    def _start(self) -> None:
        self._turn = Turn()
        self._turn.task = self._loop.create_task(self._sweep(self._turn))
        self._loop.call_soon(self._move_on, self._turn)  # after the first step of the task

    async def _sweep(self, turn: Turn) -> None:
        while self._turn is turn and self._clients:
            turn.client = self._clients.popleft()
            await turn.client.flush()
        if self._turn is turn:
            self._turn = None

    def _move_on(self, turn: Turn) -> None:
        """Leave a task that has not come to its end in one step to the client that it waits for."""
        if self._turn is not turn:
            return
        if turn.client is not None and turn.task is not None:
            turn.client.waits(turn.task.cancel)
        self._turn = None
        if self._clients:
            self._start()


_sweeper: RunVar[Sweeper] = RunVar("starlette_channels_sweeper")


def sweeper_of_this_loop() -> Sweeper | None:
    """Return the event loop's sweeper; `None` on trio, where every send is a task's own business."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    try:
        return _sweeper.get()
    except LookupError:
        sweeper = Sweeper(loop)
        _sweeper.set(sweeper)
        return sweeper
