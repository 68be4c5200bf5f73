"""A network that loses, delays, reorders and doubles letters, and falls apart."""

import heapq
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Literal, NamedTuple

from starlette_channels.brokers.gaps import Stamp


class Letter(NamedTuple):
    """What one life of a node publishes on a channel."""

    kind: Literal["message", "mark", "end"]
    life: bytes
    channel: str
    stamp: Stamp
    body: bytes = b""


class Parcel(NamedTuple):
    """A letter on its way to a node."""

    due: float
    number: int
    to: str
    letter: Letter


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

    def fall_apart(self) -> None:
        """Let nodes be on two islands."""
        self._islands = {name: self._random.randint(1, 2) for name in self._names}

    def grow_together(self) -> None:
        """Let there be a way between all."""
        self._islands = {}

    def be_good(self) -> None:
        """Lose nothing any more."""
        self.grow_together()
        self._loss, self._doubling, self._delay = 0.0, 0.0, 0.05

    def send(self, sender: str, letter: Letter, now: float) -> None:
        """Put a letter on its way to all who hear its channel; as with most engines, the sender hears itself."""
        only = letter.channel.partition(":")[2]
        island = self._islands.get(sender)
        for to in (only,) if only else self._names:
            if self._islands.get(to) != island:
                continue
            for _ in range(2 if self._random.random() < self._doubling else 1):
                if self._random.random() >= self._loss:
                    self._put(now + self._random.expovariate(1 / self._delay), to, letter)

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

    def _put(self, due: float, to: str, letter: Letter) -> None:
        heapq.heappush(self._parcels, Parcel(due, next(self._numbers), to, letter))


Send = Callable[[Letter], None]
