"""Histories of a cluster, made up from a seed: `python -m tests.presence_simulation --histories 5000`.

Replicas come, track, untrack, crash, start anew and take leave, while the network between them loses, delays, reorders
and doubles messages and falls apart into islands. The clock is virtual. In the end the network is good for a while,
and then everybody must know of everybody's entries, and of nobody else's.
"""

import argparse
import heapq
import random
import sys
import traceback
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from starlette_channels.presence.clocks import ReplicaId
from starlette_channels.presence.deltas import Meta
from starlette_channels.presence.replica import SAMPLE_TICKS, Message, Outcome, Outgoing, Replica
from starlette_channels.presence.timing import PresenceTiming

if TYPE_CHECKING:
    from starlette_channels.presence.state import Place

NAMES = ("ann", "ben", "cid", "dot", "eve")
TOPICS = ("room:1", "room:2")
KEYS = ("x", "y")
TIMING = PresenceTiming(news_seconds=1.5, heartbeat_seconds=5.0, down_seconds=12.0, forget_seconds=60.0)
TICK = TIMING.news_seconds

encode = msgspec.msgpack.encode
decode = msgspec.msgpack.Decoder(Message).decode


class Node:
    """A replica, what its members have done, and what its clients have been told."""

    def __init__(self, me: ReplicaId) -> None:
        self.replica = Replica(me, TIMING, window_sizes=(4, 12))
        self.own: dict[Place, str] = {}
        self.told: set[str] = set()

    @property
    def name(self) -> str:
        return self.replica.state.me.name

    def seen(self) -> set[str]:
        """The metas that are listed here."""
        topics = self.replica.state.roster.topics.values()
        return {entry.meta.ref for keys in topics for group in keys.values() for entry in group.values()}

    def tell(self, outcome: Outcome) -> None:
        """Tell the clients, who must not be told that somebody comes who is there, or goes who is not."""
        for entry in outcome.changes.joins:
            assert entry.meta.ref not in self.told, f"{self.name}: {entry} joined twice"
            self.told.add(entry.meta.ref)
        for entry in outcome.changes.leaves:
            assert entry.meta.ref in self.told, f"{self.name}: {entry} left, and was not there"
            self.told.remove(entry.meta.ref)
        assert self.told | set(self.own.values()) == self.seen()


class Parcel(NamedTuple):
    """A message on its way."""

    due: float
    number: int
    sender: str
    to: str
    message: bytes


