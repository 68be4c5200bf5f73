"""Codec of the messages between replicas: split into pieces that every engine accepts; validated on arrival."""

from collections.abc import Generator, Iterator
from itertools import count
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from starlette_channels.presence.crdt.clock import Clock, ReplicaId
from starlette_channels.presence.crdt.delta import Entry, Part
from starlette_channels.presence.tracker import Goodbye, Heartbeat, Request, TrackerMessage, Transfer

PIECE_BYTES = 250_000
"""The size of a piece. All engines accept more: NATS accepts 1 MB by default."""


STEP_ENTRIES = 500
"""The number of entries decoded in one step: about 1 millisecond."""


class Piece(Struct, array_like=True, frozen=True):
    """A piece of a message, perhaps the only one. Later versions of the format may add fields at the end."""

    version: Literal[1]
    sender: ReplicaId
    message: int
    index: int
    left: int
    data: bytes


class MetaRef(Struct):
    """The only field common to the JSON of all metas."""

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
    """Assembles the pieces that arrive on one line. If a piece is lost, so is its message: replicas ask again."""

    def __init__(self) -> None:
        self._begun: dict[ReplicaId, list[Piece]] = {}

    def take(self, data: bytes) -> Iterator[TrackerMessage | None]:
        """Take a piece. If it is the last one, decode the message in steps: yield `None` after each, then the message.

        Raises `ValueError` for invalid bytes.
        """
        try:
            encoded = self._assemble(_decode_piece(data))
            if encoded is not None:
                yield from _decode_in_steps(encoded)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"no message between presences: {error}") from None

    def _assemble(self, piece: Piece) -> bytes | None:
        pieces = self._begun.pop(piece.sender, [])
        if piece.index == 0:
            pieces = []
        elif piece.index != len(pieces) or piece.message != pieces[0].message:
            return None
        pieces.append(piece)
        if piece.left:
            self._begun[piece.sender] = pieces
            return None
        return b"".join([one.data for one in pieces])

    def forget(self, sender: ReplicaId) -> None:
        """Drop the pieces of an incomplete message."""
        self._begun.pop(sender, None)


class EncodedPart(Struct, array_like=True):
    """A `Part` with its entries still encoded."""

    clock: int
    cloud: set[int]
    entries: dict[int, Raw]


class EncodedHeartbeat(Struct, tag="Heartbeat"):
    """A `Heartbeat` with its entries still encoded."""

    sender: ReplicaId
    clock: Clock
    news: EncodedPart | None


class EncodedTransfer(Struct, tag="Transfer"):
    """A `Transfer` with its entries still encoded."""

    sender: ReplicaId
    delta: dict[ReplicaId, EncodedPart]


def _decode_in_steps(data: bytes) -> Iterator[TrackerMessage | None]:
    encoded = _decode(data)
    if isinstance(encoded, EncodedHeartbeat):
        news = None if encoded.news is None else (yield from _decode_part(encoded.news))
        yield Heartbeat(encoded.sender, encoded.clock, news)
    elif isinstance(encoded, EncodedTransfer):
        delta: dict[ReplicaId, Part] = {}
        for replica, part in encoded.delta.items():
            delta[replica] = yield from _decode_part(part)
        yield Transfer(encoded.sender, delta)
    else:
        yield encoded


def _decode_part(part: EncodedPart) -> Generator[None, None, Part]:
    """Decode the entries, and check that every meta can go to clients as it is."""
    entries: dict[int, Entry] = {}
    for dot, encoded in part.entries.items():
        entries[dot] = entry = _decode_entry(encoded)
        if _decode_ref(entry.meta.json).phx_ref != entry.meta.ref:
            raise msgspec.ValidationError("a phx_ref is not that of its meta")
        if len(entries) % STEP_ENTRIES == 0:
            yield None
    return Part(part.clock, part.cloud, entries)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(EncodedHeartbeat | EncodedTransfer | Request | Goodbye).decode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode
_decode_piece = msgspec.msgpack.Decoder(Piece).decode
_decode_ref = msgspec.json.Decoder(MetaRef).decode
