"""How many processes serve the application: what one of them holds in memory, the others do not have."""

import functools
import logging
import multiprocessing
import os

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

WORKERS = "WEB_CONCURRENCY"
"""The environment variable in which uvicorn looks for the number of workers; `run` puts it there for them to see."""


@functools.cache  # once, however many `Channels` there are
def warn_about_workers() -> None:
    """Warn that clients of different workers do not hear each other, in the first worker only."""
    count = os.environ.get(WORKERS, "")
    if count.isdecimal() and int(count) > 1 and multiprocessing.current_process().name == "SpawnProcess-1":
        logger.warning(
            "%s workers share no broker: with memory://, a broadcast or a disconnect reaches only the clients of the "
            "worker that it happens in, and all others miss it. Run one worker",
            count,
        )
