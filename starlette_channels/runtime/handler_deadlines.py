"""Deadlines of handlers: all that run are checked now and then, so no handler has a timer of its own."""

from typing import Protocol

from starlette_channels.runtime.timers import waker_of_this_loop

LOOKS = 16
"""Number of checks in the time that a handler may take."""


class WatchedWorker(Protocol):
    """A worker that handles one letter after the other."""

    @property
    def is_working(self) -> bool:
        """Whether it is handling a letter."""
        ...

    def overrun(self, seconds: float) -> None:
        """Cancel the handler of the current letter: it has taken `seconds`."""
        ...


class Watch:
    """Checks workers that may take `seconds` for each letter."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[WatchedWorker, float | None] = {}

    def begin(self, worker: WatchedWorker) -> None:
        """Start the time of a worker, which has a new letter from now on."""
        if not self._since:
            waker_of_this_loop().wake(self._seconds / LOOKS, self._look)
        self._since[worker] = None

    def _look(self, now: float) -> float | None:
        for worker, since in tuple(self._since.items()):
            if not worker.is_working:
                del self._since[worker]
            elif since is None:
                self._since[worker] = now
            elif now - since >= self._seconds:
                del self._since[worker]
                worker.overrun(self._seconds)
        return now + self._seconds / LOOKS if self._since else None


def watch_of_this_loop(seconds: float) -> Watch:
    """Return the event loop's watch for handlers that may take `seconds`; it may be called from plain callbacks."""
    kept = waker_of_this_loop().kept
    watch: Watch = kept.get(seconds) or kept.setdefault(seconds, Watch(seconds))
    return watch
