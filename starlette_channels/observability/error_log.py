"""Error log: errors and refusals, counted each time by their code, and logged through one throttle.

A client that can make a server log can fill its disk. So everything that clients can cause is logged here and nowhere
else: a few lines of each kind, then one every ten seconds.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from starlette_channels.rates import FULL, Meter, Rate

LINES = Rate(0.1, burst=20)
"""Log lines of each kind: a burst of twenty, then one every ten seconds, with the number of suppressed lines."""

MOST_KINDS = 200
"""Number of raising functions that are throttled separately; further ones share one throttle for each code."""

PACKAGE = __name__.partition(".")[0]


class ErrorLog:
    """Counts and logs errors and refusals; thread-safe.

    Lines are throttled by their code. A line with a traceback is throttled by its code and by the function of the
    application that raised, so that a handler that crashes all the time does not hide the tracebacks of another one.
    """

    def __init__(self, counts: Counter[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = counts
        self._clock = clock
        self._meter = Meter(LINES)
        self._buckets: dict[tuple[str, str], float] = {}
        self._silenced: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def count(self, code: str, number: int = 1) -> None:
        """Count errors of one kind without a log line."""
        self.counts[code] += number

    def note(
        self,
        code: str,
        logger: logging.Logger,
        text: str,
        *args: object,
        cause: BaseException | None = None,
        number: int = 1,
        level: int | None = None,
    ) -> None:
        """Count `number` errors of the kind `code`, and log a line unless the throttle for that kind is exhausted.

        The default level is WARNING; with a `cause`, whose traceback is logged, it is ERROR. Suppressed lines are not
        formatted; wrap arguments that are costly to format in `Lazily`.
        """
        self.counts[code] += number
        if level is None:
            level = logging.WARNING if cause is None else logging.ERROR
        if not logger.isEnabledFor(level):
            return
        silenced = self._draw(code, "" if cause is None else raiser(cause.__traceback__))
        if silenced is None:
            return
        if silenced:
            text, args = f"{text} (and %d like it that were not logged)", (*args, silenced)
        logger.log(level, text, *args, exc_info=cause)

    def _draw(self, code: str, origin: str) -> int | None:
        """Draw a line of a kind from its token bucket.

        Returns the number of lines suppressed since the last one, or `None` if the bucket is empty.
        """
        with self._lock:
            kind = code, origin
            if origin and kind not in self._buckets and len(self._buckets) >= MOST_KINDS:
                kind = code, "others"
            bucket = self._meter.draw(self._buckets.get(kind, FULL), self._clock())
            if bucket is None:
                self._silenced[kind] += 1
                return None
            self._buckets[kind] = bucket
            return self._silenced.pop(kind, 0)


class Lazily:
    """A log argument that is computed only when the line is formatted."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make

    def __str__(self) -> str:
        return str(self._make())


def raiser(traceback: TracebackType | None) -> str:
    """Return the name of the first function in a traceback outside this library, or ""."""
    while traceback is not None:
        frame = traceback.tb_frame
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] != PACKAGE:
            return f"{module}.{frame.f_code.co_qualname}"
        traceback = traceback.tb_next
    return ""
