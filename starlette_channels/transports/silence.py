"""Silence: one sweep for all portable transports of an event loop finds the clients that say nothing any more."""

from typing import Protocol

from anyio.lowlevel import RunVar

from starlette_channels.waker import Waker, waker_of_this_loop

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

    __slots__ = ("_next", "_transports")

    def __init__(self) -> None:
        self._transports: set[Listening] = set()
        self._next: float | None = None

    def add(self, transport: Listening) -> None:
        """Watch a client."""
        self._transports.add(transport)
        waker, seconds = waker_of_this_loop(), pause(transport.idle_seconds)
        if self._next is None or self._next > waker.now() + seconds:
            self._begin(waker, seconds)

    def remove(self, transport: Listening) -> None:
        """Watch a client no longer."""
        self._transports.discard(transport)

    def _begin(self, waker: Waker, seconds: float) -> None:
        due = self._next = waker.now() + seconds
        waker.wake(seconds, lambda now: self._sweep(now) if self._next == due else None)

    def _sweep(self, now: float) -> None:
        self._next = None
        for transport in tuple(self._transports):
            transport.check_silence(now)
        if self._transports:
            self._begin(waker_of_this_loop(), pause(min(one.idle_seconds for one in self._transports)))


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
