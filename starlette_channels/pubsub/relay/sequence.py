"""Sequence: numbers of published messages, by which a receiver detects its losses.

A publisher counts its messages on each channel. Some time after the last one it repeats the number (a mark), so that
a loss of the last messages is detected, too. After the last mark it forgets the count; if the channel is used again,
a new epoch begins with number 1. Epochs of one publisher only grow. No clock and no I/O: the time is an argument, in
seconds of any origin.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from math import inf
from typing import NamedTuple

from msgspec import Struct

MARK_SECONDS = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Pauses before the first mark and each further one, in seconds; after the last one the count is forgotten."""

KEEP_SECONDS = 2 * sum(MARK_SECONDS)
"""Time for which a receiver keeps the count of a silent publisher, in seconds: longer than the publisher does."""

PATIENCE_SECONDS = 2.0
"""Maximal wait of a join for its subscription, in seconds. Losses before the confirmation count if it takes longer."""

ENDED_SECONDS = 30.0
"""Time for which a receiver keeps the count of a closed publisher, in seconds."""


class Stamp(NamedTuple):
    """The number of a message of a publisher on a channel, and the age of the series of numbers.

    Ages are in seconds before the sending of the message, so that clocks need not agree.
    """

    epoch: int
    number: int

    age: float = 0.0
    """Age of the message with number 1; infinite if unknown."""

    quiet: float = inf
    """Age of the message before this one; for a mark, of the message with its number."""


class Count(Struct):
    """The count of a publisher on a channel: its last number and its marks."""

    epoch: int
    number: int
    began: float
    """Time of the first message."""

    spoke: float
    """Time of the last message."""

    due: float
    """Time of the next mark."""

    marks: int = 0
    """Number of marks since the last message."""


class Numbers:
    """The counts of one publisher."""

    def __init__(self, mark_seconds: Sequence[float] = MARK_SECONDS) -> None:
        self._mark_seconds = mark_seconds
        self._epoch = 0
        self._counts: dict[str, Count] = {}
        # One queue for each pause, so the oldest entry is due first. A channel is in the first queue once, and may be
        # due later than its entry; entries of the others are stale if a message was published since.
        self._steps: list[deque[tuple[float, str]]] = [deque() for _ in mark_seconds]

    def __len__(self) -> int:
        return len(self._counts)

    def next(self, channel: str, now: float) -> Stamp:
        """Return the stamp of a new message."""
        count = self._counts.get(channel)
        due = now + self._mark_seconds[0]
        if count is None:
            self._epoch += 1
            self._counts[channel] = Count(self._epoch, 1, now, now, due)
            self._steps[0].append((due, channel))
            return Stamp(self._epoch, 1)
        if count.marks:
            self._steps[0].append((due, channel))
        stamp = Stamp(count.epoch, count.number + 1, now - count.began, now - count.spoke)
        count.number += 1
        count.spoke, count.due, count.marks = now, due, 0
        return stamp

    def due(self) -> float | None:
        """Return the time at which `marks` must be called next, or `None`."""
        return min((step[0][0] for step in self._steps if step), default=None)

    def marks(self, now: float) -> Iterator[tuple[str, Stamp]]:
        """Return the marks that are due; forgets counts after their last mark."""
        for number, step in enumerate(self._steps):
            while step and step[0][0] <= now:
                due, channel = step.popleft()
                count = self._counts.get(channel)
                if count is None or count.marks != number or (number > 0 and count.due != due):
                    continue
                if count.due > now:
                    step.append((count.due, channel))
                    continue
                yield channel, _mark(count, now)
                self._put_off(channel, count, now)

    def _put_off(self, channel: str, count: Count, now: float) -> None:
        count.marks += 1
        if count.marks == len(self._mark_seconds):
            del self._counts[channel]
            return
        count.due = now + self._mark_seconds[count.marks]
        self._steps[count.marks].append((count.due, channel))

    def restart(self, now: float) -> None:
        """Start the marks of all counts again, because receivers may have missed some."""
        due = now + self._mark_seconds[0]
        for count in self._counts.values():
            count.due, count.marks = due, 0
        for step in self._steps:
            step.clear()
        self._steps[0].extend((due, channel) for channel in self._counts)

    def all(self, now: float) -> Iterator[tuple[str, Stamp]]:
        """Return a last mark for each count, for the close of the publisher."""
        for channel, count in self._counts.items():
            yield channel, _mark(count, now)


def _mark(count: Count, now: float) -> Stamp:
    return Stamp(count.epoch, count.number, now - count.began, now - count.spoke)


class News(Enum):
    """Classification of a message by a receiver."""

    FRESH = auto()
    """New."""

    DUPLICATE = auto()
    """Received before."""

    LATE = auto()
    """Too late: it has been reported as lost, or belongs to an earlier epoch."""


class Heard(Struct):
    """The last number that a receiver knows of a publisher on a channel, and the last hole."""

    epoch: int
    number: int
    when: float
    hole: int = 0
    """The first number of the last hole."""

    filled: int = 0
    """The first number after the hole."""


