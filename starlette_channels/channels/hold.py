"""The broadcasts that wait for the answer to a join: they follow its ok reply, and are dropped if it is refused."""

from starlette_channels.wire.messages import Body


class Hold:
    """The size of the broadcasts that are held."""

    __slots__ = ("_bytes", "is_full")

    def __init__(self) -> None:
        self._bytes = 0
        self.is_full: bool = False
        """Whether there was one too many; then none is held any more, and the join is to be refused."""

    def add(self, body: Body, most_bytes: int) -> bool:
        """Count a broadcast; return whether it may be held."""
        self._bytes += memoryview(body).nbytes
        self.is_full = self.is_full or self._bytes > most_bytes
        return not self.is_full
