"""Several workers without a broker are refused: they would not share topics, clients or commands."""

import inspect
import logging
from typing import Any

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

BOOT_FAILED = 3
"""The exit code that makes uvicorn and gunicorn stop, instead of starting a new worker that would fail as well."""


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
    """Return the number of workers of the server that is loading this code; 1 if there is no server, or it is unknown.

    It is read from the frames of the server. The environment and the command line are not reliable: other processes
    inherit them, and workers can be configured elsewhere.
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
    """Read the settings of uvicorn's worker; with `--reload` there is one worker, whatever they say."""
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
