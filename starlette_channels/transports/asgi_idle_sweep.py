"""Silence: one sweep for all portable transports of an event loop finds the clients that say nothing any more."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from anyio.lowlevel import RunVar

from starlette_channels.runtime.timers import clock_of_this_loop, waker_of_this_loop

SLOWEST_SWEEP = 5.0


class Listening(Protocol):
    """A transport that listens to a client."""

    @property
    def idle_seconds(self) -> float:
        """How long the client may be silent."""
        ...

    def check_silence(self, now: float) -> None:
        """Look whether the client has been silent for too long."""
        ...


class SilenceWatch:
    """Sweeps. A transport costs it an entry in a set, and nothing when it has ended."""

    __slots__ = ("_next", "_now", "_timer", "_transports")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._now = clock  # `anyio.current_time` raises in the callback of a timer, if sniffio is installed
        self._transports: set[Listening] = set()
        self._next: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, transport: Listening) -> None:
        """Watch a client."""
        self._transports.add(transport)
        seconds = pause(transport.idle_seconds)
        if self._next is None or self._next > self._now() + seconds:
            self._begin(seconds)

    def remove(self, transport: Listening) -> None:
        """Watch a client no longer."""
        self._transports.discard(transport)
        if not self._transports:
            self._stop()

    def _begin(self, seconds: float) -> None:
        self._stop()
        due = self._next = self._now() + seconds
        try:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._sweep, due)
        except RuntimeError:  # trio has no timers but tasks
            waker_of_this_loop().wake(seconds, lambda now: self._sweep(due))

    def _stop(self) -> None:
        self._next = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self, due: float) -> None:
        if self._next != due:
            return
        self._next = None
        now = self._now()
        for transport in tuple(self._transports):
            transport.check_silence(now)
        if self._transports:
            self._begin(pause(min(one.idle_seconds for one in self._transports)))


def pause(idle_seconds: float) -> float:
    """Return how long to wait from one sweep to the next."""
    return min(idle_seconds / 8, SLOWEST_SWEEP)


_watch: RunVar[SilenceWatch] = RunVar("starlette_channels_silence")


def silence_watch_of_this_loop() -> SilenceWatch:
    """Return the event loop's watch, on asyncio and trio."""
    try:
        return _watch.get()
    except LookupError:
        watch = SilenceWatch(clock_of_this_loop())
        _watch.set(watch)
        return watch
