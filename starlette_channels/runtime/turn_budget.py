"""Turns: the budget for handling messages in one turn (iteration) of the event loop.

Each client has bounds of its own, but a thousand clients that send at once would make one long turn, in which nothing
else runs. So all clients of an event loop share a budget for each turn. When it is used up, clients wait in a queue for
the turns that follow. Clients that send seldom have a queue of their own, which goes first.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

from anyio.lowlevel import RunVar

TURN_SECONDS = 0.003
"""Time for messages in one turn: half of it for those that wait, half for new ones."""

MOST_AT_ONCE = 192
"""Messages handled in one turn at most, however little they cost."""

EVENTS_AT_ONCE = 16
"""Messages and control frames of one client handled in one turn at most."""

SELDOM_SECONDS = 0.005
"""A client sends seldom if its messages have such a distance, or a longer one;"""

SELDOM_BURST = 2
"""so do the first few messages after a pause,"""

SELDOM_BYTES = 512
"""unless they have more bytes than this."""

LEARNING = 0.25
"""Weight of a new measurement in the average cost of a message."""


class Waiting(Protocol):
    """A client with messages that wait for a turn."""

    def visit(self, most: int) -> int:
        """Handle `most` messages at most, and return how many there were; enter again if more wait."""
        ...


class Turns:
    """The budget of each turn of one event loop. The cost of a message is measured, not assumed."""

    __slots__ = (
        *("_began", "_clock", "_cost", "_fresh", "_least", "_marked", "_measured", "_own", "_rest"),
        *("_room", "_scheduled", "_soon", "left"),
    )

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], float] = time.perf_counter,
        least_cost: float = TURN_SECONDS / MOST_AT_ONCE,
    ) -> None:
        self.left: int = 0
        """Messages that may be handled before `goes_on` must be called; the caller subtracts each one."""
        self._soon = soon
        self._clock = clock
        self._least = least_cost
        self._cost = max(least_cost, TURN_SECONDS / 32)
        self._fresh: deque[Waiting] = deque()
        self._rest: deque[Waiting] = deque()
        self._scheduled = False
        self._room = 0
        self._began = self._marked = self._own = 0.0
        self._measured = 0

    def goes_on(self) -> bool:
        """Return whether there is time for one more message in this turn, when `left` is used up.

        If not, the caller enters the queue.
        """
        now = self._clock()
        if not self._scheduled:
            self._scheduled = True
            self._began = now
            self._room = self._allowance
            self._soon(self._turn)
        if self.left < -1:  # large messages count as several
            self._room += self.left + 1
        if self._room <= 0 or now - self._began >= TURN_SECONDS:
            self.left = 0
            return False
        self.left = min(self._window, self._room) - 1
        self._room -= self.left + 1
        return True

    def enter(self, client: Waiting, *, fresh: bool) -> None:
        """Queue a client for one of the next turns. A `fresh` one, which sends seldom, goes first."""
        (self._fresh if fresh else self._rest).append(client)
        if not self._scheduled:
            self._scheduled = True
            self._soon(self._turn)

    @property
    def is_crowded(self) -> bool:
        """Whether clients wait in the queue."""
        return bool(self._rest or self._fresh)

    @property
    def _allowance(self) -> int:
        """Number of messages that fit into one turn."""
        return max(1, min(MOST_AT_ONCE, int(TURN_SECONDS / self._cost)))

    @property
    def _window(self) -> int:
        """Number of messages between two looks at the clock: about a quarter of a turn."""
        return max(1, self._allowance // 4)

    def _turn(self) -> None:
        """Begin a turn: visit clients that wait, and leave half of the budget for new messages."""
        now = self._clock()
        self._learn(now)
        waiting = len(self._fresh) + len(self._rest)
        room, share, done = self._allowance, max(1, self._allowance // 2), 0
        if waiting:
            self._soon(self._mark)
        try:
            for _ in range(waiting):
                if self._fresh:
                    done += self._fresh.popleft().visit(1)
                else:
                    done += self._rest.popleft().visit(min(share - done, EVENTS_AT_ONCE))
                if done >= share or self._clock() - now >= TURN_SECONDS / 2:
                    break
        finally:
            self._own, self._measured = self._clock() - now, done
            self._began = now
            room = max(0, room - done)
            self.left = min(self._window, room)
            self._room = room - self.left
            self._scheduled = waiting > 0
            if waiting:
                self._soon(self._turn)

    def _mark(self) -> None:
        """Note when the tasks begin that the last turn has started: they are part of the cost of its messages."""
        self._marked = self._clock()

    def _learn(self, now: float) -> None:
        if self._measured:
            cost = (self._own + now - self._marked) / self._measured
            # Other processes may have had the CPU meanwhile, so one measurement may not more than double it.
            self._cost += LEARNING * (min(cost, 4 * self._cost) - self._cost)
            self._cost = max(self._cost, self._least)
            self._measured = 0


class Pace:
    """Whether a client sends seldom."""

    __slots__ = ("_rested_at",)

    def __init__(self) -> None:
        self._rested_at = 0.0

    def is_fresh(self, now: float) -> bool:
        """Return whether a message at time `now` counts as one of a client that sends seldom; if so, it is counted."""
        rested_at = max(self._rested_at, now) + SELDOM_SECONDS
        if rested_at - now > SELDOM_BURST * SELDOM_SECONDS:
            return False
        self._rested_at = rested_at
        return True


_turns_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()
_turns_of_trio: RunVar[Turns] = RunVar("starlette_channels_turns")


def turns_of_this_loop() -> Turns:
    """Return the turns of the event loop, on asyncio and trio. It may be called from plain callbacks."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _turns_of_this_trio()
    turns = _turns_of_loops.get(loop)
    if turns is None:
        turns = _turns_of_loops[loop] = Turns(loop.call_soon)
    return turns


def _turns_of_this_trio() -> Turns:
    try:
        return _turns_of_trio.get()
    except LookupError:
        import trio  # it is there if its event loop runs, and not needed otherwise

        # The order of trio's tasks is random, so the cost of a message cannot be measured.
        turns = Turns(trio.lowlevel.current_trio_token().run_sync_soon, least_cost=TURN_SECONDS / 16)
        _turns_of_trio.set(turns)
        return turns
