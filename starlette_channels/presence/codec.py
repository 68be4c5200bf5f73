"""How replicas' messages travel: in pieces that every engine takes, and checked when they arrive."""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Literal

import msgspec
from msgspec import Struct

from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Part
from starlette_channels.presence.tracker import Heartbeat, TrackerMessage, Transfer

PIECE_BYTES = 250_000
"""Below what any engine takes at once: NATS takes a megabyte, if its settings are the usual ones."""


class Piece(Struct, array_like=True, frozen=True):
    """A part of a message, or all of it; later versions of the format may add fields at the end."""

    version: Literal[1]
    sender: ReplicaId
    message: int
    index: int
    left: int
    data: bytes


class Named(Struct):
    """What the JSON of a meta must be, at least."""

    phx_ref: str


class Splitter:
    """Makes the pieces of what one replica says."""

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


class Joiner:
    """Puts together what comes on one line. A message of which a piece is lost is lost: replicas ask again."""

    def __init__(self) -> None:
        self._begun: dict[ReplicaId, list[Piece]] = {}

    def take(self, data: bytes) -> TrackerMessage | None:
        """Take a piece; return the message of which it is the last. Raises `ValueError` for junk."""
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
        return _checked(_decode(b"".join(one.data for one in pieces)))

    def forget(self, sender: ReplicaId) -> None:
        """Wait no longer for the rest of what somebody has begun to say."""
        self._begun.pop(sender, None)


def _checked(message: TrackerMessage) -> TrackerMessage:
    """See that every meta can be given to clients as it is; raises what `msgspec` raises."""
    for part in _parts(message):
        for entry in part.entries.values():
            if _decode_meta(entry.meta.json).phx_ref != entry.meta.ref:
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
_decode_meta = msgspec.json.Decoder(Named).decode
