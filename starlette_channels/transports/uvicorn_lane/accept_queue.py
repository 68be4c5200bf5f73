"""The queue of handshakes: one per turn of the event loop, so that many at once do not delay connected clients."""

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary


class HandshakeQueue:
    """Starts one handshake per turn of the event loop, in order of arrival."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()

    def enter(self, start: Callable[[], None]) -> None:
        """Queue a handshake; `start` is called in the next turn of the event loop at the earliest."""
        self._waiting.append(start)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if len(self._waiting) > 1:
            self._loop.call_soon(self._turn)
        self._waiting.popleft()()


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, HandshakeQueue] = WeakKeyDictionary()


def handshake_queue_of(loop: asyncio.AbstractEventLoop) -> HandshakeQueue:
    """Return the handshake queue of an event loop."""
    queue = _queues.get(loop)
    if queue is None:
        queue = _queues[loop] = HandshakeQueue(loop)
    return queue
