"""How many processes serve the application: what one of them holds in memory, the others do not have."""

import inspect
import logging
from typing import Any

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

BOOT_FAILED = 3
"""The exit code by which uvicorn and gunicorn know that a new worker would fail as well: they stop then."""


def refuse_several_workers() -> None:
    """End this process if it is one of several workers of uvicorn, gunicorn or hypercorn; the log has the fix."""
    count = count_workers()
    if count > 1:
        logger.critical(
            "%s workers would share no broker: with memory://, a broadcast or a disconnect reaches only the clients of "
            'the worker that it happens in. Give them one, such as Channels(..., broker="zenoh://"), which needs no '
            "server (pip install 'starlette-channels[zenoh]'), or run one worker. If the workers need not hear each "
            "other, say so: Channels(..., broker=Broker())",
            count,
        )
        raise SystemExit(BOOT_FAILED)


def count_workers() -> int:
    """Return how many workers the server runs that is loading this code; 1 if none does, or it cannot be seen.

    Environment and command line say less: they are inherited by what is no worker, and not the only way to ask for
    workers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module in _COUNTS:
            count = _COUNTS[module](frame.f_locals)
            if count is not None:
                return count
        frame = frame.f_back
    return 1


def _in_uvicorn(names: dict[str, Any]) -> int | None:
    """Read the settings that uvicorn has handed to its worker; with `--reload` there is one, whatever they say."""
    config = names.get("config")
    if config is None:
        return None
    return 1 if config.should_reload else config.workers


def _in_gunicorn(names: dict[str, Any]) -> int | None:
    return getattr(getattr(names.get("self"), "cfg", None), "workers", None)


def _in_hypercorn(names: dict[str, Any]) -> int | None:
    return getattr(names.get("config"), "workers", None)


_COUNTS = {
    "uvicorn._subprocess": _in_uvicorn,
    "gunicorn.arbiter": _in_gunicorn,
    "hypercorn.asyncio.run": _in_hypercorn,
    "hypercorn.trio.run": _in_hypercorn,
}
