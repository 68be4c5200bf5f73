"""Mishaps of one part of the library, which go to one logger: those between processes, unless another is given."""

import logging
import time
from collections import Counter
from collections.abc import Callable

from starlette_channels.observability.error_log import ErrorLog

logger: logging.Logger = logging.getLogger("starlette_channels.broker")


class Reports:
    """`ErrorLog` with a logger; they are throttled as all others are."""

    def __init__(
        self,
        counts: Counter[str],
        clock: Callable[[], float] = time.monotonic,
        *,
        logger: logging.Logger = logger,
    ) -> None:
        self._error_log = ErrorLog(counts, clock)
        self._logger = logger

    def count(self, code: str, number: int = 1) -> None:
        """Count without a word."""
        self._error_log.counts[code] += number

    def warn(self, code: str, text: str, *args: object, number: int = 1) -> None:
        """Count, and log a warning unless there were too many of this code."""
        self._error_log.note(code, self._logger, text, *args, number=number)
