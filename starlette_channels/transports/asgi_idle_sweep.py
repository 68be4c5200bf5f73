"""Idle timeouts of the portable transport: one timer for all clients of an event loop."""

from typing import TYPE_CHECKING, Protocol

import anyio
from anyio.lowlevel import RunVar

from starlette_channels.runtime.timers import call_later

if TYPE_CHECKING:
    from starlette_channels.runtime.tasks import Cancel

SLOWEST_SWEEP = 5.0
"""Maximum seconds between two sweeps."""


class IdleClient(Protocol):
    """A client with an idle timeout."""

    @property
    def idle_seconds(self) -> float:
        """Idle timeout of the client in seconds."""
        ...

    def check_silence(self, now: float) -> None:
        """Close the client if it has been silent for too long. May be called outside of any task."""
        ...


class AsgiIdleSweep:
    """Periodic check for silent clients. Each client costs one set entry; without clients there is no timer."""

    __slots__ = ("_cancel", "_next", "_transports")

    def __init__(self) -> None:
        self._transports: set[IdleClient] = set()
        self._next: float | None = None
        self._cancel: Cancel | None = None

    def add(self, transport: IdleClient) -> None:
        """Start checking a client."""
        self._transports.add(transport)
        now, seconds = anyio.current_time(), pause(transport.idle_seconds)
        if self._next is None or self._next > now + seconds:
            self._begin(now, seconds)

    def remove(self, transport: IdleClient) -> None:
        """Stop checking a client."""
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
        self._cancel = None  # the timer has fired
        self._begin(now, pause(min(one.idle_seconds for one in self._transports)))
        for transport in tuple(self._transports):
            transport.check_silence(now)


def pause(idle_seconds: float) -> float:
    """Return the seconds from one sweep to the next."""
    return min(idle_seconds / 8, SLOWEST_SWEEP)


_idle_sweep: RunVar[AsgiIdleSweep] = RunVar("starlette_channels_idle_sweep")


def idle_sweep_of_this_loop() -> AsgiIdleSweep:
    """Return the event loop's idle sweep, on asyncio and trio."""
    try:
        return _idle_sweep.get()
    except LookupError:
        sweep = AsgiIdleSweep()
        _idle_sweep.set(sweep)
        return sweep
