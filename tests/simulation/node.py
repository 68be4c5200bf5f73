"""One life of a node: what it does, what its clients have been told, and what it knows of its losses."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import msgspec

from starlette_channels.presence.codec import Assembler, MetaRef, Splitter
from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Meta
from starlette_channels.presence.timing import PresenceTiming
from starlette_channels.presence.tracker import Event, Goodbye, MergeOutcome, Replica, TrackerMessage
from starlette_channels.pubsub.relay.command_log import CommandLog, HeardCommand
from starlette_channels.pubsub.relay.sender_clocks import SenderClocks
from starlette_channels.pubsub.relay.sequence import Listener, News, Numbers, Stamp
from tests.simulation.accounts import FORGET_SECONDS, KEEP_SECONDS, MARK_SECONDS, Accounts
from tests.simulation.network import Letter, Send

if TYPE_CHECKING:
    from starlette_channels.presence.crdt.state import EntryPlace

TIMING = PresenceTiming(news_seconds=1.5, heartbeat_seconds=3.0, down_seconds=8.0, forget_seconds=16.0)
HALL, LINE, COMMANDS = "hall", "line", "commands"
ROUNDING = 1e-6


class Node:
    """It is told the time, and gives its letters to `send`."""

    def __init__(self, me: ReplicaId, send: Send, piece_bytes: int, random: Random, born: float) -> None:
        self.me = me
        self.life = me.vsn.to_bytes(8)
        self.replica = Replica(me, TIMING, window_sizes=(4, 12), slice_changes=random.choice((1, 2, 500)))
        self.own: dict[EntryPlace, str] = {}
        self.told: set[str] = set()
        self.said, self.said_at = 0, -FORGET_SECONDS
        self.accounts = Accounts(me.name, born)
        self.log = CommandLog(self.life, random.random)
        self.log.begin_to_keep(born)
        self.commanded: set[bytes] = set()
        self.obeyed: Counter[bytes] = Counter()
        """How often it has heard each command of others."""
        self.sent: Counter[str] = Counter()
        """Messages of presence, by type."""

        self.before = 0
        self._online: dict[str, ReplicaId] = {}
        self._gone: dict[str, tuple[int, float]] = {}
        self._send = send
        self._numbers = Numbers(MARK_SECONDS)
        self._listener = Listener(KEEP_SECONDS)
        self._listener.want(HALL, born)
        self._listener.confirm(HALL, born)
        self._skew = random.uniform(-1_000, 1_000)
        """How its clock differs from the others'."""

        self._clocks = SenderClocks()
        self._splitter = Splitter(me, piece_bytes)
        self._assemblers = {LINE: Assembler(), self._line_of(me): Assembler()}

    # What it does.

    def track(self, place: "EntryPlace", ref: str) -> None:
        self.own[place] = ref
        self.replica.record(self.replica.state.add(*place, Meta(ref, f'{{"phx_ref":"{ref}"}}')))

    def untrack(self, place: "EntryPlace") -> None:
        del self.own[place]
        self.replica.record(self.replica.state.remove(*place))

    def say(self, now: float) -> None:
        stamp = self._numbers.next(HALL, now)
        if stamp.number == 1:
            assert now >= self.said_at + FORGET_SECONDS, f"{self.me.name} has forgotten too soon how far it had come"
            self.before = self.said
        self.said += 1
        self.said_at = now
        self._post(Letter("message", self.life, HALL, stamp, str(self.said).encode(), self.before), now)

    def command(self, name: bytes, now: float) -> None:
        """Say a command, whose text is its name and when it was said."""
        self.commanded.add(name)
        self.log.say(name, b"", str(now).encode(), now)

    def do_errands(self, now: float) -> None:
        """Send what there is to say of commands."""
        messages, number = self.log.outgoing(now)
        for message in messages:
            self._post(Letter("command", self.life, COMMANDS, Stamp(1, 1), message), now)
        self.log.sent(number)

    def _post(self, letter: Letter, now: float) -> None:
        self._send(letter._replace(sent=now + self._skew))

    def leave(self, grace_seconds: float, now: float) -> None:
        self._take(self.replica.leave(grace_seconds), now)
        for channel, stamp in self._numbers.all(now):
            self._post(Letter("end", self.life, channel, stamp, before=self.before), now)

    def tick(self, now: float) -> None:
        self._take(self.replica.tick(now), now)
        for channel, stamp in self._numbers.marks(now):
            self._post(Letter("mark", self.life, channel, stamp, before=self.before), now)

    def merge_next(self, now: float) -> None:
        self._take(self.replica.merge_next(), now)

    # What it hears.

    def receive(self, letter: Letter, true_sent: float, now: float) -> None:
        if letter.life == self.life:
            return
        lost, news = 0, None
        sent_at = self._clocks.sent_at(letter.life, letter.sent, now)
        assert true_sent - ROUNDING <= sent_at <= now + ROUNDING, f"{self.me.name} takes {letter} for older than it is"
        if letter.kind == "command":
            self._obey(letter.body, sent_at, now)
            return
        if letter.channel == HALL:
            self._listener.expire(now)
        is_known = self._listener.has_heard(HALL, letter.life)
        match letter.kind:
            case "message":
                news, lost = self._listener.take(letter.channel, letter.life, letter.stamp, sent_at)
            case "mark":
                lost = self._listener.mark(letter.channel, letter.life, letter.stamp, sent_at)
            case "end":
                lost = self._listener.end(letter.channel, letter.life, letter.stamp, sent_at)
        if letter.channel == HALL:
            late = sent_at - true_sent + ROUNDING
            self.accounts.take(letter, news, lost, true_sent, late, is_known=is_known)
        elif news is News.FRESH:
            for message in self._assemblers[letter.channel].take(letter.body):
                if message is not None:
                    self._hear(message, now)

    def _obey(self, message: bytes, sent_at: float, now: float) -> None:
        for news in self.log.take(message, sent_at, now):
            assert isinstance(news, HeardCommand), f"{self.me.name}: nothing is lost"
            assert news.said_at >= float(news.body) - ROUNDING, f"{self.me.name}: who came before it is meant"
            self.obeyed[news.socket_id] += 1
            assert self.obeyed[news.socket_id] == 1, f"{self.me.name} obeys {news} twice"

    # Presence.

    def seen(self) -> set[str]:
        """The metas that are listed here, as clients are told them."""
        roster = self.replica.state.roster
        return {meta.phx_ref for topic in roster.topics for metas in _listed(roster.json(topic)) for meta in metas}

    def _hear(self, message: TrackerMessage, now: float) -> None:
        outcome = self.replica.receive(message, now)
        if isinstance(message, Goodbye):
            sender = message.sender
            late = [event for event in outcome.events if event.replica > sender or event.replica.name != sender.name]
            assert not late, f"{self.me.name}: {sender} takes leave, and others go"
            self._gone[sender.name] = sender.vsn, now
        self._take(outcome, now)

    def _take(self, outcome: MergeOutcome, now: float) -> None:
        self._note(outcome.events, now)
        if outcome.changes.joins or outcome.changes.leaves:
            self._tell(outcome)
        for outgoing in outcome.outgoing:
            self.sent[type(outgoing.message).__name__] += 1
            channel = LINE if outgoing.to is None else self._line_of(outgoing.to)
            for piece in self._splitter.split(outgoing.message):
                self._publish(channel, piece, now)

    def _note(self, events: Sequence[Event], now: float) -> None:
        """No life comes back after a later one of its node, or after it has taken leave."""
        before = dict(self._online)
        for kind, replica in [(event.kind, event.replica) for event in events]:
            vsn, when = self._gone.get(replica.name, (0, 0.0))
            if kind == "up":
                assert replica.vsn > vsn or now - when > TIMING.forget_seconds, f"{self.me.name}: {replica} had gone"
                assert before.get(replica.name, replica) <= replica, f"{self.me.name}: {replica} is over"
                self._online[replica.name] = replica
            else:
                self._online.pop(replica.name, None)

    def _tell(self, outcome: MergeOutcome) -> None:
        """Tell the clients, who must not be told that somebody comes who is there, or goes who is not."""
        for entry in outcome.changes.joins:
            assert entry.meta.ref not in self.told, f"{self.me.name}: {entry} joined twice"
            self.told.add(entry.meta.ref)
        for entry in outcome.changes.leaves:
            assert entry.meta.ref in self.told, f"{self.me.name}: {entry} left, and was not there"
            self.told.remove(entry.meta.ref)
        assert self.told | set(self.own.values()) == self.seen()

    def _publish(self, channel: str, body: bytes, now: float) -> None:
        self._post(Letter("message", self.life, channel, self._numbers.next(channel, now), body), now)

    def _line_of(self, replica: ReplicaId) -> str:
        return f"{LINE}:{replica.name}"


class _Key(msgspec.Struct):
    """What is told of a key."""

    metas: list[MetaRef]


def _listed(told: msgspec.Raw) -> list[list[MetaRef]]:
    keys = _decode(told)
    assert keys, "a topic without anybody"
    assert all(key.metas for key in keys.values()), "a key without anybody"
    return [key.metas for key in keys.values()]


_decode = msgspec.json.Decoder(dict[str, _Key]).decode
