"""What clients send before their handshake is answered: a little is kept, and who has gone meanwhile is noticed."""

import asyncio
import select
from contextlib import suppress

EARLY_BYTES = 8_192
"""So many bytes of a client are kept until its handshake is answered; nothing more is read meanwhile."""


class EarlyBytes:
    """The first of what a client has sent behind its request, and whether there was more."""

    __slots__ = ("_data", "is_too_much")

    def __init__(self) -> None:
        self._data = b""
        self.is_too_much: bool = False

    def add(self, data: bytes) -> None:
        """Keep some more, if there is room for all of it; once there was not, nothing is kept."""
        if self.is_too_much or len(self._data) + len(data) > EARLY_BYTES:
            self._data, self.is_too_much = b"", True
        else:
            self._data += data

    def take(self) -> bytes:
        """Return what has been kept, and keep it no longer."""
        data, self._data = self._data, b""
        return data


_HUNG_UP: int = getattr(select, "POLLRDHUP", 0)  # Linux has it


def has_hung_up(transport: asyncio.Transport) -> bool:
    """Whether the client of a connection that is not read from has closed it, as far as the system can tell."""
    connection = transport.get_extra_info("socket")
    if not _HUNG_UP or connection is None:
        return False
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(connection.fileno(), _HUNG_UP)
        return bool(poll.poll(0))
    return False
