"""Turns: the budget for handling messages in one turn (iteration) of the event loop.

Each client has limits of its own, but a thousand clients that send at once would make one long turn, in which nothing
else runs. So all clients of an event loop share a budget for each turn. When it is used up, clients wait in a queue for
the turns that follow. Clients that send seldom have a queue of their own, which goes first.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary

import anyio
from anyio.lowlevel import RunVar

T = TypeVar("T")

TURN_SECONDS = 0.003
"""Time for messages in one turn: half of it for those that wait, half for new ones."""

LONGEST_TURN_SECONDS = 8 * TURN_SECONDS
"""The most time, if all else in a turn takes long, too: then short turns would only make clients wait longer."""

MOST_AT_ONCE = 192
"""Messages handled in `TURN_SECONDS` at most, however little they cost."""

AT_ONCE = 4
"""Steps of one client's work, such as queued messages of a channel, before others have their turn."""

EVENTS_AT_ONCE = 16
"""Messages and control frames of one client handled in one turn at most."""

SELDOM_SECONDS = 0.005
"""A client sends seldom if so much time, or more, is between its messages;"""

SELDOM_BURST = 2
"""the first few messages after a pause count as seldom, too,"""

SELDOM_BYTES = 512
"""unless one has more bytes than this."""

LEARNING = 0.25
"""Weight of a new measurement in the average cost of a message."""


class Waiting(Protocol):
    """A client with messages, or other work, that wait for a turn."""

    def visit(self, most: int) -> int:
        """Handle `most` messages at most, and return how many there were; enter again if more wait."""
        ...


class Turns:
    """The budget of each turn of one event loop. The cost of a message is measured, not assumed."""

    __slots__ = (
        *("_began", "_clock", "_cost", "_ended", "_fresh", "_least", "_longest", "_marked", "_measured", "_own"),
        *("_rest", "_room", "_scheduled", "_seconds", "_soon", "left", "queues"),
    )

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], float] = time.perf_counter,
        least_cost: float = TURN_SECONDS / MOST_AT_ONCE,
        longest: float = LONGEST_TURN_SECONDS,
    ) -> None:
        self.left: int = 0
        """Messages that may be handled before `goes_on` must be called; the caller subtracts each one."""
        self._soon = soon
        self._clock = clock
        self._least = least_cost
        self._longest = longest
        self._cost = max(least_cost, TURN_SECONDS / 32)
        self._fresh: deque[Waiting] = deque()
        self._rest: deque[Waiting] = deque()
        self.queues: tuple[deque[Waiting], ...] = (self._fresh, self._rest)
        """The clients that wait for their turn."""
        self._scheduled = False
        self._room = 0
        self._seconds = TURN_SECONDS
        self._began = self._marked = self._ended = self._own = 0.0
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
        if self._room <= 0 or now - self._began >= self._seconds:
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
        """The number of messages that fit into one turn."""
        return max(1, int(min(MOST_AT_ONCE * self._seconds / TURN_SECONDS, self._seconds / self._cost)))

    @property
    def _window(self) -> int:
        """The number of messages between two looks at the clock: about a quarter of a turn."""
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
                if done >= share or self._clock() - now >= self._seconds / 2:
                    break
        finally:
            self._ended = self._clock()
            self._own, self._measured = self._ended - now, done
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
        """Measure the cost of a message, and the time of all else since the last turn began."""
        self._seconds = TURN_SECONDS
        if self._measured:
            self._seconds = min(max(TURN_SECONDS, (self._marked - self._ended) / 2), self._longest)
            cost = (self._own + now - self._marked) / self._measured
            # Other processes may have had the CPU meanwhile, so one measurement may not more than double the average.
            self._cost += LEARNING * (min(cost, 4 * self._cost) - self._cost)
            self._cost = max(self._cost, self._least)
            self._measured = 0


class Room:
    """Work of a client that waits for a turn: queued messages of a channel, ends of channels."""

    __slots__ = ("_granted", "_visited")

    def __init__(self) -> None:
        self._granted = 0
        self._visited = anyio.Event()

    async def wait(self, turns: Turns) -> int:
        """Wait for a turn; return the number of steps that may be done in it."""
        turns.enter(self, fresh=False)
        await self._visited.wait()
        return self._granted

    def visit(self, most: int) -> int:
        """Wake the waiting task."""
        self._granted = max(1, min(most, AT_ONCE))
        self._visited.set()
        return self._granted


async def in_turns(many: Iterable[T], act: Callable[[T], object]) -> None:
    """Call a function for each item, within the budget of each turn.

    It does not wait while there is time left. Much work at once, such as the ends of all channels of a thousand clients
    that a proxy has dropped, takes as many turns as it needs.
    """
    turns, room = turns_of_this_loop(), 0
    for one in many:
        if room:
            room -= 1
        else:
            turns.left -= 1
            if turns.left < 0 and not turns.goes_on():
                room = await Room().wait(turns) - 1
        act(one)


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
        soon = trio.lowlevel.current_trio_token().run_sync_soon
        turns = Turns(soon, least_cost=TURN_SECONDS / 16, longest=TURN_SECONDS)
        _turns_of_trio.set(turns)
        return turns
