"""The idle sweep of the fast lane, and the outlet and turns that all connections of an event loop share."""

import asyncio
from typing import Protocol
from weakref import WeakKeyDictionary

from starlette_channels.runtime.turn_budget import Turns, turns_of_this_loop
from starlette_channels.transports.asgi_idle_sweep import pause
from starlette_channels.transports.uvicorn_lane.write_batch import WriteBatch


class Pulsed(Protocol):
    """A connection of the fast lane."""

    @property
    def idle_seconds(self) -> float:
        """Idle timeout of the client in seconds."""
        ...

    def is_silent(self, now: float) -> bool:
        """Whether the client has been silent for too long while its messages were read."""
        ...

    def give_up(self) -> None:
        """Close because the client has been silent for too long."""
        ...


class IdleSweep:
    """Periodic check for silent clients. Each connection costs one set entry."""

    __slots__ = ("_lanes", "_loop", "_sweeping", "outlet", "turns")

    def __init__(self, loop: asyncio.AbstractEventLoop, turns: Turns | None = None) -> None:
        self.turns: Turns = turns or Turns(loop.call_soon)
        self.outlet: WriteBatch = WriteBatch(loop, self.turns.queues)
        self._loop = loop
        self._lanes: set[Pulsed] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    def add(self, lane: Pulsed) -> None:
        """Watch a connection for silence."""
        self._lanes.add(lane)
        if self._sweeping is None or self._sweeping.when() > self._loop.time() + pause(lane.idle_seconds):
            self._schedule(lane.idle_seconds)

    def remove(self, lane: Pulsed) -> None:
        """Stop watching a connection."""
        self._lanes.discard(lane)

    def _schedule(self, idle_seconds: float) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweeping = self._loop.call_later(pause(idle_seconds), self._sweep)

    def _sweep(self) -> None:
        """Find silent clients; read from their sockets once more before they are closed.

        Their messages may be unread in the sockets: the process may have been blocked, or suspended.
        """
        self._sweeping = None
        now = self._loop.time()
        silent = [lane for lane in self._lanes if lane.is_silent(now)]
        if silent:
            self._loop.call_soon(self._read_first, silent, now)
        if self._lanes:
            self._schedule(min(lane.idle_seconds for lane in self._lanes))

    def _read_first(self, silent: list[Pulsed], now: float) -> None:
        """Wait one more turn: by then the event loop has read all data that was pending in the sweep."""
        self._loop.call_soon(self._judge, silent, now)

    def _judge(self, silent: list[Pulsed], now: float) -> None:
        for lane in silent:
            if lane in self._lanes and lane.is_silent(now):
                lane.give_up()


_sweeps: WeakKeyDictionary[asyncio.AbstractEventLoop, IdleSweep] = WeakKeyDictionary()


def idle_sweep_of(loop: asyncio.AbstractEventLoop) -> IdleSweep:
    """Return the sweep of the running event loop."""
    sweep = _sweeps.get(loop)
    if sweep is None:
        sweep = _sweeps[loop] = IdleSweep(loop, turns_of_this_loop())
    return sweep
