"""The nodes, the network between them, and what happens next."""

import heapq
from collections.abc import Iterable
from functools import partial
from itertools import accumulate, count
from random import Random

from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.tracker import SAMPLE_TICKS
from tests.simulation.accounts import FORGET_SECONDS
from tests.simulation.network import GOOD_DELAY, Letter, Network
from tests.simulation.node import TIMING, Node

NAMES = ("ann", "ben", "cid", "dot", "eve")
SIZES = (2, 2, 3, 3, 3, 4, 5)
TOPICS = ("room:1", "room:2")
KEYS = ("x", "y")
TICK = TIMING.news_seconds
PAUSE = 1.2
"""The time between two events, on average."""

HANG_SECONDS = 12
"""For no longer do nodes hang."""

PROMPT = 2 * GOOD_DELAY
"""So soon everybody has what is sent while the network is good."""


class World:
    """One history, made up from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.number = count(1)
        self.names = NAMES[: self.random.choice(SIZES)]
        self.network = Network(self.random, self.names)
        self.nodes: dict[str, Node] = {}
        self.asleep: dict[str, float] = {}
        self.piece_bytes = self.random.choice((60, 300, 300))
        self.ticks: list[tuple[float, int, ReplicaId]] = []
        self.errands: list[tuple[float, int, ReplicaId]] = []
        self.merges: list[tuple[float, int, ReplicaId]] = []

        events = {
            self.track: 30,
            self.untrack: 20,
            self.say: 20,
            self.command: 10,
            self.hang: 3,
            self.crash: 2,
            self.leave: 2,
            self.come_back: 6,
            self.network.fall_apart: 3,
            self.network.grow_together: 4,
            self.wait: 3,
        }
        self.events, self.weights = list(events), list(accumulate(events.values()))

    def run(self) -> None:
        """Let things happen, then let there be peace, and see whether everybody knows what is true."""
        for name in self.names:
            self.start(name)
        for _ in range(self.random.randint(5, 40)):
            self.happen()
            self.pass_time(self.random.expovariate(1 / PAUSE))
        self.calm_down()
        self.exercise()

    # What happens.

    def happen(self) -> None:
        """Something happens, mostly something small."""
        self.random.choices(self.events, cum_weights=self.weights)[0]()

    def start(self, name: str) -> None:
        me = ReplicaId(name, next(self.number))
        node = self.nodes[name] = Node(me, partial(self.send, name), self.piece_bytes, self.random, self.now)
        self.plan(node)
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

    def command(self) -> None:
        node = self.node()
        if node is not None:
            node.command(b"command %d" % next(self.number), self.now)
            self.plan(node, soon=True)

    def plan(self, node: Node, *, soon: bool = False) -> None:
        """Let a node do its errands with commands when they are due."""
        due = self.now if soon else node.log.due()
        if due is not None:
            heapq.heappush(self.errands, (max(due, self.now) + PROMPT / 100, node.me.vsn, node.me))

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
        self.pass_time(self.random.choice((5, 12, 25)))

    # Time.

    def pass_time(self, seconds: float) -> None:
        """Deliver what arrives in this time, and let the nodes tick."""
        end = self.now + seconds
        while True:
            arrival = self.network.due
            tick = self.ticks[0][0] if self.ticks else end
            errand = self.errands[0][0] if self.errands else end
            merge = self.merges[0][0] if self.merges else end
            if merge < min(errand, tick, end, arrival if arrival is not None else end):
                self.merge(*heapq.heappop(self.merges))
            elif errand < min(tick, end, arrival if arrival is not None else end):
                self.do_errand(*heapq.heappop(self.errands))
            elif arrival is not None and arrival <= min(tick, end):
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

    def do_errand(self, due: float, _: int, me: ReplicaId) -> None:
        self.now = due
        node = self.nodes.get(me.name)
        if node is None or node.me != me:
            return
        woken = self.wakes(me.name)
        if woken is not None:
            heapq.heappush(self.errands, (woken, me.vsn, me))
            return
        wanted = node.log.due()
        if not node.log.is_settled or (wanted is not None and wanted <= due):
            node.do_errands(due)
            self.plan(node)

    def merge(self, due: float, _: int, me: ReplicaId) -> None:
        """Let a node merge a slice of what is large."""
        self.now = due
        node = self.nodes.get(me.name)
        if node is None or node.me != me:
            return
        woken = self.wakes(me.name)
        if woken is None:
            node.merge_next(due)
            self.plan_merge(node)
        else:
            heapq.heappush(self.merges, (woken, me.vsn, me))

    def plan_merge(self, node: Node) -> None:
        if node.replica.is_merging and not any(me == node.me for _, _, me in self.merges):
            heapq.heappush(self.merges, (self.now + self.random.uniform(0, PROMPT / 50), node.me.vsn, node.me))

    def arrive(self) -> None:
        parcel = self.network.take()
        self.now = parcel.due
        node = self.nodes.get(parcel.to)
        if node is None:
            return
        woken = self.wakes(parcel.to)
        if woken is None:
            node.receive(parcel.letter, parcel.sent, self.now)
            self.plan_merge(node)
            if parcel.letter.kind == "command":
                self.plan(node)
        else:
            self.network.put_off(parcel, woken + self.random.uniform(0, TICK / 10))  # the tick may be first

    def wakes(self, name: str) -> float | None:
        """When a node wakes, if it is asleep."""
        due = self.asleep.get(name)
        if due is not None and due <= self.now:
            due = self.asleep.pop(name, None) and None
        return due

    # The end.

    def calm_down(self) -> None:
        """Let the network be good for so long that the dead are found and the living have heard of each other."""
        marked = [node for node in self.nodes.values() if self.now < node.said_at + FORGET_SECONDS]
        self.network.be_good(self.now)
        self.pass_time(max([0.0, *(due - self.now for name, due in self.asleep.items() if name in self.nodes)]) + TICK)
        self.pass_time(TIMING.down_seconds + TICK + PROMPT)
        self.agree()
        self.account(marked)
        self.obey()
        for node in self.nodes.values():
            node.say(self.now)
        self.pass_time(PROMPT)
        self.account(list(self.nodes.values()))

    def account(self, those: list[Node]) -> None:
        """Everybody knows how much these have said: it was heard, or is known to be lost."""
        for node in self.nodes.values():
            for other in those:
                total = node.accounts.total(other.life)
                assert node is other or total == other.said, f"{node.me.name} knows {total} of {other.said}"

    def obey(self) -> None:
        """Everybody has obeyed all commands of those who are there, and all that somebody else has who is there."""
        logs = {name: set(node.log.names()) for name, node in self.nodes.items()}
        for name, node in self.nodes.items():
            for other, names in logs.items():
                lacking = names - logs[name]
                assert not lacking, f"{name} does not know of {lacking}, as {other} does"
            own = {socket_id for socket_id in logs[name] if socket_id not in node.obeyed}
            assert own == node.commanded, f"{name} has not obeyed {own - node.commanded}"

    def agree(self, those: Iterable[Node] | None = None) -> None:
        """Everybody who is awake has the same list, and it is that of those who are there."""
        there = {ref for node in (self.nodes.values() if those is None else those) for ref in node.own.values()}
        for name, node in self.nodes.items():
            if name not in self.asleep:
                assert node.seen() == there, f"{name} has {node.seen()}, there are {there}"

    # What is promised while the network is good.

    def exercise(self) -> None:
        """What happens now is known everywhere in time."""
        self.track()
        self.pass_time(TICK + PROMPT)
        self.agree()
        self.random.choice((self.see_a_leave, self.see_a_grace, self.see_a_restart, self.see_a_hang, self.see_quiet))()

    def see_a_leave(self) -> None:
        """Who takes leave is gone at once."""
        node = self.node()
        if node is not None:
            node.leave(0.0, self.now)
            del self.nodes[node.me.name]
            self.pass_time(PROMPT)
            self.agree()

    def see_a_grace(self) -> None:
        """Who takes leave with a grace stays for so long, but for those who had gone before."""
        node = self.node()
        if node is None:
            return
        if node.own:
            node.untrack(self.random.choice(list(node.own)))
        node.leave(2 * TICK, self.now)
        del self.nodes[node.me.name]
        self.pass_time(TICK)
        self.agree([*self.nodes.values(), node])
        self.pass_time(2 * TICK + PROMPT)
        self.agree()

    def see_a_restart(self) -> None:
        """Who starts anew knows of all, and all know that what it had is gone, before the second heartbeat."""
        self.crash()
        self.come_back()
        for node in self.nodes.values():
            node.track((TOPICS[0], 1, KEYS[0]), str(next(self.number)))
        self.pass_time((SAMPLE_TICKS + 1.25) * TICK + 4 * PROMPT)
        self.agree()

    def see_a_hang(self) -> None:
        """Who hangs is missed; who wakes has missed nobody."""
        node = self.node()
        if node is None or len(self.nodes) < 2:
            return
        name, told = node.me.name, frozenset(node.told)
        self.asleep[name] = self.now + HANG_SECONDS
        self.pass_time(HANG_SECONDS - PROMPT)
        self.agree(other for other in self.nodes.values() if other is not node)
        self.pass_time(TICK / 5 + PROMPT)
        assert node.told == told, f"{name} blames others for its sleep"
        self.pass_time((SAMPLE_TICKS + 1) * TICK)
        self.agree()

    def see_quiet(self) -> None:
        """Where nothing happens little is said, and the dead are forgotten."""
        self.pass_time(TIMING.heartbeat_seconds + 2 * SAMPLE_TICKS * TICK)
        for node in self.nodes.values():
            node.sent.clear()
        self.pass_time(TIMING.forget_seconds)
        those = frozenset(node.me for node in self.nodes.values())
        for node in self.nodes.values():
            assert set(node.sent) <= {"Heartbeat"}, f"{node.me.name} says {node.sent}"
            assert node.sent["Heartbeat"] <= TIMING.forget_seconds / TIMING.heartbeat_seconds + 1, node.sent
            node.say(self.now)
            assert node.before == node.said - 1, f"{node.me.name} has not forgotten how far it had come"
            assert node.replica.state.replicas == those, f"{node.me.name} remembers the dead"
