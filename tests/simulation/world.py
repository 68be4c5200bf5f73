"""The nodes, the network between them, and what happens next."""

import heapq
from functools import partial
from itertools import count
from random import Random

from starlette_channels.presence.clocks import ReplicaId
from starlette_channels.presence.replica import SAMPLE_TICKS
from tests.simulation.network import Letter, Network
from tests.simulation.node import TIMING, Node

NAMES = ("ann", "ben", "cid", "dot", "eve")
TOPICS = ("room:1", "room:2")
KEYS = ("x", "y")
TICK = TIMING.news_seconds
HANG_SECONDS = 12
"""For no longer do nodes hang."""


class World:
    """One history, made up from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.number = count(1)
        self.names = NAMES[: self.random.randint(2, len(NAMES))]
        self.network = Network(self.random, self.names)
        self.nodes: dict[str, Node] = {}
        self.asleep: dict[str, float] = {}
        self.ticks: list[tuple[float, int, ReplicaId]] = []

    def run(self) -> None:
        """Let things happen, then let there be peace, and see whether everybody knows what is true."""
        for name in self.names:
            self.start(name)
        for _ in range(self.random.randint(5, 40)):
            self.happen()
            self.pass_time(self.random.expovariate(1 / 2.0))
        self.calm_down()
        self.agree()

    # What happens.

    def happen(self) -> None:
        """Something happens, mostly something small."""
        events = {
            self.track: 30,
            self.untrack: 20,
            self.say: 20,
            self.hang: 3,
            self.crash: 2,
            self.leave: 2,
            self.come_back: 6,
            self.network.fall_apart: 3,
            self.network.grow_together: 4,
            self.wait: 3,
        }
        self.random.choices(list(events), list(events.values()))[0]()

    def start(self, name: str) -> None:
        me = ReplicaId(name, next(self.number))
        self.nodes[name] = Node(me, partial(self.send, name))
        self.asleep.pop(name, None)
        heapq.heappush(self.ticks, (self.now + self.random.uniform(0, TICK / 4), me.vsn, me))

    def send(self, name: str, letter: Letter) -> None:
        self.network.send(name, letter, self.now)

    def node(self) -> Node | None:
        """Somebody who can do something."""
        awake = [node for name, node in self.nodes.items() if name not in self.asleep]
        return self.random.choice(awake) if awake else None

    def track(self) -> None:
        node = self.node()
        if node is not None:
            place = self.random.choice(TOPICS), self.random.randint(1, 2), self.random.choice(KEYS)
            node.track(place, str(next(self.number)))

    def untrack(self) -> None:
        node = self.node()
        if node is not None and node.own:
            node.untrack(self.random.choice(list(node.own)))

    def say(self) -> None:
        node = self.node()
        for _ in range(self.random.randint(1, 5)):
            if node is not None:
                node.say(self.now)

    def hang(self) -> None:
        node = self.node()
        if node is not None:
            self.asleep[node.me.name] = self.now + self.random.choice((3, HANG_SECONDS))

    def crash(self) -> None:
        if self.nodes:
            del self.nodes[self.random.choice(list(self.nodes))]

    def leave(self) -> None:
        node = self.node()
        if node is not None:
            node.leave(self.random.choice((0.0, 3.0)), self.now)
            del self.nodes[node.me.name]

    def come_back(self) -> None:
        for name in self.names:
            if name not in self.nodes:
                self.start(name)

    def wait(self) -> None:
        self.pass_time(self.random.choice((5, 15, 50)))

    # Time.

    def pass_time(self, seconds: float) -> None:
        """Deliver what arrives in this time, and let the nodes tick."""
        end = self.now + seconds
        while True:
            arrival = self.network.due
            tick = self.ticks[0][0] if self.ticks else end
            if arrival is not None and arrival <= min(tick, end):
                self.arrive()
            elif tick < end:
                self.tick(*heapq.heappop(self.ticks))
            else:
                break
        self.now = end

    def tick(self, due: float, _: int, me: ReplicaId) -> None:
        self.now = due
        node = self.nodes.get(me.name)
        if node is None or node.me != me:
            return
        woken = self.wakes(me.name)
        if woken is None:
            node.tick(due)
        heapq.heappush(self.ticks, (woken or due + TICK, me.vsn, me))

    def arrive(self) -> None:
        parcel = self.network.take()
        self.now = parcel.due
        node = self.nodes.get(parcel.to)
        if node is None:
            return
        woken = self.wakes(parcel.to)
        if woken is None:
            node.receive(parcel.letter, self.now)
        else:
            self.network.put_off(parcel, woken)

    def wakes(self, name: str) -> float | None:
        """When a node wakes, if it is asleep."""
        due = self.asleep.get(name)
        if due is not None and due <= self.now:
            due = self.asleep.pop(name, None) and None
        return due

    # The end.

    def calm_down(self) -> None:
        """Let the network be good for so long that the dead are found and the living have heard of each other."""
        self.network.be_good()
        self.pass_time(HANG_SECONDS)
        for node in self.nodes.values():
            node.say(self.now)
        heartbeats = TIMING.heartbeat_seconds + (2 * SAMPLE_TICKS + 2) * TICK
        self.pass_time(2 * TIMING.down_seconds + 2 * heartbeats)

    def agree(self) -> None:
        """Everybody knows the same, and that is what there is; what was lost is what was reported."""
        there = {ref for node in self.nodes.values() for ref in node.own.values()}
        for node in self.nodes.values():
            assert node.seen() == there, f"{node.me.name} has {node.seen()}, there are {there}"
            for other in self.nodes.values():
                if other is not node:
                    account = node.accounts[other.life]
                    sums = account.before + account.heard + account.lost
                    assert sums == other.said, f"{node.me.name} has {account} of {other.said} of {other.me.name}"
