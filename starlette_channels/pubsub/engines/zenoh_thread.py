"""Zenoh thread: runs the blocking functions of the library."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class ZenohThread:
    """Runs functions in order in a thread of its own; unlike `asyncio.to_thread`, also while the interpreter exits."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="starlette-channels-engine", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        _at_work.add(self._thread)
        try:
            for job in iter(self._jobs.get, None):
                job()
        finally:
            _at_work.discard(self._thread)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function; its result is returned, its exception raised. If cancelled, it runs on, and is ignored."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(settler: Callable[[Any], None], outcome: object) -> None:
            if not future.done():
                settler(outcome)

        def job() -> None:
            try:
                result = function(*args)
            except Exception as error:  # noqa: BLE001 - raised in the waiting coroutine
                self._tell(loop, settle, future.set_exception, error)
            else:
                self._tell(loop, settle, future.set_result, result)

        self._jobs.put(job)
        return await future

    def _tell(self, loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
        try:
            loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the event loop is closed
            return

    def close(self) -> None:
        """Close the thread after the functions before."""
        self._jobs.put(None)


_at_work: set[threading.Thread] = set()


def wait_for_workers(seconds: float) -> None:
    """Wait until all closed threads have ended, `seconds` at most.

    At the exit of the interpreter, a thread that returns from Rust or C++ code is killed, and aborts the process.
    """
    deadline = time.monotonic() + seconds
    for thread in tuple(_at_work):
        thread.join(max(0.0, deadline - time.monotonic()))


def start_anew() -> None:
    """Forget the threads of the parent, after a fork."""
    _at_work.clear()
