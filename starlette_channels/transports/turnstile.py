"""Handshakes, one after the other: a crowd that arrives at once does not hold up those who are inside."""

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary


class Turnstile:
    """Lets one handshake through in each turn of the event loop; the others wait, in the order in which they came."""

    __slots__ = ("_is_turning", "_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_turning = False

    def enter(self, shake_hands: Callable[[], None]) -> None:
        """Call this at once, if it is the first one in this turn of the event loop, or later."""
        if self._is_turning:
            self._waiting.append(shake_hands)
        else:
            self._let_in(shake_hands)

    def _let_in(self, shake_hands: Callable[[], None]) -> None:
        self._is_turning = True
        self._loop.call_soon(self._turn)
        shake_hands()

    def _turn(self) -> None:
        if self._waiting:
            self._let_in(self._waiting.popleft())
        else:
            self._is_turning = False


_turnstiles: WeakKeyDictionary[asyncio.AbstractEventLoop, Turnstile] = WeakKeyDictionary()


def turnstile_of(loop: asyncio.AbstractEventLoop) -> Turnstile:
    """Return the event loop's turnstile."""
    turnstile = _turnstiles.get(loop)
    if turnstile is None:
        turnstile = _turnstiles[loop] = Turnstile(loop)
    return turnstile
