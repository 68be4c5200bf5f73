"""What the fast lane's connections of one event loop share: one flush for each of its turns, one sweep for timeouts."""

import asyncio
from typing import Protocol

from anyio.lowlevel import RunVar

from starlette_channels.frames import binary_frame, text_frame
from starlette_channels.messages import Frame

FLUSH_AT_ONCE = 256
"""How many clients are written to before the loop may do something else: an echo waits for so many, not for all."""

SLOWEST_SWEEP = 5.0


class Pulsed(Protocol):
    """A connection of the fast lane."""

    @property
    def idle_seconds(self) -> float:
        """How long the client may be silent."""
        ...

    def flush(self) -> None:
        """Write what waits."""
        ...

    def check(self, now: float) -> None:
        """Close if the client has been silent for too long."""
        ...


class Pulse:
    """Flushes and sweeps. An idle connection costs it an entry in a set."""

    __slots__ = ("_dirty", "_frame", "_lanes", "_loop", "_sweeping", "_wire")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._dirty: list[Pulsed] = []
        self._lanes: set[Pulsed] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._frame: Frame | None = None
        self._wire = b""

    def wire(self, frame: Frame) -> bytes:
        """Return a frame with its header. Made once for a broadcast: its recipients ask for the same frame in a row."""
        if frame is not self._frame:
            self._wire = text_frame(frame.encode()) if isinstance(frame, str) else binary_frame(frame)
            self._frame = frame
        return self._wire

    def flush_soon(self, lane: Pulsed) -> None:
        """Flush a connection at the end of this turn of the loop."""
        self._dirty.append(lane)
        if len(self._dirty) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._frame = None
        dirty = self._dirty
        if len(dirty) > FLUSH_AT_ONCE:
            dirty = dirty[:FLUSH_AT_ONCE]
            self._dirty = self._dirty[FLUSH_AT_ONCE:]
            self._loop.call_soon(self._flush)
        else:
            self._dirty = []
        for lane in dirty:
            lane.flush()

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
