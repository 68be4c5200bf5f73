"""Uptime: a clock that does not stop while the machine sleeps, for times that processes compare."""

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def uptime() -> float:
        """Return seconds since some origin; on Linux they go on while the machine sleeps.

        `time.monotonic` stops then: a command of that time would seem older than a connection that was there before.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    uptime = time.monotonic
