"""Answers to refused joins, sent after a delay, because clients try again as soon as they get the answer.

A delayed answer costs its memory, but no task.
"""

from collections import deque

from starlette_channels.channels.client import Write
from starlette_channels.runtime.timers import waker_of_this_loop
from starlette_channels.wire.messages import OutgoingFrame

MOST_HELD = 100
"""Limit of the delayed answers of one client; further answers are sent at once."""


class DelayedRefusals:
    """The delayed answers of one client. It exists only for a client with a refused join."""

    __slots__ = ("_held", "_seconds", "_write")

    def __init__(self, write: Write, seconds: float) -> None:
        self._write = write
        self._seconds = seconds
        self._held: deque[tuple[float, OutgoingFrame]] = deque()

    def send(self, frame: OutgoingFrame) -> None:
        """Send an answer after the delay; at once if too many are delayed."""
        if len(self._held) >= MOST_HELD:
            self._write(frame)
            return
        waker = waker_of_this_loop()
        if not self._held:
            waker.wake(self._seconds, self._send_due)
        self._held.append((waker.now() + self._seconds, frame))

    def drop(self) -> None:
        """Drop the answers: the client has disconnected."""
        self._held.clear()

    def _send_due(self, now: float) -> float | None:
        while self._held and self._held[0][0] <= now:
            self._write(self._held.popleft()[1])
        return self._held[0][0] if self._held else None
