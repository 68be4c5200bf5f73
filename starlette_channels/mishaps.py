"""What clients do wrong: counted each time, and logged as long as that is not too often.

Whoever can make a server write a line can fill its disk, so each code has a few lines, and one now and then.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable

from starlette_channels.buckets import FULL, Meter, Rate

LINES = Rate(0.1, burst=20)
"""Log lines of each code: twenty at once, and then one every ten seconds that says how many there were not."""


class Mishaps:
    """Counts and logs them by their code."""

    def __init__(self, counts: Counter[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = counts
        self._clock = clock
        self._meter = Meter(LINES)
        self._buckets: dict[str, float] = {}
        self._silenced: Counter[str] = Counter()

    def note(
        self,
        code: str,
        logger: logging.Logger,
        text: str,
        *args: object,
        cause: BaseException | None = None,
        number: int = 1,
    ) -> None:
        """Count a mishap, or several of one kind, and warn of it; with a cause, it is an error."""
        self.counts[code] += number
        bucket = self._meter.draw(self._buckets.get(code, FULL), self._clock())
        if bucket is None:
            self._silenced[code] += 1
            return
        self._buckets[code] = bucket
        silenced = self._silenced.pop(code, 0)
        if silenced:
            text, args = f"{text} (and %d like it that were not logged)", (*args, silenced)
        logger.log(logging.WARNING if cause is None else logging.ERROR, text, *args, exc_info=cause)
