"""What the fast lane's connections of one event loop share: one outlet, and one sweep for timeouts."""

import asyncio
from typing import Protocol

from anyio.lowlevel import RunVar

from starlette_channels.transports.outlet import LaneOutlet

SLOWEST_SWEEP = 5.0


class Pulsed(Protocol):
    """A connection of the fast lane."""

    @property
    def idle_seconds(self) -> float:
        """How long the client may be silent."""
        ...

    def check(self, now: float) -> None:
        """Close if the client has been silent for too long."""
        ...


class Pulse:
    """Sweeps. An idle connection costs it an entry in a set."""

    __slots__ = ("_lanes", "_loop", "_sweeping", "outlet")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.outlet: LaneOutlet = LaneOutlet(loop)
        self._loop = loop
        self._lanes: set[Pulsed] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    def add(self, lane: Pulsed) -> None:
        """Watch a connection for silence."""
        self._lanes.add(lane)
        if self._sweeping is None or self._sweeping.when() > self._loop.time() + _pause(lane.idle_seconds):
            self._schedule(lane.idle_seconds)

    def remove(self, lane: Pulsed) -> None:
        """Watch it no longer."""
        self._lanes.discard(lane)

    def _schedule(self, idle_seconds: float) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweeping = self._loop.call_later(_pause(idle_seconds), self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        now = self._loop.time()
        for lane in tuple(self._lanes):
            lane.check(now)
        if self._lanes:
            self._schedule(min(lane.idle_seconds for lane in self._lanes))


def _pause(idle_seconds: float) -> float:
    return min(idle_seconds / 8, SLOWEST_SWEEP)


_pulse: RunVar[Pulse] = RunVar("starlette_channels_pulse")


def pulse_of_this_loop(loop: asyncio.AbstractEventLoop) -> Pulse:
    """Return the event loop's pulse."""
    try:
        return _pulse.get()
    except LookupError:
        pulse = Pulse(loop)
        _pulse.set(pulse)
        return pulse
