"""Bodies of long-poll requests in memory: their sizes, and a limit for all of them together."""

import threading
from collections.abc import Callable, Iterator

from starlette_channels.exceptions import ProtocolError
from starlette_channels.transports.longpoll.batches import read_lines, read_text, split
from starlette_channels.wire.messages import Frame

SMALL_BYTES = 16_384
"""Bytes of each body that are not counted: servers buffer as much of every request anyway."""


class BodyRefused(Exception):
    """The body of a request is refused, with an HTTP status and a code for the counters."""

    def __init__(self, status: int, code: str, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.status: int = status
        self.code: str = code
        self.seconds: float | None = seconds


class RequestBody:
    """The body of one request. `cancel` ends its handling if it is evicted."""

    __slots__ = ("_bodies", "_data", "_line_ends", "_most_lines", "cancel", "held", "is_evicted", "size", "thread")

    def __init__(self, bodies: "Bodies", most_lines: int | None) -> None:
        self.cancel: Callable[[], object] = _nothing
        self.size: int = 0
        """Bytes received."""
        self.held: int = 0
        """Bytes counted."""
        self.is_evicted: bool = False
        self.thread: int = threading.get_ident()
        self._bodies = bodies
        self._data = bytearray()
        self._most_lines = most_lines
        self._line_ends = 0

    @property
    def is_batch(self) -> bool:
        """Whether it is a batch: lines, of which only the first are decoded."""
        return self._most_lines is not None

    def feed(self, chunk: bytes) -> None:
        """Append bytes. Lines beyond the limit of a batch are counted and not kept.

        Raises `BodyRefused` if there is no memory left for it.
        """
        self.size += len(chunk)
        if self._most_lines is not None and self._line_ends > self._most_lines:
            self._line_ends += chunk.count(b"\n")
            return
        self._data += chunk
        if self._most_lines is not None:
            self._line_ends += chunk.count(b"\n")
        self._bodies.grow(self, max(0, len(self._data) - SMALL_BYTES))

    def frames(self, most_bytes: int) -> Iterator[Frame]:
        """Return the messages one by one, and drop the bytes.

        Raises `ProtocolError` at one that is malformed, or has over `most_bytes`.
        """
        data, self._data = self._data, bytearray()
        if self._most_lines is not None:
            lines, _ = split(data, self._most_lines)
            return read_lines(lines, most_bytes)
        if len(data) > most_bytes:
            raise ProtocolError(f"a message of over {most_bytes} bytes")
        return iter((read_text(data),))

    @property
    def lines_beyond(self) -> int:
        """The number of lines beyond the limit of a batch; to be read before `frames` is called."""
        if self._most_lines is None or self._line_ends < self._most_lines:
            return 0
        if self._line_ends > self._most_lines:
            return self._line_ends - self._most_lines + 1
        return split(self._data, self._most_lines)[1]

    def evict(self) -> None:
        """Drop the bytes, and cancel the handling: there is no memory left."""
        self.is_evicted = True
        self._data = bytearray()
        self.cancel()


class Bodies:
    """All bodies that are being read or handled. If they have too many bytes together, the largest one is evicted.

    So a client with large unfinished bodies in many sessions does not affect clients with small ones.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._held: set[RequestBody] = set()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes counted of all bodies."""
        return self._bytes

    def grow(self, body: RequestBody, held: int) -> None:
        """Set the counted bytes of a body. Raises `BodyRefused` if this body is evicted."""
        with self._lock:
            self._held.add(body)
            self._bytes += held - body.held
            body.held = held
            while self._bytes > self._most:
                here = [one for one in self._held if one.thread == body.thread]  # others are cancelled by their threads
                largest = max(here, key=_size)
                self._forget(largest)
                largest.evict()
        if body.is_evicted:
            raise no_room()

    def release(self, body: RequestBody) -> None:
        """Stop counting a body."""
        with self._lock:
            self._forget(body)

    def _forget(self, body: RequestBody) -> None:
        self._held.discard(body)
        self._bytes -= body.held
        body.held = 0


def no_room() -> BodyRefused:
    """Return the error for a body that is evicted."""
    return BodyRefused(503, "bodies_too_big", "too many bytes of bodies are held, and this one was the largest")


def _nothing() -> None:
    """Do nothing: the default of `RequestBody.cancel`."""


def _size(body: RequestBody) -> int:
    return body.held
