"""Command log: the commands of the last hour, kept by every server process and repeated to processes that lack some.

A command is published once, with a number of its publisher (the speaker). A process that was disconnected at that time
must get it later, even if the speaker has ended. So each server process keeps its own commands and the received ones,
and publishes a digest of their numbers every few seconds. It publishes the numbers themselves (`Knowledge`) at each
connect, and when a digest differs from its own. A process that has commands another one lacks repeats them after a
random pause, unless a third process was quicker.

No clock and no I/O: the time is an argument, in seconds of any origin; messages contain ages instead of times.
"""

import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias
from zlib import crc32

import msgspec
from msgspec import Struct

from starlette_channels.pubsub.relay.number_ranges import NumberRanges, Range

KEEP_SECONDS = 3_900.0
"""Time for which a command is kept, in seconds: an hour, and some time for a reconnect."""

MAX_BYTES = 32_000_000
"""Maximal size of the log, in bytes; beyond it the oldest commands are dropped, and reported as lost."""

OVERHEAD = 300
"""Approximate memory of a command beside its fields, in bytes."""

DIGEST_SECONDS = 3.0
"""Average interval of digests, in seconds, while any speaker is known."""

PAUSE_SECONDS = 0.4
"""Maximal pause before an answer, in seconds: another process may be quicker, or the commands may arrive meanwhile."""

ACK_SECONDS = 0.03
"""Maximal pause before an acknowledgement, in seconds."""

AGAIN_SECONDS = 0.5
"""Interval at which unacknowledged commands are repeated by their speaker, in seconds."""

CHUNK_BYTES = 32_000
"""Maximal size of a message, in bytes; only a single command may be larger."""

DOUBT_SECONDS = 0.01
"""Uncertainty of the time of a command, in seconds: a client that connected so shortly after it gets it, too."""

DRIFT = 1e-4
"""Drift between clocks: the uncertainty grows by this share of the age."""

BUCKETS = 64


class LoggedCommand(Struct, array_like=True, frozen=True, gc=False):
    """A command in a message."""

    number: int
    age: float
    """Seconds between the command and the sending of this message."""

    socket_id: bytes
    slot: bytes
    """Deduplication key: of two commands of a speaker to a `socket_id` with the same slot, only the later is kept."""

    body: bytes


class Commands(Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Commands of one speaker, new from itself, or repeated by any process."""

    speaker: bytes
    covered: list[Range]
    """The numbers that this message settles: those without an entry are superseded, expired or lost."""

    entries: list[LoggedCommand]
    youngest: float
    """The age of the youngest command of the speaker."""

    lost: tuple[int, float] | None = None
    """The highest number dropped for want of room, and the age of the youngest dropped command, if any are covered."""

    wants_ack: bool = False


class Digest(Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Checksums of the known numbers, one for each bucket of speakers."""

    sums: list[int]


class Knowledge(Struct, array_like=True, frozen=True, gc=False, tag=3):
    """All known numbers of the speakers in some buckets, from one process."""

    buckets: list[int]
    known: dict[bytes, list[Range]]


class Ack(Struct, array_like=True, frozen=True, gc=False, tag=4):
    """Acknowledgement: a server process keeps these commands of a speaker."""

    speaker: bytes
    covered: list[Range]


LogMessage: TypeAlias = Commands | Digest | Knowledge | Ack

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LogMessage).decode


class HeardCommand(NamedTuple):
    """A command for the clients with this `socket_id` that may have been connected at the time `said_at`."""

    socket_id: bytes
    body: bytes
    said_at: float


class LostCommands(NamedTuple):
    """Commands up to the time `said_at` are lost: all clients connected by then may have been addressed."""

    said_at: float


LogNews: TypeAlias = HeardCommand | LostCommands


class _Kept(Struct):
    """A kept command."""

    said_at: float
    socket_id: bytes
    slot: bytes
    body: bytes

    @property
    def size(self) -> int:
        return OVERHEAD + len(self.socket_id) + len(self.slot) + len(self.body)


class _Speaker(Struct):
    """State of a speaker: the known numbers, the losses and the kept commands."""

    known: NumberRanges
    youngest: float
    """Time of the last known command."""

    lost_to: int = 0
    """Highest number of a command that was dropped for want of room."""

    lost_at: float = 0.0
    """Time of the last dropped command."""

    checksum: int = 0
    slots: dict[tuple[bytes, bytes], int] = {}
    """Numbers of the kept commands, by `socket_id` and slot."""


