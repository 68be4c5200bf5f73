"""A clock for what happens between processes, and for who was there first."""

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def uptime() -> float:
        """Return seconds of any origin. They go on while the machine sleeps, where the system has such a clock (Linux).

        `time.monotonic` stands still then: a command that was said meanwhile would seem older than a connection that
        was there before.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    uptime = time.monotonic
