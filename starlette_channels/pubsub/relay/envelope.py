"""Envelope: the format of messages between processes, with publisher, number, encoded payload and checksum."""

from enum import IntEnum
from math import inf, nan
from typing import Annotated, Literal, TypeAlias
from zlib import crc32

import msgspec
from msgspec import Meta, Raw, Struct

from starlette_channels.wire.messages import Body

ID_BYTES = 8
CHECKSUM_BYTES = 4

PublisherId: TypeAlias = Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Positive: TypeAlias = Annotated[int, Meta(ge=1)]


class Kind(IntEnum):
    """Kind of a message. The numbers are part of the format."""

    JSON = 1
    """A broadcast; the body is its payload."""

    BYTES = 2
    """A broadcast of a binary payload."""

    MARK = 3
    """Mark: repeats the number of the last message on the channel."""

    END = 4
    """The last mark of a publisher that has closed."""

    LINE = 5
    """An internal message of the library; see `Exchange`."""

    COMMAND = 6
    """Commands to clients, and acknowledgements of them; see `CommandLog`. They have numbers of their own."""


class Following(Struct, array_like=True, frozen=True, gc=False):
    """A message in the envelope of an earlier one: same publisher, epoch and channel, the next number."""

    kind: Kind
    event: str
    body: bytes


class Envelope(Struct, array_like=True, frozen=True, gc=False):
    """A message, and perhaps those that follow it; later versions of the format may add fields at the end."""

    version: Literal[1]
    kind: Kind
    publisher: PublisherId
    epoch: Positive
    number: Positive
    channel: str
    event: str
    body: bytes

    sent: float = nan
    """Time of sending by the publisher's clock, in seconds of any origin."""

    age: float = inf
    """Seconds between message number 1 of this epoch on the channel and the time of sending."""

    quiet: float = inf
    """The same for the message before this one; for a mark, the message with its number."""

    following: tuple[Following, ...] = ()
    """The messages with the next numbers: a burst on one channel costs one publish, one checksum and one wake-up."""


def payload_kind(body: Body) -> Kind:
    """Return the kind of a broadcast with this payload."""
    return Kind.JSON if isinstance(body, Raw) else Kind.BYTES


def payload_of(message: Envelope | Following) -> Body:
    """Return the payload of a broadcast, undecoded."""
    return Raw(message.body) if message.kind is _JSON else message.body


def seal(
    kind: Kind,
    publisher: bytes,
    epoch: int,
    number: int,
    channel: str,
    event: str = "",
    body: Body = b"",
    sent: float = nan,
    age: float = inf,
    quiet: float = inf,
    following: tuple[Following, ...] = (),
) -> bytes:
    """Encode an envelope. Raises `UnicodeEncodeError` for a channel or an event with lone surrogates."""
    return checked(
        _encode(Envelope(1, kind, publisher, epoch, number, channel, event, bytes(body), sent, age, quiet, following))
    )


def checked(content: bytes) -> bytes:
    """Prepend a checksum, because engines do deliver damaged messages."""
    return crc32(content).to_bytes(CHECKSUM_BYTES) + content


def unseal(data: bytes) -> Envelope:
    """Decode an envelope. Raises `ValueError` if it is damaged, invalid or of an unknown version."""
    content = memoryview(data)[CHECKSUM_BYTES:]
    if crc32(content).to_bytes(CHECKSUM_BYTES) != data[:CHECKSUM_BYTES]:
        raise ValueError("the checksum is wrong")
    try:
        return _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no message of ours: {error}") from None


_JSON = Kind.JSON
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Envelope).decode