class Listener:
    """Loss detection of one receiver, for all publishers: the last number of each on each channel.

    At the first message of a publisher on a channel, its earlier messages since the channel was wanted are lost. If the
    series of numbers is younger than that, their number is known. If it is older, only one loss is certain, if the
    message before is younger; there may be more.
    """

    def __init__(self, keep_seconds: float = KEEP_SECONDS) -> None:
        self._keep_seconds = keep_seconds
        self._since: dict[str, float] = {}
        self._unconfirmed: set[str] = set()
        self._heard: dict[str, dict[bytes, Heard]] = {}
        self._order: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._ended: deque[tuple[float, str, bytes]] = deque()
        self._checked: float | None = None

    def __len__(self) -> int:
        return len(self._order)

    def has_heard(self, channel: str, publisher: bytes) -> bool:
        """Whether a number of a publisher on a channel is known."""
        return publisher in self._heard.get(channel, _NOTHING)

    def want(self, channel: str, since: float) -> None:
        """Set the time since when a channel is wanted; without it, it counts as always wanted."""
        if channel not in self._since:
            self._since[channel] = since
            self._unconfirmed.add(channel)

    def confirm(self, channel: str, now: float) -> None:
        """Confirm a subscription: losses count from now on, if it took `PATIENCE_SECONDS` at most."""
        if channel in self._unconfirmed:
            self._unconfirmed.discard(channel)
            if now - self._since[channel] <= PATIENCE_SECONDS:
                self._since[channel] = now

    def take(self, channel: str, publisher: bytes, stamp: Stamp, now: float) -> tuple[News, int]:
        """Classify a message, and return the number of lost ones before it. `now` is its time of sending."""
        heard = self._of(channel, publisher)
        if heard is None:
            return News.FRESH, self._begin(channel, publisher, stamp, stamp.number, now)
        if stamp.epoch < heard.epoch:
            return News.LATE, 0
        if stamp.epoch == heard.epoch and stamp.number <= heard.number:
            return (News.LATE if heard.hole <= stamp.number < heard.filled else News.DUPLICATE), 0
        return News.FRESH, self._go_on(channel, publisher, heard, stamp, stamp.number, now)

    def take_next(self, channel: str, publisher: bytes, epoch: int, number: int, count: int, now: float) -> bool:
        """Accept `count` messages from `number` on, if they directly follow the last known one.

        Returns false if they do not, or if the series is unknown; then call `take`.
        """
        heard = self._heard.get(channel, _NOTHING).get(publisher)
        if heard is None or heard.number + 1 != number or heard.epoch != epoch:
            return False
        heard.number += count
        if heard.when != now:  # the messages of one read have the same time: one move is enough
            heard.when = now
            self._order.move_to_end((channel, publisher))
        return True

    def mark(self, channel: str, publisher: bytes, stamp: Stamp, now: float) -> int:
        """Process a mark: return the number of lost messages up to its number. `now` is its time of sending."""
        heard = self._of(channel, publisher)
        if heard is None:
            return self._begin(channel, publisher, stamp, stamp.number + 1, now)
        if stamp.epoch < heard.epoch or (stamp.epoch == heard.epoch and stamp.number < heard.number):
            return 0
        return self._go_on(channel, publisher, heard, stamp, stamp.number + 1, now)

    def end(self, channel: str, publisher: bytes, stamp: Stamp, now: float) -> int:
        """Process the last mark of a publisher: as `mark`, and the count is forgotten after `ENDED_SECONDS`.

        Not at once, because duplicates of its last messages may follow.
        """
        lost = self.mark(channel, publisher, stamp, now)
        self._ended.append((now, channel, publisher))
        return lost

    def _of(self, channel: str, publisher: bytes) -> Heard | None:
        return self._heard.get(channel, _NOTHING).get(publisher)

    def _begin(self, channel: str, publisher: bytes, stamp: Stamp, until: int, now: float) -> int:
        """Begin the count of a publisher; return the number of messages before `until` that are certainly lost."""
        since = self._since.get(channel, -inf)
        lost = 0
        if channel in self._unconfirmed and now - since <= PATIENCE_SECONDS:
            since = now
        if now - stamp.age >= since:
            lost = until - 1
        elif until > 1 and now - stamp.quiet >= since:
            lost = 1
        heard = Heard(stamp.epoch, stamp.number, now, until - lost, until)
        self._heard.setdefault(channel, {})[publisher] = heard
        self._order[channel, publisher] = None
        return lost

    def _go_on(self, channel: str, publisher: bytes, heard: Heard, stamp: Stamp, until: int, now: float) -> int:
        """Advance the count of a publisher; return the number of lost messages before `until`."""
        first = heard.number + 1 if stamp.epoch == heard.epoch else 1
        if stamp.epoch > heard.epoch or first < until:
            heard.hole, heard.filled = first, until
        heard.epoch, heard.number, heard.when = stamp.epoch, stamp.number, now
        self._order.move_to_end((channel, publisher))
        return until - first

    # Removal.

    def forget(self, channel: str) -> None:
        """Forget an unwanted channel."""
        self._since.pop(channel, None)
        self._unconfirmed.discard(channel)
        for publisher in tuple(self._heard.get(channel, ())):
            self._forget(channel, publisher)

    def expire(self, now: float) -> None:
        """Forget counts without messages for `keep_seconds`, and those of closed publishers after `ENDED_SECONDS`.

        After a long time without a call this process may have been suspended, and older messages may still arrive:
        then all counts are kept for their full time from now on.
        """
        if self._checked is not None and now - self._checked > self._keep_seconds / 4:
            self.touch(now)
        self._checked = now
        while self._ended and now - self._ended[0][0] > ENDED_SECONDS:
            _, channel, publisher = self._ended.popleft()
            if self._of(channel, publisher) is not None:
                self._forget(channel, publisher)
        while self._order:
            channel, publisher = next(iter(self._order))
            if now - self._heard[channel][publisher].when <= self._keep_seconds:
                return
            self._forget(channel, publisher)

    def touch(self, now: float) -> None:
        """Keep all counts for their full time from now on, because nothing could be received meanwhile."""
        self._checked = now
        for channel, publisher in self._order:
            self._heard[channel][publisher].when = now

    def _forget(self, channel: str, publisher: bytes) -> None:
        of_channel = self._heard[channel]
        del of_channel[publisher], self._order[channel, publisher]
        if not of_channel:
            del self._heard[channel]


_NOTHING: dict[bytes, Heard] = {}
