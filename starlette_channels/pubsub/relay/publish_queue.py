"""Publish queue: numbered messages, bounded, kept until the engine has accepted them."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from starlette_channels.pubsub.relay.envelope import Kind
from starlette_channels.pubsub.relay.sequence import Numbers, Stamp
from starlette_channels.wire.messages import Body

BATCH = 512
"""Maximal number of messages in one publish."""

BATCH_BYTES = 4_000_000
"""Maximal size of one publish of several messages, in bytes: a step has a time limit."""

RUN, RUN_BYTES = 64, 64_000
"""Maximal number of messages, and of bytes, in one envelope; a larger message has its own."""

OVERHEAD = 100
"""Approximate size of a message without its payload, in bytes."""


_MARKS = (Kind.MARK, Kind.END)


class QueuedMessage(NamedTuple):
    """A queued message."""

    kind: Kind
    channel: str
    event: str
    body: Body
    stamp: Stamp
    since: float
    size: int


def runs(messages: Iterable[QueuedMessage]) -> Iterator[list[QueuedMessage]]:
    """Split messages into runs for one envelope each: successive messages of one channel.

    Messages are not reordered, so the order of a publisher is kept across channels.
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
    """Queue with many producers and one consumer; a full queue drops the oldest messages. Thread-safe."""

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
        """Return the number of messages that the engine has not accepted, without marks."""
        with self._lock:
            return sum(waiting.kind not in _MARKS for waiting in (*self._taken, *self._waiting))

    def is_empty(self) -> bool:
        """Whether all messages have been taken."""
        return not self._waiting

    def put(self, kind: Kind, channel: str, event: str, body: Body) -> None:
        """Number and append a message."""
        with self._lock:
            now = self._clock()
            self._append(kind, channel, event, body, self._numbers.next(channel, now), now)
            while len(self._waiting) > self._max_messages or self._bytes > self._max_bytes:
                self._drop(self._waiting.popleft())

    def take(self) -> list[QueuedMessage]:
        """Return the next messages; until `done` is called, the same ones again."""
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
        """Remove the taken messages: they are published."""
        with self._lock:
            self._bytes -= sum(waiting.size for waiting in self._taken)
            self._taken = []

    def expire(self, seconds: float) -> None:
        """Drop messages that are older than `seconds`."""
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
        """Append the marks that are due."""
        with self._lock:
            now = self._clock()
            self._put_all(Kind.MARK, self._numbers.marks(now), now)

    def put_ends(self) -> None:
        """Append the last mark of each channel, at the close."""
        with self._lock:
            now = self._clock()
            self._put_all(Kind.END, self._numbers.all(now), now)

    def _put_all(self, kind: Kind, marks: Iterable[tuple[str, Stamp]], now: float) -> None:
        for channel, stamp in marks:
            self._append(kind, channel, "", b"", stamp, now)

    def restart_marks(self) -> None:
        """Start the marks of all channels again."""
        with self._lock:
            self._numbers.restart(self._clock())

    def seconds_to_mark(self) -> float | None:
        """Return the seconds until the next mark is due, or `None`."""
        with self._lock:
            due = self._numbers.due()
            return None if due is None else max(0.0, due - self._clock())
