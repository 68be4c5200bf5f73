"""When something was sent, by the receiver's clock, however long it was on its way. No clock and no I/O here.

Publishers say when they send, by clocks that need not agree with that of the receiver. The smallest difference between
the two, over a minute or two, is that of the quickest message: what takes longer was held up for the rest.
"""

from collections import OrderedDict
from math import isnan

from msgspec import Struct

WINDOW_SECONDS = 60.0
"""For how long the smallest difference is looked for; that of the window before counts as well. Clocks drift apart by
milliseconds meanwhile.
"""

MOST_HELD_UP = 30.0
"""Nothing is believed to have been on its way for longer, in seconds: then a clock has jumped."""

KEEP_SECONDS = 900.0
"""How long a publisher is remembered of which nothing comes."""


class _Difference(Struct):
    """The smallest difference of the window before, and of this one."""

    former: float
    smallest: float
    until: float


class SenderClocks:
    """What one receiver knows of the clocks of publishers."""

    def __init__(self) -> None:
        self._differences: OrderedDict[bytes, _Difference] = OrderedDict()

    def __len__(self) -> int:
        return len(self._differences)

    def sent_at(self, publisher: bytes, sent: float, now: float) -> float:
        """Return when that was, by our own clock, which a publisher sent at `sent` by its own, and which came now.

        It is later by the time of the quickest message on the way; it may be earlier by what clocks drift apart in two
        minutes.
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
