"""Broadcasts held until the answer to a join: sent after its ok reply, and dropped if it is refused."""

from starlette_channels.wire.messages import Body


class Hold:
    """The size of the held broadcasts."""

    __slots__ = ("_bytes", "is_full")

    def __init__(self) -> None:
        self._bytes = 0
        self.is_full: bool = False
        """Whether the limit was exceeded; then no more broadcasts are held, and the join is to be refused."""

    def add(self, body: Body, most_bytes: int) -> bool:
        """Count a broadcast; return whether it may be held."""
        self._bytes += memoryview(body).nbytes
        self.is_full = self.is_full or self._bytes > most_bytes
        return not self.is_full
