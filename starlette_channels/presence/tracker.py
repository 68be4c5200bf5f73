"""What a replica says to the others and when, and whom it believes to be alive.

No clock and no I/O: it is told the time (in seconds, of any origin) and returns what is to be sent. Source:
`tracker/shard.ex` and `tracker/replica.ex` of phoenix_pubsub; on purpose different: every message is a sign of life, a
message of an earlier life of a node does not bring that back, a transfer leaves out the replicas of which the asker
lacks nothing, who is not known to a sender makes itself known at once, and who has slept does not blame the others.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct, field

from starlette_channels.presence.crdt.clock import Clock, ReplicaId, covers, worth_asking
from starlette_channels.presence.crdt.delta import Delta, Part, Window, Windows
from starlette_channels.presence.crdt.state import Changes, State
from starlette_channels.presence.timing import PresenceTiming

WINDOW_SIZES = (100, 1_000, 10_000)
"""Numbers of changes that are kept, to answer those who missed no more than that."""

SAMPLE_TICKS = 2
"""Ticks in which clocks are compared before somebody is asked for what is missing."""


SETTLE_TICKS = 1.5
"""Ticks in which all others answer one that is new: each at its next tick, and a half for the way."""


class Heartbeat(Struct, frozen=True, tag=True):
    """To all: the sender is alive, knows this much, and has changed this."""

    sender: ReplicaId
    clock: Clock
    news: Part | None


class Request(Struct, frozen=True, tag=True):
    """To one: the sender knows this much, and wants the rest."""

    sender: ReplicaId
    clock: Clock


class Transfer(Struct, frozen=True, tag=True):
    """To one: what it asked for."""

    sender: ReplicaId
    delta: Delta


class Goodbye(Struct, frozen=True, tag=True):
    """To all: the sender stops, and does not come back in this life; its entries may stay for so many seconds."""

    sender: ReplicaId
    grace_seconds: float


TrackerMessage: TypeAlias = Heartbeat | Request | Transfer | Goodbye


class Outgoing(Struct, frozen=True):
    """A message to be sent, to one replica or (`None`) to all."""

    to: ReplicaId | None
    message: TrackerMessage


class Event(Struct, frozen=True):
    """What has become of another replica."""

    kind: Literal["up", "down", "forgotten"]
    replica: ReplicaId


class MergeOutcome(Struct):
    """What a tick or a message leads to."""

    outgoing: list[Outgoing] = field(default_factory=list[Outgoing])
    events: list[Event] = field(default_factory=list[Event])
    changes: Changes = field(default_factory=Changes)


class Peer(Struct):
    """Another node, as far as it is heard of."""

    replica: ReplicaId
    heard: float
    online: bool = True
    until: float = math.inf
    """When its entries leave, if it has taken leave itself."""


class Replica:
    """One node's part in the replication of a state, which takes its name."""

    def __init__(
        self,
        me: ReplicaId,
        timing: PresenceTiming,
        state: State | None = None,
        window_sizes: Sequence[int] = WINDOW_SIZES,
    ) -> None:
        self.state: State = state or State(me)
        self._timing = timing
        self._news = Window()
        self._windows = Windows(window_sizes)
        self._silence = timing.heartbeat_ticks  # so a new replica announces itself with its first tick
        self._ticks = 0
        self._ticked: float | None = None
        self._peers: dict[str, Peer] = {}
        self._gone: dict[str, tuple[int, float]] = {}
        self._clocks: dict[ReplicaId, Clock] = {}
        self._claims: dict[ReplicaId, Clock] | None = {}  # what others know, until this one has caught up
        self._heard_since: float | None = None
        self.record(self.state.rename(me))

    def record(self, part: Part) -> None:
        """Take note of what its own members have changed in the state."""
        self._news.record(part)
        self._windows.record(part)

    # What time brings.

    def tick(self, now: float) -> MergeOutcome:
        """Do what is due; to be called every `news_seconds`."""
        outcome = MergeOutcome()
        self._forgive(now)
        self._notice_silence(now, outcome)
        self._speak(outcome)
        self._ticks += 1
        if self._ticks % SAMPLE_TICKS == 0:
            self._ask(outcome)
        return outcome

    def leave(self, grace_seconds: float = 0.0) -> MergeOutcome:
        """Take leave of the others, who see the entries leave at once, or after a grace; forget them."""
        outcome = self.forget_everybody()
        if self._news:
            self._heartbeat(outcome)
        outcome.outgoing.append(Outgoing(None, Goodbye(self.state.me, grace_seconds)))
        return outcome

    def forget_everybody(self) -> MergeOutcome:
        """Know nothing of the others any more."""
        outcome = MergeOutcome()
        for peer in tuple(self._peers.values()):
            self._forget(peer, outcome)
        return outcome

    def _forgive(self, now: float) -> None:
        """Blame nobody for silence while this node itself was asleep: what they said meanwhile is still to come."""
        slept = 0.0 if self._ticked is None else now - self._ticked - self._timing.news_seconds
        if slept > self._timing.news_seconds:
            for peer in self._peers.values():
                peer.heard = min(now, peer.heard + slept)
        self._ticked = now

    def _notice_silence(self, now: float, outcome: MergeOutcome) -> None:
        for peer in tuple(self._peers.values()):
            silence = now - peer.heard
            if silence > self._timing.forget_seconds or now >= peer.until:
                self._forget(peer, outcome)
            elif silence > self._timing.down_seconds and peer.online:
                self._down(peer, outcome)
        self._gone = {
            name: (vsn, when) for name, (vsn, when) in self._gone.items() if now - when <= self._timing.forget_seconds
        }

    def _speak(self, outcome: MergeOutcome) -> None:
        self._silence += 1
        if self._news or self._silence >= self._timing.heartbeat_ticks:
            self._heartbeat(outcome)

    def _heartbeat(self, outcome: MergeOutcome) -> None:
        news = self._news.part if self._news else None
        outcome.outgoing.append(Outgoing(None, Heartbeat(self.state.me, self.state.advertised, news)))
        self._news = Window()
        self._silence = 0

    def _ask(self, outcome: MergeOutcome) -> None:
        own = self.state.clock
        known = {sender: _limited(clock, own) for sender, clock in self._clocks.items() if sender in own}
        for sender in worth_asking(own, known):
            outcome.outgoing.append(Outgoing(sender, Request(self.state.me, own)))
        self._clocks.clear()

    def settle(self, now: float, *, is_heard: bool) -> bool:
        """Return whether all others have been heard of, and what they know is known here.

        There is no list of the others. But each who hears a new replica for the first time speaks with its next tick;
        so those who live have spoken one and a half ticks after this one was able to hear, and to be heard.
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

    # What the others say.

    def receive(self, message: TrackerMessage, now: float) -> MergeOutcome:
        """Take a message; an own one that comes back, or one of an earlier life, changes nothing."""
        outcome = MergeOutcome()
        if message.sender == self.state.me or self._is_past(message.sender):
            return outcome
        if isinstance(message, Goodbye):
            self._part_with(message, now, outcome)
            return outcome
        self._hear(message.sender, now, outcome)
        match message:
            case Heartbeat():
                self._clocks[message.sender] = message.clock
                if self._claims is not None:
                    self._claims[message.sender] = message.clock
                if self.state.me not in message.clock:  # it has not heard of this one: it may be new
                    self._silence = self._timing.heartbeat_ticks
                if message.news is not None:
                    outcome.changes.extend(self.state.merge({message.sender: message.news}))
            case Request():
                outcome.outgoing.append(Outgoing(message.sender, self._answer(message.clock)))
            case Transfer():
                outcome.changes.extend(self.state.merge(message.delta))
        return outcome

    def _is_past(self, sender: ReplicaId) -> bool:
        """Whether a message was long on its way: its node has started anew since, or has taken leave."""
        peer = self._peers.get(sender.name)
        if peer is not None and peer.online and sender.vsn < peer.replica.vsn:
            return True
        return sender.name in self._gone and sender.vsn <= self._gone[sender.name][0]

    def _part_with(self, goodbye: Goodbye, now: float, outcome: MergeOutcome) -> None:
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
        """Return what somebody lacks; of the own changes only the latest, if that is enough."""
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
