"""Whether a client for which much waits is slow, or has only had a burst."""

from starlette_channels.transports import HANGING_SECONDS, STEP_SECONDS


class SlowClientCheck:
    """A client for which too much waits is slow if no less waits after a moment; a burst alone is no reason."""

    __slots__ = ("_steps", "_waiting_bytes")

    def __init__(self, waiting_bytes: int) -> None:
        self._waiting_bytes = waiting_bytes
        self._steps = 0

    def is_confirmed(self, waiting_bytes: int, extra_seconds: float = 0.0) -> bool:
        """Look again after one more step; `extra_seconds` is the time that a large frame takes on its way."""
        self._steps += 1
        if waiting_bytes < self._waiting_bytes:
            self._waiting_bytes, self._steps = waiting_bytes, 0
        return self._steps * STEP_SECONDS >= HANGING_SECONDS + extra_seconds
