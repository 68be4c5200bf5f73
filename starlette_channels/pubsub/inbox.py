"""What has come from other processes, on its way into an event loop."""

from collections import deque
from collections.abc import Callable, Sequence

from starlette_channels.pubsub.hub import Hub
from starlette_channels.pubsub.relay.envelope import Envelope
from starlette_channels.pubsub.relay.receiver import Arrival

BATCH = 256
"""How many are handed over before the event loop has a turn for something else."""

OVERHEAD = 500
"""About what one takes in memory beside its payload."""


class Inbox:
    """Collects in one thread, and hands over in the hub's: many at a time, woken once."""

    __slots__ = ("_hand_over", "_is_called", "_put", "_taken", "_waiting", "hub")

    def __init__(self, hub: Hub, hand_over: Callable[[Hub, Arrival], None]) -> None:
        self.hub: Hub = hub
        self._hand_over = hand_over
        self._waiting: deque[Arrival] = deque()
        self._is_called = False
        self._put = self._taken = 0  # each is changed by one thread only

    @property
    def waiting_bytes(self) -> int:
        """About how much memory is taken by what waits."""
        return self._put - self._taken

    def put(self, arrivals: Sequence[Arrival]) -> bool:
        """Take what has come; false if the event loop is over."""
        self._put += sum(map(_size, arrivals))
        self._waiting.extend(arrivals)
        return self._is_called or self._call()

    def _call(self) -> bool:
        self._is_called = True
        return self.hub.run_later(self._work)

    def _work(self) -> None:
        self._is_called = False
        for _ in range(min(BATCH, len(self._waiting))):
            arrival = self._waiting.popleft()
            self._taken += _size(arrival)
            self._hand_over(self.hub, arrival)
        if self._waiting and not self._is_called:
            self._call()


def _size(arrival: Arrival) -> int:
    return OVERHEAD + (len(arrival.body) if isinstance(arrival, Envelope) else 0)
