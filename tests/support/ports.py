"""Ports that no other test process takes, not even in the moment when a server is stopped and started again."""

import fcntl
import itertools
import os
import random
import socket
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

HOST = "127.0.0.1"

# Below the range from which Linux takes the ports of outgoing connections: a port that we let go of for a moment, to
# start the server anew, is not given to some client meanwhile.
_FIRST, _BLOCK, _BLOCKS = 20_000, 200, 60


def free_port() -> int:
    """A port that nobody listens on, and that this process does not return again before it has returned 200 others."""
    return next(port for port in _ports() if _is_free(port))


@cache
def _ports() -> "itertools.cycle[int]":
    first = _FIRST + _BLOCK * _claimed_block()
    return itertools.cycle(range(first, first + _BLOCK))


def _claimed_block() -> int:
    """Lock one of the files that stand for the blocks; the file stays open, and locked, until this process ends."""
    folder = Path(tempfile.gettempdir(), "starlette_channels-ports")
    folder.mkdir(exist_ok=True)
    for block in random.sample(range(_BLOCKS), _BLOCKS):
        file = os.open(Path(folder, str(block)), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return block
        except BlockingIOError:
            os.close(file)
    raise RuntimeError(f"{_BLOCKS} test processes run already")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return True
    return False
