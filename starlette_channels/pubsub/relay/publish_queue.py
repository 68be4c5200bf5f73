"""What waits to be published: numbered, bounded, and kept until the engine has taken it."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from starlette_channels.pubsub.relay.envelope import Kind
from starlette_channels.pubsub.relay.sequence import Numbers, Stamp
from starlette_channels.wire.messages import Body

BATCH = 512
"""How many are published at once, at most."""

BATCH_BYTES = 4_000_000
"""How many bytes are published at once, at most, if it is more than one: a step has a time limit."""

RUN, RUN_BYTES = 64, 64_000
"""How many messages, and how many bytes, one envelope has at most; a message that is larger is alone in its own."""

OVERHEAD = 100
"""About what one takes beside its payload, in bytes."""


_MARKS = (Kind.MARK, Kind.END)


class QueuedMessage(NamedTuple):
    """One message that waits."""

    kind: Kind
    channel: str
    event: str
    body: Body
    stamp: Stamp
    since: float
    size: int


def runs(messages: Iterable[QueuedMessage]) -> Iterator[list[QueuedMessage]]:
    """Divide messages into those that go into one envelope: successive numbers of one channel, with nothing between.

    So the order of a publisher's messages is kept across channels, too.
    """
    run: list[QueuedMessage] = []
    left = 0
    for message in messages:
        if run and left >= message.size and len(run) < RUN and _follows(run[-1], message):
            left -= message.size
        else:
            if run:
                yield run
            run, left = [], RUN_BYTES - message.size
        run.append(message)
    if run:
        yield run


def _follows(one: QueuedMessage, other: QueuedMessage) -> bool:
    return (
        one.channel == other.channel
        and one.stamp.epoch == other.stamp.epoch
        and one.stamp.number + 1 == other.stamp.number
        and one.kind not in _MARKS
        and other.kind not in _MARKS
    )


class PublishQueue:
    """Takes messages from any thread; one takes them out. What does not fit pushes out the oldest."""

    def __init__(self, max_messages: int, max_bytes: int, clock: Callable[[], float]) -> None:
        self.dropped: int = 0
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = Numbers()
        self._waiting: deque[QueuedMessage] = deque()
        self._taken: list[QueuedMessage] = []
        self._bytes = 0

    def unpublished(self) -> int:
        """Return how many messages wait, or are on their way; marks do not count."""
        with self._lock:
            return sum(waiting.kind not in _MARKS for waiting in (*self._taken, *self._waiting))

    def is_empty(self) -> bool:
        """Whether nothing waits that has not been taken."""
        return not self._waiting

    def put(self, kind: Kind, channel: str, event: str, body: Body) -> None:
        """Put a message behind the others."""
        with self._lock:
            now = self._clock()
            self._append(kind, channel, event, body, self._numbers.next(channel, now), now)
            while len(self._waiting) > self._max_messages or self._bytes > self._max_bytes:
                self._drop(self._waiting.popleft())

    def take(self) -> list[QueuedMessage]:
        """Return the next messages, which stay here until `done`; those that were taken before and are not done, if
        there are any.
        """
        with self._lock:
            if not self._taken:
                left = BATCH_BYTES
                while self._waiting and len(self._taken) < BATCH:
                    left -= self._waiting[0].size
                    if self._taken and left < 0:
                        break
                    self._taken.append(self._waiting.popleft())
            return self._taken

    def done(self) -> None:
        """Forget what was taken: it is published."""
        with self._lock:
            self._bytes -= sum(waiting.size for waiting in self._taken)
            self._taken = []

    def expire(self, seconds: float) -> None:
        """Drop what waits for longer than this."""
        with self._lock:
            limit = self._clock() - seconds
            self._waiting.extendleft(reversed(self._taken))
            self._taken = []
            while self._waiting and self._waiting[0].since < limit:
                self._drop(self._waiting.popleft())

    def _append(self, kind: Kind, channel: str, event: str, body: Body, stamp: Stamp, now: float) -> None:
        size = memoryview(body).nbytes + len(channel) + len(event) + OVERHEAD
        self._bytes += size
        self._waiting.append(QueuedMessage(kind, channel, event, body, stamp, now, size))

    def _drop(self, waiting: QueuedMessage) -> None:
        self._bytes -= waiting.size
        self.dropped += waiting.kind not in _MARKS

    # Marks.

    def put_marks(self) -> None:
        """Put the marks that are due behind the messages that they are about."""
        with self._lock:
            now = self._clock()
            self._put_all(Kind.MARK, self._numbers.marks(now), now)

    def put_ends(self) -> None:
        """Put the last mark of each channel behind everything: nothing else will come."""
        with self._lock:
            now = self._clock()
            self._put_all(Kind.END, self._numbers.all(now), now)

    def _put_all(self, kind: Kind, marks: Iterable[tuple[str, Stamp]], now: float) -> None:
        for channel, stamp in marks:
            self._append(kind, channel, "", b"", stamp, now)

    def restart_marks(self) -> None:
        """Send all marks anew."""
        with self._lock:
            self._numbers.restart(self._clock())

    def seconds_to_mark(self) -> float | None:
        """Return how long it is until the next mark is due, if one ever is."""
        with self._lock:
            due = self._numbers.due()
            return None if due is None else max(0.0, due - self._clock())
