"""What is done before the server obeys a signal that tells it to stop.

Servers act on such a signal at once; uvicorn then closes all connections before the application hears of it. So our
handler takes the place of theirs, and hands the signal on when those who asked for it are ready.
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
"""A SIGTERM that follows so soon is the same order heard twice: from systemd, say, and from uvicorn's supervisor."""


class Farewell(Protocol):
    """Something to do before the server stops."""

    async def drain(self, *, at_once: bool = False) -> None:
        """Do it, in its own time or at once."""
        ...

    def hurry(self) -> None:
        """Bring it to an end now."""
        ...


class StopSignals:
    """Holds signals back from the handlers that were there before; one for the whole process.

    The first is held until all farewells are said; a second one brings them to an end.
    """

    def __init__(self) -> None:
        self._farewells: dict[Farewell, Hub] = {}
        self._handlers: dict[int, Callable[[int, FrameType | None], Any] | int] = {}
        self._held: list[int] = []
        self._since = 0.0

    @contextmanager
    def held_for(self, farewell: Farewell, hub: Hub) -> Generator[None]:
        """Hold signals back for a farewell while the block runs; only the main thread hears of any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._farewells[farewell] = hub
        if not self._handlers:
            self._install()
        try:
            yield
        finally:
            self._farewells.pop(farewell, None)
            if not self._farewells:
                self._hand_on()

    def _install(self) -> None:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) or handler is signal.SIG_DFL:
                self._handlers[number] = handler
                signal.signal(number, self._hear)

    def _hear(self, number: int, _: FrameType | None) -> None:
        """Take a signal, in the middle of anything: the event loop decides what is done about it."""
        hub = next(reversed(self._farewells.values()))
        if not hub.run_later(self._obey, number):
            self._hand_on(number)

    def _obey(self, number: int) -> None:
        if not self._held:
            self._held, self._since = [number], time.monotonic()
            Tasks().spawn(self._say_farewells, self._is_urgent(number))
        elif number != signal.SIGTERM or time.monotonic() > self._since + SAME_ORDER_SECONDS:
            for farewell in self._farewells:
                farewell.hurry()
            self._hand_on(number)

    async def _say_farewells(self, at_once: bool) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                for farewell in self._farewells:
                    tasks.start_soon(partial(farewell.drain, at_once=at_once))
        finally:
            self._hand_on()

    def _hand_on(self, *more: int) -> None:
        """Put the handlers back that were there before, and let them hear what has been held."""
        handlers, self._handlers = self._handlers, {}
        held, self._held = [*self._held, *more], []
        for number, handler in handlers.items():
            if signal.getsignal(number) == self._hear:
                signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)

    def _is_urgent(self, number: int) -> bool:
        """Whether somebody waits: who pressed Ctrl-C, uvicorn's `--reload`, or a server that cannot be held back.

        That is one that hears of the signal from its event loop, as hypercorn does on asyncio.
        """
        handler = self._handlers.get(number)
        heard = getattr(handler, "__name__", "").endswith("sighandler_noop")
        config = getattr(getattr(handler, "__self__", None), "config", None)
        return heard or number == signal.SIGINT or bool(getattr(config, "reload", False))


STOP_SIGNALS = StopSignals()
