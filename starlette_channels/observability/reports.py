"""Mishaps of one part of the library, which go to one logger: those between processes, unless another is given."""

import logging
import time
from collections import Counter
from collections.abc import Callable

from starlette_channels.observability.error_log import Mishaps

logger: logging.Logger = logging.getLogger("starlette_channels.broker")


class Reports:
    """`Mishaps` with a logger; they are throttled as all others are."""

    def __init__(
        self,
        counts: Counter[str],
        clock: Callable[[], float] = time.monotonic,
        *,
        logger: logging.Logger = logger,
    ) -> None:
        self._mishaps = Mishaps(counts, clock)
        self._logger = logger

    def count(self, code: str, number: int = 1) -> None:
        """Count without a word."""
        self._mishaps.counts[code] += number

    def warn(self, code: str, text: str, *args: object, number: int = 1) -> None:
        """Count, and log a warning unless there were too many of this code."""
        self._mishaps.note(code, self._logger, text, *args, number=number)
