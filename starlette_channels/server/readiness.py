"""Whether a process that has started may get clients: what it needs of the other processes is there."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from starlette_channels.presence.presence import Presence
from starlette_channels.pubsub.broker import Broker

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

START_SECONDS = 10.0
"""How long a process that starts may lack something; then it is ready all the same."""

CODE = "ready_incomplete"


class Readiness:
    """Says once that the start is over: the engine is connected, and each presence has heard from the others.

    What happens to the engine later does not matter: the clients of this process are served without it, too.
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
        self._is_over = False

    def begin(self) -> None:
        """Connect to the engine, and let each presence hear of the others; call it in an event loop.

        It returns at once, and the start is over when all of that is done. If it is called again while the engine is
        connected, as for a second event loop, what is over stays so.
        """
        is_over = self._is_over and self._broker.is_connected
        self._broker.hub()
        for presence in self._presences:
            presence.attach(self._broker)
        self._began, self._is_over = self._clock(), is_over

    def check(self) -> bool:
        """Return whether the start is over; it begins now if it has not. After `START_SECONDS` it is over in any case,
        which is logged, and counted as `ready_incomplete`.
        """
        if self._began is None:
            self.begin()
        if not self._is_over:
            missing = self._missing()
            seconds = self._clock() - (self._began or 0.0)
            self._is_over = missing is None or seconds >= START_SECONDS
            if self._is_over and missing is not None:
                self._counts[CODE] += 1
                logger.warning("Ready after %.0f seconds, although %s", seconds, missing)
        return self._is_over

    def _missing(self) -> str | None:
        """What is not there yet, in words."""
        if not self._broker.is_connected:
            return "the engine between the processes is not connected"
        if not all(presence.knows_others(self._broker) for presence in self._presences):
            return "Presence has not heard from all other processes: lists may be incomplete"
        return None
