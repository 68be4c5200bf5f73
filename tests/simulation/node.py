"""One life of a node: what it does, what its clients have been told, and what it knows of its losses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette_channels.brokers.gaps import Listener, News, Numbers
from starlette_channels.presence.clocks import ReplicaId
from starlette_channels.presence.deltas import Meta
from starlette_channels.presence.replica import Outcome, Replica
from starlette_channels.presence.timing import PresenceTiming
from starlette_channels.presence.wire import Joiner, Splitter
from tests.simulation.network import Letter, Send

if TYPE_CHECKING:
    from starlette_channels.presence.state import Place

TIMING = PresenceTiming(news_seconds=1.5, heartbeat_seconds=3.0, down_seconds=8.0, forget_seconds=40.0)
PIECE_BYTES = 300
HALL, LINE = "hall", "line"


@dataclass
class Account:
    """What has come of another life's broadcasts in the hall."""

    before: int
    """Numbers that nobody here could have heard."""

    last: int
    heard: int = 0
    lost: int = 0


class Node:
    """It is told the time, and gives its letters to `send`."""

    def __init__(self, me: ReplicaId, send: Send) -> None:
        self.me = me
        self.life = me.vsn.to_bytes(8)
        self.replica = Replica(me, TIMING, window_sizes=(4, 12))
        self.own: dict[Place, str] = {}
        self.told: set[str] = set()
        self.said = 0
        self.accounts: dict[bytes, Account] = {}
        self._send = send
        self._numbers = Numbers()
        self._listener = Listener()
        self._splitter = Splitter(me, PIECE_BYTES)
        self._joiners = {LINE: Joiner(), self._line_of(me): Joiner()}

    # What it does.

    def track(self, place: "Place", ref: str) -> None:
        self.own[place] = ref
        self.replica.record(self.replica.state.add(*place, Meta(ref, f'{{"phx_ref":"{ref}"}}')))

    def untrack(self, place: "Place") -> None:
        del self.own[place]
        self.replica.record(self.replica.state.remove(*place))

    def say(self, now: float) -> None:
        self.said += 1
        self._publish(HALL, str(self.said).encode(), now)

    def leave(self, grace_seconds: float, now: float) -> None:
        self._take(self.replica.leave(grace_seconds), now)
        for channel, stamp in self._numbers.all():
            self._send(Letter("end", self.life, channel, stamp))

    def tick(self, now: float) -> None:
        self._take(self.replica.tick(now), now)
        for channel, stamp in self._numbers.marks(now):
            self._send(Letter("mark", self.life, channel, stamp))

    # What it hears.

    def receive(self, letter: Letter, now: float) -> None:
        if letter.life == self.life:
            return
        lost, news = 0, None
        match letter.kind:
            case "message":
                news, lost = self._listener.take(letter.channel, letter.life, letter.stamp, now)
            case "mark":
                lost = self._listener.mark(letter.channel, letter.life, letter.stamp, now)
            case "end":
                lost = self._listener.end(letter.channel, letter.life, letter.stamp, now)
        if letter.channel == HALL:
            self._account(letter, lost, is_fresh=news is News.FRESH)
        elif news is News.FRESH:
            message = self._joiners[letter.channel].take(letter.body)
            if message is not None:
                self._take(self.replica.receive(message, now), now)

    def _account(self, letter: Letter, lost: int, *, is_fresh: bool) -> None:
        number = letter.stamp.number
        account = self.accounts.get(letter.life)
        if account is None:
            before = number - 1 if is_fresh else number
            account = self.accounts[letter.life] = Account(before, before)
        account.lost += lost
        if is_fresh:
            assert int(letter.body) == number > account.last, f"{self.me.name}: {number} came after {account.last}"
            account.last = number
            account.heard += 1
        if letter.kind == "end":  # it is forgotten here as well
            del self.accounts[letter.life]

    # Presence.

    def seen(self) -> set[str]:
        """The metas that are listed here."""
        topics = self.replica.state.roster.topics.values()
        return {entry.meta.ref for keys in topics for group in keys.values() for entry in group.values()}

    def _take(self, outcome: Outcome, now: float) -> None:
        if outcome.changes.joins or outcome.changes.leaves:
            self._tell(outcome)
        for outgoing in outcome.outgoing:
            channel = LINE if outgoing.to is None else self._line_of(outgoing.to)
            for piece in self._splitter.split(outgoing.message):
                self._publish(channel, piece, now)

    def _tell(self, outcome: Outcome) -> None:
        """Tell the clients, who must not be told that somebody comes who is there, or goes who is not."""
        for entry in outcome.changes.joins:
            assert entry.meta.ref not in self.told, f"{self.me.name}: {entry} joined twice"
            self.told.add(entry.meta.ref)
        for entry in outcome.changes.leaves:
            assert entry.meta.ref in self.told, f"{self.me.name}: {entry} left, and was not there"
            self.told.remove(entry.meta.ref)
        assert self.told | set(self.own.values()) == self.seen()

    def _publish(self, channel: str, body: bytes, now: float) -> None:
        self._send(Letter("message", self.life, channel, self._numbers.next(channel, now), body))

    def _line_of(self, replica: ReplicaId) -> str:
        return f"{LINE}:{replica.name}"
