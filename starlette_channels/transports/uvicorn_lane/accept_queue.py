"""Handshakes, one after the other: a crowd that arrives at once does not hold up those who are inside."""

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary


class HandshakeQueue:
    """Lets one client through in each turn of the event loop, in the order in which they came."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()

    def enter(self, go_on: Callable[[], None]) -> None:
        """Call this when it is its turn, in the next turn of the event loop at the earliest."""
        self._waiting.append(go_on)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if len(self._waiting) > 1:
            self._loop.call_soon(self._turn)
        self._waiting.popleft()()


_turnstiles: WeakKeyDictionary[asyncio.AbstractEventLoop, HandshakeQueue] = WeakKeyDictionary()


def turnstile_of(loop: asyncio.AbstractEventLoop) -> HandshakeQueue:
    """Return the event loop's turnstile."""
    turnstile = _turnstiles.get(loop)
    if turnstile is None:
        turnstile = _turnstiles[loop] = HandshakeQueue(loop)
    return turnstile
