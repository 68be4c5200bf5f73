"""Stop signals: clients are drained before the server gets a signal that tells it to stop.

Servers act on such a signal at once: uvicorn closes all connections before the application hears of it. So our handler
takes the place of theirs, and raises the signal again for them when the drain is over.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Protocol

import anyio

from starlette_channels.pubsub.hub import Hub
from starlette_channels.runtime.tasks import Tasks

SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
if sys.platform == "win32":
    SIGNALS += (signal.SIGBREAK,)

SAME_ORDER_SECONDS = 2.0
"""A SIGTERM that follows so soon is the same order sent twice: by systemd, say, and by uvicorn's supervisor."""


class Drainable(Protocol):
    """A drainer: it is called before the server stops."""

    async def drain(self, *, at_once: bool = False) -> None:
        """Send all clients away, in batches or at once."""
        ...

    def abort(self) -> None:
        """Close everything now."""
        ...


class StopSignals:
    """Holds stop signals back from the handlers that were installed before; one for the whole process.

    The first signal is held until everything is drained; a second one aborts the drain.
    """

    def __init__(self) -> None:
        self._drainables: dict[Drainable, Hub] = {}
        self._handlers: dict[int, Callable[[int, FrameType | None], Any] | int] = {}
        self._held: list[int] = []
        self._since = 0.0

    @contextmanager
    def held_until_drained(self, drainable: Drainable, hub: Hub) -> Generator[None]:
        """Hold signals back while the block runs; only the main thread gets any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._drainables[drainable] = hub
        if not self._handlers:
            self._install()
        try:
            yield
        finally:
            self._drainables.pop(drainable, None)
            if not self._drainables:
                self._release()

    def _install(self) -> None:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) or handler is signal.SIG_DFL:
                self._handlers[number] = handler
                signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        """Handle a signal: it may come in the middle of anything, so the event loop does the rest."""
        hub = next(reversed(self._drainables.values()))
        if not hub.run_later(self._drain_or_abort, number):
            self._release(number)

    def _drain_or_abort(self, number: int) -> None:
        if not self._held:
            self._held, self._since = [number], time.monotonic()
            Tasks().spawn(self._drain, self._is_urgent(number))
        elif number != signal.SIGTERM or time.monotonic() > self._since + SAME_ORDER_SECONDS:
            for drainable in self._drainables:
                drainable.abort()
            self._release(number)

    async def _drain(self, at_once: bool) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                for drainable in self._drainables:
                    tasks.start_soon(partial(drainable.drain, at_once=at_once))
        finally:
            self._release()

    def _release(self, *more: int) -> None:
        """Restore the handlers that were installed before, and raise the signals that were held."""
        handlers, self._handlers = self._handlers, {}
        held, self._held = [*self._held, *more], []
        for number, handler in handlers.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)

    def _is_urgent(self, number: int) -> bool:
        """Whether a user waits: Ctrl-C was pressed, uvicorn runs with `--reload`, or the server cannot be held back.

        A server cannot be held back if its event loop handles the signal, as hypercorn's does on asyncio.
        """
        handler = self._handlers.get(number)
        is_in_loop = getattr(handler, "__name__", "").endswith("sighandler_noop")
        config = getattr(getattr(handler, "__self__", None), "config", None)
        return is_in_loop or number == signal.SIGINT or bool(getattr(config, "reload", False))


STOP_SIGNALS = StopSignals()
