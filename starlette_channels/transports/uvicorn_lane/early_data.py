"""Data that a client sends before its handshake is answered: a little is kept, and a hang-up is noticed."""

import asyncio
import select
from contextlib import suppress

EARLY_BYTES = 8_192
"""Bound of the bytes that are kept of a client until its handshake is answered; meanwhile nothing is read."""


class EarlyBytes:
    """The bytes that a client has sent behind its request."""

    __slots__ = ("_data", "is_too_much")

    def __init__(self) -> None:
        self._data = b""
        self.is_too_much: bool = False

    def add(self, data: bytes) -> None:
        """Add bytes if there is room for all of them; from then on that there is not, nothing is kept."""
        if self.is_too_much or len(self._data) + len(data) > EARLY_BYTES:
            self._data, self.is_too_much = b"", True
        else:
            self._data += data

    def take(self) -> bytes:
        """Remove and return the bytes."""
        data, self._data = self._data, b""
        return data


_HUNG_UP: int = getattr(select, "POLLRDHUP", 0)  # Linux has it


def has_hung_up(transport: asyncio.Transport) -> bool:
    """Return whether the client has closed the connection, although nothing is read; always False without Linux."""
    connection = transport.get_extra_info("socket")
    if not _HUNG_UP or connection is None:
        return False
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(connection.fileno(), _HUNG_UP)
        return bool(poll.poll(0))
    return False