class CommandLog:
    """The kept commands of one process. Thread-safe if it gets a `lock`, which the methods hold."""

    def __init__(
        self,
        me: bytes,
        random: Callable[[], float],
        lock: "contextlib.AbstractContextManager[object] | None" = None,
        *,
        keep_seconds: float = KEEP_SECONDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.keeps: bool = False
        """Whether this is a server process, which keeps and repeats the commands of others."""
        self.given_up: int = 0
        """Number of commands that were dropped for want of room."""
        self._me, self._random = me, random
        self._lock = lock or contextlib.nullcontext()
        self._keep_seconds, self._max_bytes = keep_seconds, max_bytes
        self._speakers: dict[bytes, _Speaker] = {}
        self._kept: OrderedDict[tuple[bytes, int], _Kept] = OrderedDict()
        self._bytes = 0
        self._sums = [0] * BUCKETS
        self._number = 0
        self._insists = False
        self._unsent = NumberRanges()
        self._acknowledged = NumberRanges()
        self._peer_heard = -keep_seconds
        # Scheduled messages, with the times when they are due.
        self._again_at: float | None = None
        self._digest_at: float | None = None
        self._agreed = False
        self._doubts: dict[int, float] = {}
        self._due: float | None = None
        self._is_settled = False
        self._lacking: dict[bytes, tuple[float, NumberRanges]] = {}
        self._acks: dict[bytes, tuple[float, NumberRanges]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def names(self) -> Iterator[bytes]:
        """Return the `socket_id` of each kept command."""
        return (kept.socket_id for kept in self._kept.values())

    @property
    def is_settled(self) -> bool:
        """Whether nothing has changed since the last call of `outgoing`."""
        return self._is_settled

    # Own commands.

    def say(self, socket_id: bytes, slot: bytes, body: bytes, now: float) -> int:
        """Add an own command, which `outgoing` then returns; return its number."""
        with self._lock:
            self._is_settled = False
            self._number += 1
            self._unsent.add(self._number, self._number)
            self._keep(self._me, self._number, _Kept(now, socket_id, slot, body))
            self._learn(self._me, [(self._number, self._number)], now)
            self._make_room()
            return self._number

    def withdraw(self, number: int) -> None:
        """Withdraw an own command: it counts as acknowledged, and a process that is no server drops it."""
        with self._lock:
            self._unsent.remove(number, number)
            self._acknowledged.add(number, number)
            if not self.keeps:
                self._drop(self._me, number)

    def unsent(self) -> int:
        """Return the number of unsent own commands."""
        with self._lock:
            return len(self._unsent)

    def unheard(self) -> int:
        """Return the number of own commands that no server process has acknowledged."""
        with self._lock:
            return len(self._unheard())

    def is_heard(self, number: int) -> bool:
        """Whether a server process has acknowledged an own command."""
        with self._lock:
            return number in self._acknowledged

    def has_peers(self, now: float) -> bool:
        """Whether another server process was heard in the last 4 * `DIGEST_SECONDS` seconds."""
        with self._lock:
            return now - self._peer_heard < 4 * DIGEST_SECONDS

    def _unheard(self) -> NumberRanges:
        mine = self._speakers.get(self._me)
        return NumberRanges() if mine is None else mine.known.without(self._acknowledged)

    # Received messages.

    def take(self, data: bytes, sent_at: float, now: float) -> list[LogNews]:
        """Process a received message; return its new commands and losses. Both times are by the clock of this process.

        Raises `ValueError` if the message is invalid.
        """
        try:
            message = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"no commands of ours: {error}") from None
        with self._lock:
            self._is_settled = False
            match message:
                case Commands():
                    return self._hear(message, sent_at, now)
                case Digest():
                    self._peer_heard = now
                    self._compare(message, now)
                case Knowledge():
                    self._peer_heard = now
                    self._take_knowledge(message, now)
                case Ack():
                    self._peer_heard = now
                    self._take_ack(message)
            return []

    def _hear(self, message: Commands, sent_at: float, now: float) -> list[LogNews]:
        speaker = message.speaker
        self._stop_repeating(speaker, message.covered)
        if speaker == self._me or not self.keeps or now - (sent_at - message.youngest) > self._keep_seconds:
            return []
        if message.wants_ack:
            _, covered = self._acks.setdefault(speaker, (now + self._random() * ACK_SECONDS, NumberRanges()))
            covered.update(message.covered)
        news: list[LogNews] = []
        lacked = self._unknown(speaker, message.covered)
        if not lacked:
            return []
        for entry in message.entries:
            if entry.number in lacked:
                kept = _Kept(sent_at - entry.age, entry.socket_id, entry.slot, entry.body)
                news.append(HeardCommand(kept.socket_id, kept.body, _at_the_latest(kept.said_at, now)))
                self._keep(speaker, entry.number, kept)
        known = self._learn(speaker, message.covered, sent_at - message.youngest)
        if message.lost is not None:
            lost_to, age = message.lost
            gone = lacked.within(0, lost_to).without(NumberRanges((one.number, one.number) for one in message.entries))
            if gone:
                known.lost_to, known.lost_at = max(known.lost_to, lost_to), max(known.lost_at, sent_at - age)
                news.append(LostCommands(_at_the_latest(sent_at - age, now)))
        self._make_room()
        return news

    def _compare(self, digest: Digest, now: float) -> None:
        """Compare checksums: the known numbers of different buckets follow after a pause, unless another is quicker."""
        sums = zip(self._sums, digest.sums, strict=False)
        different = [bucket for bucket, (one, other) in enumerate(sums) if one != other]
        if not different:
            self._agreed = True
            mine = self._speakers.get(self._me)
            if mine is not None:
                self._acknowledged.update(mine.known)
        if self.keeps:
            for bucket in different:
                self._doubts.setdefault(bucket, now + self._pause())

    def _take_knowledge(self, knowledge: Knowledge, now: float) -> None:
        mine = knowledge.known.get(self._me)
        if mine is not None:
            self._acknowledged.update(mine)
        if not self.keeps:
            return
        for bucket in knowledge.buckets:
            self._doubts.pop(bucket, None)
        for speaker, ranges in knowledge.known.items():
            if speaker != self._me and self._unknown(speaker, ranges):
                self._doubts.setdefault(_bucket(speaker), now + self._pause())
        wanted = set(knowledge.buckets)
        for speaker, known in self._speakers.items():
            if _bucket(speaker) in wanted and now - known.youngest < self._keep_seconds - 1:
                lacking = known.known.without(NumberRanges(knowledge.known.get(speaker, ())))
                if lacking:
                    due, already = self._lacking.get(speaker, (now + self._pause(), NumberRanges()))
                    already.update(lacking)
                    self._lacking[speaker] = due, already

    def _unknown(self, speaker: bytes, ranges: Iterable[Range]) -> NumberRanges:
        """Return the numbers of a speaker that are unknown here."""
        known = self._speakers.get(speaker)
        numbers = NumberRanges(ranges)
        return numbers if known is None else numbers.without(known.known)

    def _take_ack(self, ack: Ack) -> None:
        if ack.speaker == self._me:
            self._acknowledged.update(ack.covered)
            if not self.keeps:
                for first, last in ack.covered:
                    for number in range(max(first, 1), min(last, self._number) + 1):
                        self._drop(self._me, number)
        elif ack.speaker in self._acks:
            due, covered = self._acks[ack.speaker]
            covered = covered.without(NumberRanges(ack.covered))
            if covered:
                self._acks[ack.speaker] = due, covered
            else:
                del self._acks[ack.speaker]

    def _stop_repeating(self, speaker: bytes, covered: Iterable[Range]) -> None:
        """Cancel repeats: another process was quicker."""
        if speaker in self._lacking:
            due, lacking = self._lacking[speaker]
            lacking = lacking.without(NumberRanges(covered))
            if lacking:
                self._lacking[speaker] = due, lacking
            else:
                del self._lacking[speaker]

    # Messages to send.

    def connected(self, now: float) -> None:
        """Ask, after a connect, for the commands missed meanwhile, and repeat unacknowledged own ones at once."""
        with self._lock:
            self._is_settled = False
            self._ask(now)
            if self._again_at is not None:
                self._again_at = now

    def begin_to_keep(self, now: float) -> None:
        """Become a server process: keep the commands of others, and ask for those of the last hour."""
        with self._lock:
            self._is_settled = False
            if not self.keeps:
                self.keeps = True
                self._ask(now)

    def insist(self, now: float) -> None:
        """Repeat the own commands until they are acknowledged. Processes that are no servers always do so."""
        with self._lock:
            self._is_settled = False
            self._insists, self._again_at = True, now

    def _ask(self, now: float) -> None:
        if self.keeps:
            self._doubts = dict.fromkeys(range(BUCKETS), now)

    def due(self) -> float | None:
        """Return the time of the next scheduled message, or `None`; unsent own commands, due at once, do not count."""
        if self._is_settled:
            return self._due
        with self._lock:
            return self._next()

    def _next(self) -> float | None:
        times = [self._digest_at, self._again_at, *self._doubts.values()]
        times += [due for due, _ in (*self._lacking.values(), *self._acks.values())]
        return min((time for time in times if time is not None), default=None)

    def outgoing(self, now: float) -> tuple[list[bytes], int]:
        """Return the messages that are due, and the number of the last own command, for `sent`."""
        if self._is_settled and (self._due is None or now < self._due):
            return [], 0
        with self._lock:
            self._expire(now)
            own, others = list(self._own(now)), [*self._due_repeats(now), *self._due_knowledge(now)]
            messages = [*own, *others, *self._due_digest(now)]
            self._due = self._next()
            self._is_settled = not self._unsent
            return messages, self._number

    def sent(self, number: int) -> None:
        """Mark the own commands up to a number as sent."""
        if number:
            with self._lock:
                self._unsent.remove(1, number)

    def _own(self, now: float) -> Iterator[bytes]:
        """Return messages with the unsent own commands, and with unacknowledged ones that are due again."""
        insists = self._insists or not self.keeps
        numbers = NumberRanges(self._unsent)
        if insists:
            unheard = self._unheard()
            if self._again_at is not None and self._again_at <= now:
                numbers.update(unheard)
            if not unheard:
                self._again_at = None
            elif self._again_at is None or self._again_at <= now:
                self._again_at = now + AGAIN_SECONDS
        yield from self._chunks(self._me, numbers, now, wants_ack=insists)

    def _due_repeats(self, now: float) -> Iterator[bytes]:
        for speaker in [speaker for speaker, (due, _) in self._lacking.items() if due <= now]:
            _, lacking = self._lacking.pop(speaker)
            yield from self._chunks(speaker, lacking, now)
        for speaker in [speaker for speaker, (due, _) in self._acks.items() if due <= now]:
            _, covered = self._acks.pop(speaker)
            yield _encode(Ack(speaker, list(covered)))

    def _due_knowledge(self, now: float) -> Iterator[bytes]:
        """Return messages with the known numbers of the doubted buckets that are due."""
        buckets = {bucket for bucket, due in self._doubts.items() if due <= now}
        if not buckets:
            return
        for bucket in buckets:
            del self._doubts[bucket]
        by_bucket: defaultdict[int, dict[bytes, list[Range]]] = defaultdict(dict)
        for speaker, known in self._speakers.items():
            if (bucket := _bucket(speaker)) in buckets:
                by_bucket[bucket][speaker] = list(known.known)
        some: list[int] = []
        together: dict[bytes, list[Range]] = {}
        size = 0
        for bucket in sorted(buckets):
            some.append(bucket)
            together.update(by_bucket[bucket])
            size += sum(20 + 10 * len(ranges) for ranges in by_bucket[bucket].values())
            if size > CHUNK_BYTES:
                yield _encode(Knowledge(some, together))
                some, together, size = [], {}, 0
        if some:
            yield _encode(Knowledge(some, together))

    def _due_digest(self, now: float) -> Iterator[bytes]:
        if not self.keeps or not self._speakers:
            self._digest_at = None
            return
        if self._digest_at is not None and self._digest_at > now:
            return
        if self._digest_at is not None and not self._agreed:  # otherwise another process has just sent the same digest
            yield _encode(Digest(self._sums))
        self._agreed = False
        self._digest_at = now + (0.7 + 0.6 * self._random()) * DIGEST_SECONDS

    def _chunks(self, speaker: bytes, numbers: NumberRanges, now: float, *, wants_ack: bool = False) -> Iterator[bytes]:
        """Return messages with the commands of a speaker that have these numbers; the others are covered, too."""
        known = self._speakers.get(speaker)
        if known is None or not numbers:
            return
        smallest, largest = numbers.smallest(), numbers.largest()
        if len(numbers) < len(known.slots):
            each = (number for first, last in numbers for number in range(first, last + 1))
            there = [number for number in each if (speaker, number) in self._kept]
        else:
            there = sorted(number for number in known.slots.values() if number in numbers)
        entries: list[LoggedCommand] = []
        size, first = 0, smallest
        for number in there:
            kept = self._kept[speaker, number]
            if entries and size + kept.size > CHUNK_BYTES:
                yield self._chunk(speaker, known, numbers.within(first, number - 1), entries, now, wants_ack=wants_ack)
                entries, size, first = [], 0, number
            entries.append(LoggedCommand(number, now - kept.said_at, kept.socket_id, kept.slot, kept.body))
            size += kept.size
        yield self._chunk(speaker, known, numbers.within(first, largest), entries, now, wants_ack=wants_ack)

    def _chunk(
        self,
        speaker: bytes,
        known: _Speaker,
        covered: NumberRanges,
        entries: list[LoggedCommand],
        now: float,
        *,
        wants_ack: bool,
    ) -> bytes:
        lost = (known.lost_to, now - known.lost_at) if covered.smallest() <= known.lost_to else None
        return _encode(Commands(speaker, list(covered), entries, now - known.youngest, lost, wants_ack))

    def _pause(self) -> float:
        return self._random() * PAUSE_SECONDS

    # Kept commands.

    def _keep(self, speaker: bytes, number: int, kept: _Kept) -> None:
        """Keep a command in place of an earlier one in its slot; ignored if the slot has a later one."""
        known = self._speakers.get(speaker) or self._learn(speaker, (), kept.said_at)
        slot = kept.socket_id, kept.slot
        other = known.slots.get(slot)
        if other is not None:
            if other > number:
                return
            self._drop(speaker, other)
        known.slots[slot] = number
        self._kept[speaker, number] = kept
        self._bytes += kept.size

    def _drop(self, speaker: bytes, number: int) -> _Kept | None:
        kept = self._kept.pop((speaker, number), None)
        if kept is not None:
            self._bytes -= kept.size
            known = self._speakers[speaker]
            known.slots.pop((kept.socket_id, kept.slot), None)
        return kept

    def _learn(self, speaker: bytes, covered: Iterable[Range], youngest: float) -> _Speaker:
        """Add known numbers of a speaker, and update its checksum."""
        known = self._speakers.get(speaker)
        if known is None:
            known = self._speakers[speaker] = _Speaker(NumberRanges(), youngest)
        known.known.update(covered)
        known.youngest = max(known.youngest, youngest)
        checksum = crc32(speaker + repr(list(known.known)).encode())
        self._sums[_bucket(speaker)] ^= known.checksum ^ checksum
        known.checksum = checksum
        if self._digest_at is None and self.keeps:
            self._digest_at = youngest
            self._agreed = True  # the first digest follows an interval later
        return known

    def _make_room(self) -> None:
        """Drop the oldest commands beyond `max_bytes`, and note the loss."""
        while self._bytes > self._max_bytes:
            speaker, number = next(iter(self._kept))
            kept = self._drop(speaker, number)
            known = self._speakers[speaker]
            if kept is not None:
                known.lost_to = max(known.lost_to, number)
                known.lost_at = max(known.lost_at, kept.said_at)
                self.given_up += 1

    def _expire(self, now: float) -> None:
        """Remove commands and speakers that are older than `keep_seconds`."""
        limit = now - self._keep_seconds
        while self._kept:
            (speaker, number), kept = next(iter(self._kept.items()))
            if kept.said_at >= limit:
                break
            self._drop(speaker, number)
        for speaker in [speaker for speaker, known in self._speakers.items() if known.youngest < limit]:
            known = self._speakers.pop(speaker)
            self._sums[_bucket(speaker)] ^= known.checksum
            for number in tuple(known.slots.values()):
                kept = self._kept.pop((speaker, number))
                self._bytes -= kept.size


def _at_the_latest(said_at: float, now: float) -> float:
    """Return the latest possible time of a command, given the uncertainty of clocks."""
    return said_at + DOUBT_SECONDS + DRIFT * (now - said_at)


def _bucket(speaker: bytes) -> int:
    return crc32(speaker) % BUCKETS
