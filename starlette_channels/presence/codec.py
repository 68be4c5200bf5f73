"""The encoding of messages between replicas: in pieces that every engine takes, and checked on arrival."""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Literal

import msgspec
from msgspec import Struct

from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Part
from starlette_channels.presence.tracker import Heartbeat, TrackerMessage, Transfer

PIECE_BYTES = 250_000
"""The size of a piece. Engines take more: NATS takes a megabyte with its usual settings."""


class Piece(Struct, array_like=True, frozen=True):
    """A piece of a message, perhaps the only one. Later versions of the format may add fields at the end."""

    version: Literal[1]
    sender: ReplicaId
    message: int
    index: int
    left: int
    data: bytes


class MetaRef(Struct):
    """The one field that the JSON of every meta has."""

    phx_ref: str


class Splitter:
    """Splits the messages of one replica into pieces."""

    def __init__(self, sender: ReplicaId, piece_bytes: int = PIECE_BYTES) -> None:
        self._sender = sender
        self._piece_bytes = piece_bytes
        self._numbers = count(1)

    def split(self, message: TrackerMessage) -> Iterator[bytes]:
        """Return the pieces of a message, in order."""
        data = _encode(message)
        number = next(self._numbers)
        size = self._piece_bytes
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        for index, part in enumerate(parts):
            yield _encode(Piece(1, self._sender, number, index, len(parts) - index - 1, part))


class Assembler:
    """Assembles the pieces that arrive on one line. A message with a lost piece is lost: replicas ask again."""

    def __init__(self) -> None:
        self._begun: dict[ReplicaId, list[Piece]] = {}

    def take(self, data: bytes) -> TrackerMessage | None:
        """Take a piece, and return the message if it was the last one. Raises `ValueError` for invalid bytes."""
        try:
            return self._take(_decode_piece(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"no message between presences: {error}") from None

    def _take(self, piece: Piece) -> TrackerMessage | None:
        pieces = self._begun.pop(piece.sender, [])
        if piece.index == 0:
            pieces = []
        elif piece.index != len(pieces) or piece.message != pieces[0].message:
            return None
        pieces.append(piece)
        if piece.left:
            self._begun[piece.sender] = pieces
            return None
        return _checked(_decode(b"".join([one.data for one in pieces])))

    def forget(self, sender: ReplicaId) -> None:
        """Drop the pieces of a message whose rest has not come."""
        self._begun.pop(sender, None)


def _checked(message: TrackerMessage) -> TrackerMessage:
    """Check that every meta can go to clients as it is; raises what `msgspec` raises."""
    for part in _parts(message):
        for entry in part.entries.values():
            if _decode_ref(entry.meta.json).phx_ref != entry.meta.ref:
                raise msgspec.ValidationError("a phx_ref is not that of its meta")
    return message


def _parts(message: TrackerMessage) -> Iterable[Part]:
    match message:
        case Heartbeat(news=Part() as news):
            return [news]
        case Transfer(delta=delta):
            return delta.values()
        case _:
            return ()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(TrackerMessage).decode
_decode_piece = msgspec.msgpack.Decoder(Piece).decode
_decode_ref = msgspec.json.Decoder(MetaRef).decode
