"""What one client has been refused: how often, and the answers that are held back for it.

Clients try again as soon as they know that a join was refused, so it pays to tell them later. Whoever waits costs the
memory of the answer, and no task.
"""

from collections import deque

from starlette_channels.rates import FULL, Meter
from starlette_channels.wire.messages import Frame

MOST_HELD = 100
"""Answers held back for one client; those beyond go out at once."""


class Refusals:
    """It exists only for clients that have been refused something."""

    __slots__ = ("_bucket", "_held")

    def __init__(self) -> None:
        self._bucket = FULL
        self._held: deque[tuple[float, Frame]] = deque()

    def draw(self, meter: Meter, now: float, number: int) -> bool:
        """Count a refusal as so many, and return whether there may be so many."""
        bucket = meter.draw(self._bucket, now, number)
        if bucket is None:
            return False
        self._bucket = bucket
        return True

    @property
    def next_at(self) -> float | None:
        """When the next answer is due."""
        return self._held[0][0] if self._held else None

    @property
    def is_full(self) -> bool:
        """Whether no more answers are held back."""
        return len(self._held) >= MOST_HELD

    def hold(self, frame: Frame, until: float) -> None:
        """Hold an answer back."""
        self._held.append((until, frame))

    def due(self, now: float) -> list[Frame]:
        """Return the answers whose time has come."""
        frames: list[Frame] = []
        while self._held and self._held[0][0] <= now:
            frames.append(self._held.popleft()[1])
        return frames
