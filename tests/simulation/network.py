"""A network that loses, delays, reorders and doubles letters, and falls apart."""

import heapq
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Literal, NamedTuple

from starlette_channels.pubsub.relay.sequence import Stamp

GOOD_DELAY = 0.05


class Letter(NamedTuple):
    """What one life of a node publishes on a channel."""

    kind: Literal["message", "mark", "end", "command"]
    life: bytes
    channel: str
    stamp: Stamp
    body: bytes = b""
    before: int = 0
    """How many messages the life had published there when the epoch of the stamp began."""

    sent: float = 0.0
    """When it was sent, by the clock of the life, which is not that of the others."""


class Parcel(NamedTuple):
    """A letter on its way to a node."""

    due: float
    number: int
    to: str
    letter: Letter
    sent: float
    """When it was sent, by the true time, which nobody knows."""


class Network:
    """What is on its way between nodes."""

    def __init__(self, random: Random, names: tuple[str, ...]) -> None:
        self._random = random
        self._names = names
        self._numbers = count(1)
        self._parcels: list[Parcel] = []
        self._islands: dict[str, int] = {}
        self._loss = random.choice((0.0, 0.1, 0.4))
        self._delay = random.choice((0.01, 0.5, 4.0))
        self._doubling = random.choice((0.0, 0.2))
        self._is_good = False

    def fall_apart(self) -> None:
        """Let nodes be on two islands."""
        self._islands = {name: self._random.randint(1, 2) for name in self._names}

    def grow_together(self) -> None:
        """Let there be a way between all."""
        self._islands = {}

    def be_good(self, now: float) -> None:
        """Lose and reorder nothing any more; what is on its way arrives soon."""
        self.grow_together()
        self._is_good, self._delay = True, GOOD_DELAY
        self._parcels = [parcel._replace(due=min(parcel.due, now + GOOD_DELAY)) for parcel in self._parcels]
        heapq.heapify(self._parcels)

    def send(self, sender: str, letter: Letter, now: float) -> None:
        """Put a letter on its way to all who hear its channel.

        As with most engines, the sender is one of them. That matters if it has started anew meanwhile.
        """
        only = letter.channel.partition(":")[2]
        island = self._islands.get(sender)
        is_slow = self._delay > GOOD_DELAY
        for to in (only,) if only else self._names:
            if self._islands.get(to) == island and (to != sender or is_slow):
                self._carry(to, letter, now)

    def _carry(self, to: str, letter: Letter, now: float) -> None:
        if self._is_good:
            self._put(now + self._delay, to, letter, now)
            return
        random = self._random.random
        for _ in range(2 if random() < self._doubling else 1):
            if random() >= self._loss:
                self._put(now + self._random.expovariate(1 / self._delay), to, letter, now)

    def put_off(self, parcel: Parcel, due: float) -> None:
        """Keep a parcel for later: its node does not take it."""
        heapq.heappush(self._parcels, parcel._replace(due=due))

    @property
    def due(self) -> float | None:
        """When the next parcel arrives."""
        return self._parcels[0].due if self._parcels else None

    def take(self) -> Parcel:
        """Take the next parcel out."""
        return heapq.heappop(self._parcels)

    def _put(self, due: float, to: str, letter: Letter, now: float) -> None:
        heapq.heappush(self._parcels, Parcel(due, next(self._numbers), to, letter, now))


Send = Callable[[Letter], None]
