"""Data received before the handshake is answered: a bounded part is kept, and a disconnect is detected."""

import asyncio
import select
from contextlib import suppress

EARLY_BYTES = 8_192
"""Maximum bytes kept for a client until its handshake is answered; reading is paused meanwhile."""


class EarlyBytes:
    """The bytes that a client has sent after its upgrade request."""

    __slots__ = ("_data", "is_too_much")

    def __init__(self) -> None:
        self._data = b""
        self.is_too_much: bool = False

    def add(self, data: bytes) -> None:
        """Add bytes if all of them fit; once they do not, all bytes are dropped, and no more are kept."""
        if self.is_too_much or len(self._data) + len(data) > EARLY_BYTES:
            self._data, self.is_too_much = b"", True
        else:
            self._data += data

    def take(self) -> bytes:
        """Remove and return the bytes."""
        data, self._data = self._data, b""
        return data


_HUNG_UP: int = getattr(select, "POLLRDHUP", 0)  # only on Linux


def has_hung_up(transport: asyncio.Transport) -> bool:
    """Return whether the client has disconnected while reading is paused; always False except on Linux."""
    connection = transport.get_extra_info("socket")
    if not _HUNG_UP or connection is None:
        return False
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(connection.fileno(), _HUNG_UP)
        return bool(poll.poll(0))
    return False
