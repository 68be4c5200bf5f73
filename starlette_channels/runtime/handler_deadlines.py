"""Time limits of handlers, checked periodically, so that no handler needs a timer of its own."""

from typing import Protocol

from starlette_channels.runtime.timers import waker_of_this_loop

LOOKS = 16
"""Checks within the time limit of a handler."""


class WatchedWorker(Protocol):
    """A worker that handles one message after the other."""

    @property
    def is_working(self) -> bool:
        """Whether it is handling a message."""
        ...

    def overrun(self, seconds: float) -> None:
        """Cancel the handling of the current message, which took longer than `seconds`."""
        ...


class Watch:
    """Watches workers with a time limit in seconds for each message."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[WatchedWorker, float | None] = {}

    def begin(self, worker: WatchedWorker) -> None:
        """Watch a worker that starts with a new message."""
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
    """Return the running event loop's watch for a time limit; may be called from plain callbacks."""
    kept = waker_of_this_loop().kept
    watch: Watch = kept.get(seconds) or kept.setdefault(seconds, Watch(seconds))
    return watch
