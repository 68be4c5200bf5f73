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


class Sweeper:
    """Flushes clients in the order in which they were added. One serves all transports of an event loop."""

    __slots__ = ("_clients", "_current", "_loop", "_sweeping")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._clients: deque[Writable] = deque()
        self._current: Writable | None = None
        self._sweeping: asyncio.Task[None] | None = None

    def add(self, client: Writable) -> None:
        """Flush a client soon."""
        self._clients.append(client)
        if self._sweeping is None:
            self._start()

    def _start(self) -> None:
        self._sweeping = self._loop.create_task(self._sweep())
        self._loop.call_soon(self._move_on, self._sweeping)  # after the task's first step

    async def _sweep(self) -> None:
        task = asyncio.current_task()
        while self._sweeping is task and self._clients:
            self._current = self._clients.popleft()
            await self._current.flush()
        if self._sweeping is task:
            self._sweeping = self._current = None

    def _move_on(self, task: asyncio.Task[None]) -> None:
        """Leave a task that has not come to its end in one step to the client that it waits for."""
        if self._sweeping is not task:
            return
        if self._current is not None:
            self._current.waits(task.cancel)
        self._sweeping = self._current = None
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