class World:
    """The nodes, the network between them, and what happens next."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.number = count(1)
        self.nodes: dict[str, Node] = {}
        self.parcels: list[Parcel] = []
        self.ticks: list[tuple[float, int, ReplicaId]] = []
        self.islands: dict[str, int] = {}
        self.loss = self.random.choice((0.0, 0.1, 0.4))
        self.delay = self.random.choice((0.01, 0.5, 4.0))
        self.doubling = self.random.choice((0.0, 0.2))
        self.names = NAMES[: self.random.randint(2, len(NAMES))]

    def run(self) -> None:
        """One history."""
        for name in self.names:
            self.start(name)
        for _ in range(self.random.randint(20, 60)):
            self.happen()
            self.pass_time(self.random.expovariate(1 / 2.0))
        self.calm_down()
        self.agree()

    # What happens.

    def happen(self) -> None:
        """Something happens, mostly something small."""
        events = {
            self.track: 40,
            self.untrack: 25,
            self.crash: 2,
            self.leave: 2,
            self.come_back: 6,
            self.fall_apart: 3,
            self.grow_together: 4,
            self.sleep: 3,
        }
        self.random.choices(list(events), list(events.values()))[0]()

    def start(self, name: str) -> None:
        me = ReplicaId(name, next(self.number))
        self.nodes[name] = Node(me)
        heapq.heappush(self.ticks, (self.now + self.random.uniform(0, TICK / 4), me.vsn, me))

    def node(self) -> Node | None:
        return self.random.choice(list(self.nodes.values())) if self.nodes else None

    def track(self) -> None:
        node = self.node()
        if node is not None:
            place = self.random.choice(TOPICS), self.random.randint(1, 2), self.random.choice(KEYS)
            node.own[place] = ref = str(next(self.number))
            node.replica.record(node.replica.state.add(*place, Meta(ref, "{}")))

    def untrack(self) -> None:
        node = self.node()
        if node is not None and node.own:
            place = self.random.choice(list(node.own))
            del node.own[place]
            node.replica.record(node.replica.state.remove(*place))

    def crash(self) -> None:
        if self.nodes:
            del self.nodes[self.random.choice(list(self.nodes))]

    def leave(self) -> None:
        node = self.node()
        if node is not None:
            self.take(node, node.replica.leave(self.random.choice((0.0, 0.0, 3.0))))
            del self.nodes[node.name]

    def come_back(self) -> None:
        for name in self.names:
            if name not in self.nodes:
                self.start(name)

    def fall_apart(self) -> None:
        self.islands = {name: self.random.randint(1, 2) for name in self.names}

    def grow_together(self) -> None:
        self.islands = {}

    def sleep(self) -> None:
        self.pass_time(self.random.choice((5, 15, 30, 75)))

    # Time and the network.

    def pass_time(self, seconds: float) -> None:
        """Deliver what arrives in this time, and let the nodes tick."""
        end = self.now + seconds
        while True:
            parcel = self.parcels[0].due if self.parcels else end
            tick = self.ticks[0][0] if self.ticks else end
            if min(parcel, tick) >= end:
                break
            if parcel <= tick:
                self.arrive(heapq.heappop(self.parcels))
            else:
                self.tick(*heapq.heappop(self.ticks))
        self.now = end

    def tick(self, due: float, _: int, me: ReplicaId) -> None:
        self.now = due
        node = self.nodes.get(me.name)
        if node is not None and node.replica.state.me == me:
            self.take(node, node.replica.tick(self.now))
            heapq.heappush(self.ticks, (due + TICK, me.vsn, me))

    def arrive(self, parcel: Parcel) -> None:
        self.now = parcel.due
        node = self.nodes.get(parcel.to)
        if node is not None:
            self.take(node, node.replica.receive(decode(parcel.message), self.now))

    def take(self, node: Node, outcome: Outcome) -> None:
        node.tell(outcome)
        for outgoing in outcome.outgoing:
            self.send(node, outgoing)

    def send(self, node: Node, outgoing: Outgoing) -> None:
        """Put a message on its way to everybody it is for; as with most brokers, the sender hears itself."""
        for to in self.names if outgoing.to is None else (outgoing.to.name,):
            if self.islands.get(to) != self.islands.get(node.name):
                continue
            for _ in range(2 if self.random.random() < self.doubling else 1):
                if self.random.random() >= self.loss:
                    due = self.now + self.random.expovariate(1 / self.delay)
                    parcel = Parcel(due, next(self.number), node.name, to, encode(outgoing.message))
                    heapq.heappush(self.parcels, parcel)

    # The end.

    def calm_down(self) -> None:
        """Let the network be good for so long that the dead are found and the living have heard of each other."""
        self.grow_together()
        self.loss, self.delay = 0.0, 0.05
        heartbeats = TIMING.heartbeat_seconds + (2 * SAMPLE_TICKS + 2) * TICK
        self.pass_time(2 * TIMING.down_seconds + 2 * heartbeats)

    def agree(self) -> None:
        """Everybody knows the same, and that is what there is."""
        there = {meta for node in self.nodes.values() for meta in node.own.values()}
        for node in self.nodes.values():
            assert node.seen() == there, f"{node.name} has {node.seen()}, there are {there}"


def failures(seeds: range) -> list[int]:
    """Play a history for each seed; return those that went wrong, having said why."""
    wrong: list[int] = []
    for seed in seeds:
        try:
            World(seed).run()
        except Exception:  # noqa: BLE001 - whatever it was, it is the outcome of this history
            traceback.print_exc()
            print(f"seed {seed}: python -m tests.presence_simulation --from {seed} --histories 1", file=sys.stderr)
            wrong.append(seed)
    return wrong


def main() -> int:
    """Play as many histories as are wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=5_000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    options = parser.parse_args()
    wrong = failures(range(options.first, options.first + options.histories))
    print(f"{options.histories} histories, {len(wrong)} went wrong {wrong or ''}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
