"""Silence: one sweep for all portable transports of an event loop finds the clients that say nothing any more."""

from typing import TYPE_CHECKING, Protocol

import anyio
from anyio.lowlevel import RunVar

from starlette_channels.runtime.timers import call_later

if TYPE_CHECKING:
    from starlette_channels.runtime.tasks import Cancel

SLOWEST_SWEEP = 5.0


class Listening(Protocol):
    """A transport that listens to a client."""

    @property
    def idle_seconds(self) -> float:
        """How long the client may be silent."""
        ...

    def check_silence(self, now: float) -> None:
        """Look whether the client has been silent for too long. It may run outside of any task."""
        ...


class SilenceWatch:
    """Sweeps. A transport costs it an entry in a set, and nothing when it has ended."""

    __slots__ = ("_cancel", "_next", "_transports")

    def __init__(self) -> None:
        self._transports: set[Listening] = set()
        self._next: float | None = None
        self._cancel: Cancel | None = None

    def add(self, transport: Listening) -> None:
        """Watch a client."""
        self._transports.add(transport)
        now, seconds = anyio.current_time(), pause(transport.idle_seconds)
        if self._next is None or self._next > now + seconds:
            self._begin(now, seconds)

    def remove(self, transport: Listening) -> None:
        """Watch a client no longer."""
        self._transports.discard(transport)
        if not self._transports:
            self._stop()

    def _begin(self, now: float, seconds: float) -> None:
        self._stop()
        self._next = now + seconds
        self._cancel = call_later(seconds, self._sweep)

    def _stop(self) -> None:
        self._next = None
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def _sweep(self, now: float) -> None:
        self._cancel = None  # it is over
        self._begin(now, pause(min(one.idle_seconds for one in self._transports)))
        for transport in tuple(self._transports):
            transport.check_silence(now)


def pause(idle_seconds: float) -> float:
    """Return how long to wait from one sweep to the next."""
    return min(idle_seconds / 8, SLOWEST_SWEEP)


_watch: RunVar[SilenceWatch] = RunVar("starlette_channels_silence")


def silence_watch_of_this_loop() -> SilenceWatch:
    """Return the event loop's watch, on asyncio and trio."""
    try:
        return _watch.get()
    except LookupError:
        watch = SilenceWatch()
        _watch.set(watch)
        return watch
