"""Numbers on what is published, and what they tell a receiver about its losses.

A publisher counts its messages on each channel, and says so again (a mark) some time after the last one, so that
nobody misses the end unawares. Then it forgets the count; if the channel is used again, a new epoch begins at 1.
Epochs of one publisher only grow. No clock and no I/O: the time (in seconds, of any origin) is told.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from math import inf
from typing import NamedTuple

from msgspec import Struct

MARK_SECONDS = (1.0, 4.0, 16.0, 64.0, 256.0)
"""How long a publisher waits for the first mark and for each after it; then it forgets the count."""

KEEP_SECONDS = 2 * sum(MARK_SECONDS)
"""How long a receiver keeps a count of which it hears nothing: longer than its publisher does."""

PATIENCE_SECONDS = 2.0
"""How long a subscription may take until what is missed meanwhile counts. So long does a join wait for it."""

ENDED_SECONDS = 30.0
"""How long a receiver keeps the count of a publisher that has stopped."""


class Stamp(NamedTuple):
    """The number of a message among those of its publisher on its channel, and how old the series of numbers is.

    Ages are in seconds before the message is sent, so that no two clocks need to agree.
    """

    epoch: int
    number: int

    age: float = 0.0
    """How long ago the message with number 1 was said; infinite if that is not known."""

    quiet: float = inf
    """How long ago the message with the number before was said; for a mark, the one with this number."""


class Count(Struct):
    """How far a publisher has come on a channel."""

    epoch: int
    number: int
    began: float
    """When the first message was said."""

    spoke: float
    """When the last message was said."""

    due: float
    """When the next mark is to be sent, or the count forgotten."""

    marks: int = 0
    """How many marks have been sent since the last message."""


class Numbers:
    """The counts of one publisher."""

    def __init__(self, mark_seconds: Sequence[float] = MARK_SECONDS) -> None:
        self._mark_seconds = mark_seconds
        self._epoch = 0
        self._counts: dict[str, Count] = {}
        # Each step has one waiting time, so who came first is due first. A channel is in the first step once, and may
        # have been put off since; in the others, entries that messages have overtaken are of no account.
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
        """Return when `marks` is to be called, at the latest."""
        return min((step[0][0] for step in self._steps if step), default=None)

    def marks(self, now: float) -> Iterator[tuple[str, Stamp]]:
        """Return the marks that are due, and forget the counts for which there have been enough."""
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
        """Begin with the marks anew, for all counts: somebody may have missed some."""
        due = now + self._mark_seconds[0]
        for count in self._counts.values():
            count.due, count.marks = due, 0
        for step in self._steps:
            step.clear()
        self._steps[0].extend((due, channel) for channel in self._counts)

    def all(self, now: float) -> Iterator[tuple[str, Stamp]]:
        """Return all counts, for a publisher that stops."""
        for channel, count in self._counts.items():
            yield channel, _mark(count, now)


def _mark(count: Count, now: float) -> Stamp:
    return Stamp(count.epoch, count.number, now - count.began, now - count.spoke)


class News(Enum):
    """What a message is to a receiver."""

    FRESH = auto()
    """It comes for the first time."""

    DUPLICATE = auto()
    """It has come before."""

    LATE = auto()
    """It was given up: it has been reported as lost, or belongs to an epoch that is over."""


class Heard(Struct):
    """How far a receiver has heard a publisher on a channel."""

    epoch: int
    number: int
    when: float
    hole: int = 0
    """The first number of the last hole."""

    filled: int = 0
    """The first number behind it."""


class Listener:
    """What one receiver has heard, of all publishers, and what it must have missed.

    Of a publisher that is heard for the first time on a channel, everything is missing that was said since the channel
    has been wanted. If the series of numbers is younger than that, this is known to the number. If it is older, the
    last message before is known to be missing, if it was said since then; there may be more.
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
        """Whether it knows how far a publisher has come on a channel."""
        return publisher in self._heard.get(channel, _NOTHING)

    def want(self, channel: str, since: float) -> None:
        """Note since when a channel has been wanted; one that nothing is said of has always been."""
        if channel not in self._since:
            self._since[channel] = since
            self._unconfirmed.add(channel)

    def confirm(self, channel: str, now: float) -> None:
        """Note that the subscription to a channel is in force."""
        if channel in self._unconfirmed:
            self._unconfirmed.discard(channel)
            if now - self._since[channel] <= PATIENCE_SECONDS:
                self._since[channel] = now

    def take(self, channel: str, publisher: bytes, stamp: Stamp, now: float) -> tuple[News, int]:
        """Take a message: return what it is, and how many before it are lost. `now` is when it was sent."""
        heard = self._of(channel, publisher)
        if heard is None:
            return News.FRESH, self._begin(channel, publisher, stamp, stamp.number, now)
        if stamp.epoch < heard.epoch:
            return News.LATE, 0
        if stamp.epoch == heard.epoch and stamp.number <= heard.number:
            return (News.LATE if heard.hole <= stamp.number < heard.filled else News.DUPLICATE), 0
        return News.FRESH, self._go_on(channel, publisher, heard, stamp, stamp.number, now)

    def take_next(self, channel: str, publisher: bytes, epoch: int, number: int, count: int, now: float) -> bool:
        """Take as many messages as `count`, from `number` on, if they come right after the last one that was heard.

        Returns false if they do not, or if nothing was heard of the series: then `take` says what they are.
        """
        heard = self._heard.get(channel, _NOTHING).get(publisher)
        if heard is None or heard.number + 1 != number or heard.epoch != epoch:
            return False
        heard.number += count
        if heard.when != now:  # all of one read come at the same time, and need moving once
            heard.when = now
            self._order.move_to_end((channel, publisher))
        return True

    def mark(self, channel: str, publisher: bytes, stamp: Stamp, now: float) -> int:
        """Take a mark: return how many messages are lost, up to the one with its number. `now` is when it was sent."""
        heard = self._of(channel, publisher)
        if heard is None:
            return self._begin(channel, publisher, stamp, stamp.number + 1, now)
        if stamp.epoch < heard.epoch or (stamp.epoch == heard.epoch and stamp.number < heard.number):
            return 0
        return self._go_on(channel, publisher, heard, stamp, stamp.number + 1, now)

    def end(self, channel: str, publisher: bytes, stamp: Stamp, now: float) -> int:
        """Take the last mark of a publisher: as `mark`, and forget soon what has been heard of it on the channel.

        Not at once: what it has published last may come twice.
        """
        lost = self.mark(channel, publisher, stamp, now)
        self._ended.append((now, channel, publisher))
        return lost

    def _of(self, channel: str, publisher: bytes) -> Heard | None:
        return self._heard.get(channel, _NOTHING).get(publisher)

    def _begin(self, channel: str, publisher: bytes, stamp: Stamp, until: int, now: float) -> int:
        """Note the first that is heard of a publisher; return how many are surely missing before `until`."""
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
        """Note what has come; return how many are missing before `until`."""
        first = heard.number + 1 if stamp.epoch == heard.epoch else 1
        if stamp.epoch > heard.epoch or first < until:
            heard.hole, heard.filled = first, until
        heard.epoch, heard.number, heard.when = stamp.epoch, stamp.number, now
        self._order.move_to_end((channel, publisher))
        return until - first

    # What need not be kept.

    def forget(self, channel: str) -> None:
        """Forget a channel that nobody wants to hear any more."""
        self._since.pop(channel, None)
        self._unconfirmed.discard(channel)
        for publisher in tuple(self._heard.get(channel, ())):
            self._forget(channel, publisher)

    def expire(self, now: float) -> None:
        """Forget the publishers that have been silent on a channel for longer than they remember themselves.

        If much time has passed since the last call, this process may have been suspended, and what was said meanwhile
        may still come: then everything is kept for its full time from now on.
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
        """Keep everything for its full time from now on: nobody could be heard meanwhile."""
        self._checked = now
        for channel, publisher in self._order:
            self._heard[channel][publisher].when = now

    def _forget(self, channel: str, publisher: bytes) -> None:
        of_channel = self._heard[channel]
        del of_channel[publisher], self._order[channel, publisher]
        if not of_channel:
            del self._heard[channel]


_NOTHING: dict[bytes, Heard] = {}
