"""What goes wrong between processes: counted each time, logged now and then."""

import logging
import time
from collections import Counter
from collections.abc import Callable

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

QUIET_SECONDS = 5.0
"""For so long after a line, the log has no other of the same kind."""


class Reports:
    """Counts mishaps by their code, and logs them so that a bad hour does not fill the disk."""

    def __init__(self, counts: Counter[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._counts = counts
        self._clock = clock
        self._said: dict[str, float] = {}
        self._unsaid: Counter[str] = Counter()

    def count(self, code: str, number: int = 1) -> None:
        """Count without a word."""
        self._counts[code] += number

    def warn(self, code: str, text: str, *args: object, number: int = 1) -> None:
        """Count, and log a line unless there was one of this kind a moment ago; the next one says how many were not
        logged.
        """
        self._counts[code] += number
        now = self._clock()
        said = self._said.get(code)
        if said is not None and now - said < QUIET_SECONDS:
            self._unsaid[code] += 1
            return
        self._said[code] = now
        more = self._unsaid.pop(code, 0)
        logger.warning(f"{text}{f' (and {more} times before)' if more else ''}", *args)
