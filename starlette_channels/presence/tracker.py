"""Protocol between replicas: heartbeats, requests, transfers, and the detection of silent replicas.

No clock and no I/O: it is given the time (in seconds, of any origin) and returns the messages to send. Source:
`tracker/shard.ex` and `tracker/replica.ex` of phoenix_pubsub; on purpose different: every message counts as a
heartbeat, a message of an earlier run of a node does not bring that run back, a transfer contains only replicas of
which the asker lacks changes, a replica unknown to a sender announces itself with its next tick, a suspended replica
does not take the others to be down, and a large message is merged in slices.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct, field

from starlette_channels.presence.crdt.clock import Clock, ReplicaId, covers, worth_asking
from starlette_channels.presence.crdt.delta import Delta, Part, Window, Windows
from starlette_channels.presence.crdt.state import Changes, State
from starlette_channels.presence.timing import PresenceTiming

WINDOW_SIZES = (100, 1_000, 10_000)
"""Numbers of changes kept in each window, to answer replicas that missed no more than that."""

SAMPLE_TICKS = 2
"""Ticks in which clocks are collected before a replica is asked for missing changes."""

SETTLE_TICKS = 1.5
"""Ticks until all other replicas have answered a new one: their next tick, and half a tick for the transport."""

SLICE_CHANGES = 500
"""Changes merged at once. They take about 2 milliseconds, including the resulting diffs for clients."""


class Heartbeat(Struct, frozen=True, tag=True):
    """To all: the sender is alive; its clock, and its changes since its last heartbeat."""

    sender: ReplicaId
    clock: Clock
    news: Part | None


class Request(Struct, frozen=True, tag=True):
    """To one: the sender asks for all changes after its clock."""

    sender: ReplicaId
    clock: Clock


class Transfer(Struct, frozen=True, tag=True):
    """To one: the answer to a request."""

    sender: ReplicaId
    delta: Delta


class Goodbye(Struct, frozen=True, tag=True):
    """To all: the sender stops for good. Its entries leave after `grace_seconds`."""

    sender: ReplicaId
    grace_seconds: float


TrackerMessage: TypeAlias = Heartbeat | Request | Transfer | Goodbye


class Outgoing(Struct, frozen=True):
    """A message to be sent, to one replica or (`None`) to all."""

    to: ReplicaId | None
    message: TrackerMessage


class Event(Struct, frozen=True):
    """A change of the status of another replica."""

    kind: Literal["up", "down", "forgotten"]
    replica: ReplicaId


class MergeOutcome(Struct):
    """The effects of a tick, a message or a slice."""

    outgoing: list[Outgoing] = field(default_factory=list[Outgoing])
    events: list[Event] = field(default_factory=list[Event])
    changes: Changes = field(default_factory=Changes)


class Peer(Struct):
    """Another node."""

    replica: ReplicaId
    heard: float
    online: bool = True
    until: float = math.inf
    """The time at which its entries leave, after a `Goodbye`."""


class Merges:
    """Queue of deltas to be merged in slices, in the order of arrival."""

    __slots__ = ("_slices", "_upcoming")

    def __init__(self) -> None:
        self._slices: deque[Iterator[Delta]] = deque()
        self._upcoming: Delta | None = None

    def __bool__(self) -> bool:
        return self._upcoming is not None

    def add(self, slices: Iterator[Delta]) -> None:
        """Add the slices of one delta; each is cut only when it is next."""
        self._slices.append(slices)
        if self._upcoming is None:
            self._find_upcoming()

    def merge_next(self, state: State) -> Changes:
        """Merge one slice."""
        if self._upcoming is None:
            return Changes()
        try:
            return state.merge(self._upcoming)
        finally:
            self._find_upcoming()

    def clear(self) -> None:
        """Drop all queued slices."""
        self._slices.clear()
        self._upcoming = None

    def _find_upcoming(self) -> None:
        self._upcoming = None
        while self._slices and self._upcoming is None:
            self._upcoming = next(self._slices[0], None)
            if self._upcoming is None:
                self._slices.popleft()


class Replica:
    """Replica: sends the changes of one node, and merges those of the others. The state gets the node's id."""

    def __init__(
        self,
        me: ReplicaId,
        timing: PresenceTiming,
        state: State | None = None,
        window_sizes: Sequence[int] = WINDOW_SIZES,
        slice_changes: int = SLICE_CHANGES,
    ) -> None:
        self.state: State = state or State(me)
        self._timing = timing
        self._slice_changes = slice_changes
        self._merges = Merges()
        self._news = Window()
        self._windows = Windows(window_sizes)
        self._silence = timing.heartbeat_ticks  # so a new replica announces itself with its first tick
        self._ticks = 0
        self._ticked: float | None = None
        self._peers: dict[str, Peer] = {}
        self._gone: dict[str, tuple[int, float]] = {}
        self._clocks: dict[ReplicaId, Clock] = {}
        self._claims: dict[ReplicaId, Clock] | None = {}  # the clocks of others, until this replica has caught up
        self._heard_since: float | None = None
        self.record(self.state.rename(me))

    def record(self, part: Part) -> None:
        """Record a change of an own entry, for the next heartbeat and for requests."""
        self._news.record(part)
        self._windows.record(part)

    # Ticks.

    def tick(self, now: float) -> MergeOutcome:
        """Send heartbeats and requests that are due, and check for silent peers. Call it every `news_seconds`."""
        outcome = MergeOutcome()
        self._allow_for_sleep(now)
        self._check_silence(now, outcome)
        self._silence += 1
        if self._news or self._silence >= self._timing.heartbeat_ticks:
            self._heartbeat(outcome)
        self._ticks += 1
        if self._ticks % SAMPLE_TICKS == 0:
            self._ask(outcome)
        return outcome

    def leave(self, grace_seconds: float = 0.0) -> MergeOutcome:
        """Send a `Goodbye` and forget the others. There, the own entries leave after `grace_seconds`."""
        outcome = self.forget_everybody()
        if self._news:
            self._heartbeat(outcome)
        outcome.outgoing.append(Outgoing(None, Goodbye(self.state.me, grace_seconds)))
        return outcome

    def forget_everybody(self) -> MergeOutcome:
        """Drop all other replicas, and the queued slices."""
        outcome = MergeOutcome()
        self._merges.clear()
        for peer in tuple(self._peers.values()):
            self._forget(peer, outcome)
        return outcome

    def _allow_for_sleep(self, now: float) -> None:
        """Do not count the time while this process was suspended as silence of the others."""
        slept = 0.0 if self._ticked is None else now - self._ticked - self._timing.news_seconds
        if slept > self._timing.news_seconds:
            for peer in self._peers.values():
                peer.heard = min(now, peer.heard + slept)
        self._ticked = now

    def _check_silence(self, now: float, outcome: MergeOutcome) -> None:
        for peer in tuple(self._peers.values()):
            silence = now - peer.heard
            if silence > self._timing.forget_seconds or now >= peer.until:
                self._forget(peer, outcome)
            elif silence > self._timing.down_seconds and peer.online:
                self._down(peer, outcome)
        self._gone = {
            name: (vsn, when) for name, (vsn, when) in self._gone.items() if now - when <= self._timing.forget_seconds
        }

    def _heartbeat(self, outcome: MergeOutcome) -> None:
        news = self._news.part if self._news else None
        outcome.outgoing.append(Outgoing(None, Heartbeat(self.state.me, self.state.advertised, news)))
        self._news = Window()
        self._silence = 0

    def _ask(self, outcome: MergeOutcome) -> None:
        """Ask for missing changes, unless slices are queued, which may contain them."""
        if self._merges:
            return
        own = self.state.clock
        known = {sender: _limited(clock, own) for sender, clock in self._clocks.items() if sender in own}
        for sender in worth_asking(own, known):
            outcome.outgoing.append(Outgoing(sender, Request(self.state.me, own)))
        self._clocks.clear()

    def settle(self, now: float, *, is_heard: bool) -> bool:
        """Return whether all other replicas have been heard, and their state has been merged.

        There is no list of the others. But each replica sends a message with its next tick when it first hears a new
        one. So all live replicas have been heard one and a half ticks after the subscriptions of this one are in force.
        """
        if self._claims is None:
            return True
        if not is_heard or not self._ticks:
            self._heard_since = None
            return False
        if self._heard_since is None:
            self._heard_since = now
        own = self.state.clock
        is_behind = any(not covers(own, _limited(clock, own)) for clock in self._claims.values())
        if is_behind or now - self._heard_since < SETTLE_TICKS * self._timing.news_seconds:
            return False
        self._claims = None
        return True

    # Messages.

    def receive(self, message: TrackerMessage, now: float) -> MergeOutcome:
        """Handle a message. An own message, or one of an earlier run of a node, has no effect.

        Only the first slice of a large message is merged: call `merge_next` while `is_merging`.
        """
        outcome = MergeOutcome()
        if message.sender == self.state.me or self._is_past(message.sender):
            return outcome
        if isinstance(message, Goodbye):
            self._take_goodbye(message, now, outcome)
            return outcome
        self._hear(message.sender, now, outcome)
        match message:
            case Heartbeat():
                self._clocks[message.sender] = message.clock
                if self._claims is not None:
                    self._claims[message.sender] = message.clock
                if self.state.me not in message.clock:  # the sender has not heard of this replica: it may be new
                    self._silence = self._timing.heartbeat_ticks
                if message.news is not None:
                    self._merge({message.sender: message.news}, outcome)
            case Request():
                outcome.outgoing.append(Outgoing(message.sender, self._answer(message.clock)))
            case Transfer():
                self._merge(message.delta, outcome)
        return outcome

    @property
    def is_merging(self) -> bool:
        """Whether slices are queued."""
        return bool(self._merges)

    def merge_next(self) -> MergeOutcome:
        """Merge one slice."""
        return MergeOutcome(changes=self._merges.merge_next(self.state))

    def _merge(self, delta: Delta, outcome: MergeOutcome) -> None:
        """Queue the slices of a delta; merge the first one now if the queue was empty."""
        is_first = not self._merges
        self._merges.add(self.state.cut(delta, self._slice_changes))
        if is_first:
            outcome.changes.extend(self._merges.merge_next(self.state))

    def _is_past(self, sender: ReplicaId) -> bool:
        """Whether a message is outdated: its node has restarted since, or has sent a `Goodbye`."""
        peer = self._peers.get(sender.name)
        if peer is not None and peer.online and sender.vsn < peer.replica.vsn:
            return True
        return sender.name in self._gone and sender.vsn <= self._gone[sender.name][0]

    def _take_goodbye(self, goodbye: Goodbye, now: float, outcome: MergeOutcome) -> None:
        sender = goodbye.sender
        self._gone[sender.name] = (sender.vsn, now)
        peer = self._peers.get(sender.name)
        if peer is None or peer.replica.vsn > sender.vsn:
            return
        if goodbye.grace_seconds > 0 and peer.online:
            peer.heard, peer.until = now, now + goodbye.grace_seconds
        else:
            self._forget(peer, outcome)

    def _hear(self, sender: ReplicaId, now: float, outcome: MergeOutcome) -> None:
        peer = self._peers.get(sender.name)
        if peer is not None and peer.replica != sender:
            self._forget(peer, outcome)
            peer = None
        if peer is None or not peer.online:
            outcome.events.append(Event("up", sender))
            outcome.changes.extend(self.state.up(sender))
        self._peers[sender.name] = Peer(sender, now)

    def _answer(self, since: Clock) -> Transfer:
        """Return all that a clock lacks; of the own changes only the latest, if these are enough."""
        me = self.state.me
        delta = dict(self.state.extract(since))
        latest = self._windows.since(since.get(me, 0))
        if me in delta and latest is not None:
            delta[me] = latest
        return Transfer(me, delta)

    def _down(self, peer: Peer, outcome: MergeOutcome) -> None:
        peer.online = False
        self._unclaim(peer.replica)
        outcome.events.append(Event("down", peer.replica))
        outcome.changes.extend(self.state.down(peer.replica))

    def _forget(self, peer: Peer, outcome: MergeOutcome) -> None:
        if peer.online:
            self._down(peer, outcome)
        outcome.events.append(Event("forgotten", peer.replica))
        outcome.changes.extend(self.state.forget(peer.replica))
        del self._peers[peer.replica.name]
        self._clocks.pop(peer.replica, None)
        self._unclaim(peer.replica)

    def _unclaim(self, replica: ReplicaId) -> None:
        if self._claims is not None:
            self._claims.pop(replica, None)


def _limited(clock: Clock, replicas: Iterable[ReplicaId]) -> Clock:
    return {replica: clock[replica] for replica in replicas if replica in clock}
