"""Monotonic clock that includes the time in which the machine sleeps, for the order of commands and connections."""

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def uptime() -> float:
        """Return seconds from an arbitrary origin. On Linux, they include the time in which the machine sleeps.

        `time.monotonic` stops meanwhile: a command sent by another process in that time would seem older than a
        connection that existed before.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    uptime = time.monotonic
