"""The check for slow clients: a full send queue may also be the result of a burst."""

from starlette_channels.transports import HANGING_SECONDS, STEP_SECONDS


class SlowClientCheck:
    """Confirms that a client is slow: its queued bytes have not decreased for `HANGING_SECONDS`."""

    __slots__ = ("_steps", "_waiting_bytes")

    def __init__(self, waiting_bytes: int) -> None:
        self._waiting_bytes = waiting_bytes
        self._steps = 0

    def is_confirmed(self, waiting_bytes: int, extra_seconds: float = 0.0) -> bool:
        """Check after one more step; `extra_seconds` is the time allowed for a large frame in flight."""
        self._steps += 1
        if waiting_bytes < self._waiting_bytes:
            self._waiting_bytes, self._steps = waiting_bytes, 0
        return self._steps * STEP_SECONDS >= HANGING_SECONDS + extra_seconds
