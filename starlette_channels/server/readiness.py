"""Readiness: whether a process that has started may get clients."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from starlette_channels.presence.presence import Presence
from starlette_channels.pubsub.broker import Broker

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

START_SECONDS = 10.0
"""How long a process waits for the engine and for Presence; then it is ready all the same."""

CODE = "ready_incomplete"


class Readiness:
    """Whether the engine is connected, and each presence has heard from the other processes.

    A process that has been ready stays so: without the engine, its clients are still served.
    """

    def __init__(
        self,
        broker: Broker,
        presences: Sequence[Presence],
        counts: Counter[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker, self._presences, self._counts, self._clock = broker, presences, counts, clock
        self._began: float | None = None
        self._is_ready = False

    def begin(self) -> None:
        """Connect to the engine, and attach each presence to it; call it in an event loop.

        It returns at once. If it is called again while the engine is connected, as for a second event loop, a process
        that is ready stays so.
        """
        is_ready = self._is_ready and self._broker.is_connected
        self._broker.hub()
        for presence in self._presences:
            presence.attach(self._broker)
        self._began, self._is_ready = self._clock(), is_ready

    def check(self) -> bool:
        """Return whether the process is ready; connect first if that has not been done.

        After `START_SECONDS` it is ready in any case, which is logged, and counted as `ready_incomplete`.
        """
        if self._began is None:
            self.begin()
        if not self._is_ready:
            missing = self._missing()
            seconds = self._clock() - (self._began or 0.0)
            self._is_ready = missing is None or seconds >= START_SECONDS
            if self._is_ready and missing is not None:
                self._counts[CODE] += 1
                logger.warning("Ready after %.0f seconds, although %s", seconds, missing)
        return self._is_ready

    def _missing(self) -> str | None:
        """Missing conditions, as text for the log."""
        if not self._broker.is_connected:
            return "the engine between the processes is not connected"
        if not all(presence.knows_others(self._broker) for presence in self._presences):
            return "Presence has not heard from all other processes: lists may be incomplete"
        return None
