"""Error log: errors and refusals, counted each time by their code, and logged through one throttle.

Whoever can make a server write a line can fill its disk. So whatever a client can cause is logged here and nowhere
else: of each kind a few lines, and then one now and then.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from starlette_channels.rates import FULL, Meter, Rate

LINES = Rate(0.1, burst=20)
"""Log lines of each kind: twenty at once, and then one every ten seconds that says how many there were not."""

MOST_KINDS = 200
"""So many functions that raise have lines of their own; the lines of further ones are throttled together, by code."""

PACKAGE = __name__.partition(".")[0]


class ErrorLog:
    """Counts and logs error_log; it may be called from any thread.

    Lines are throttled by their code. A line with a traceback is throttled by its code and by the function of the
    application that raised: a handler that crashes all the time does not hide the first tracebacks of another one.
    """

    def __init__(self, counts: Counter[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = counts
        self._clock = clock
        self._meter = Meter(LINES)
        self._buckets: dict[tuple[str, str], float] = {}
        self._silenced: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

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
        """Count a mishap, or several of one kind, and log it unless there were too many lines of that kind.

        The level is WARNING; with a cause, whose traceback is logged, it is ERROR. What is not logged is not formatted:
        an argument that is costly to show may be `Lazily` made.
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
        """Take a line of a kind out of its bucket.

        Returns how many lines of it were not logged since the last one, or `None` if there is none left now.
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
    """An argument of a log line that is made only when the line is formatted."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make

    def __str__(self) -> str:
        return str(self._make())


def raiser(traceback: TracebackType | None) -> str:
    """Return the name of the first function in a traceback that is not the library's, or "" if there is none."""
    while traceback is not None:
        frame = traceback.tb_frame
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] != PACKAGE:
            return f"{module}.{frame.f_code.co_qualname}"
        traceback = traceback.tb_next
    return ""
