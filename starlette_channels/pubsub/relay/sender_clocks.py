"""Sender clocks: estimate the time of sending by the receiver's clock, without the delay on the way.

Messages contain the time of sending by the publisher's clock, which need not agree with that of the receiver. The
smallest difference between sending and receipt over a minute or two is that of the quickest message; any more is a
delay. No clock and no I/O: the time is an argument.
"""

from collections import OrderedDict
from math import isnan

from msgspec import Struct

WINDOW_SECONDS = 60.0
"""Window of the smallest difference, in seconds; the window before counts as well. Clocks drift apart by milliseconds
meanwhile.
"""

MOST_HELD_UP = 30.0
"""Maximal estimated delay of a message, in seconds: if it seems longer, a clock has jumped."""

KEEP_SECONDS = 900.0
"""Time after which a silent publisher is forgotten, in seconds."""


class _Difference(Struct):
    """The smallest differences of the former window and of this one, which lasts `until`."""

    former: float
    smallest: float
    until: float


class SenderClocks:
    """The clock differences of all publishers, for one receiver."""

    def __init__(self) -> None:
        self._differences: OrderedDict[bytes, _Difference] = OrderedDict()

    def __len__(self) -> int:
        return len(self._differences)

    def sent_at(self, publisher: bytes, sent: float, now: float) -> float:
        """Convert `sent`, by the publisher's clock, to the receiver's clock; `now` is the time of receipt.

        The result is late by the delay of the quickest message; it may be early by the drift of clocks in two minutes.
        """
        if isnan(sent):
            return now
        difference = now - sent
        known = self._differences.get(publisher)
        if known is None:
            self._differences[publisher] = _Difference(difference, difference, now + WINDOW_SECONDS)
            self._expire(now)
            return now
        if now >= known.until:
            known.former = known.smallest if now < known.until + WINDOW_SECONDS else difference
            known.smallest, known.until = difference, now + WINDOW_SECONDS
            self._differences.move_to_end(publisher)
        elif difference < known.smallest:
            known.smallest = difference
        return min(now, max(sent + min(known.former, known.smallest), now - MOST_HELD_UP))

    def _expire(self, now: float) -> None:
        while self._differences:
            publisher, oldest = next(iter(self._differences.items()))
            if now - oldest.until <= KEEP_SECONDS:
                return
            del self._differences[publisher]
