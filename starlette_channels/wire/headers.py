"""Message headers (refs, topic and event): limits on their size and nesting.

Refs are arbitrary JSON values chosen by the client. They are sent back with every reply and kept for each joined topic,
so they may be neither as large as a payload nor larger in memory than on the wire.
"""

from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Raw

from starlette_channels.exceptions import ProtocolError
from starlette_channels.wire.messages import Frame, Message
from starlette_channels.wire.serializers import Serializer, keeps_refs_raw, take_apart

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DEPTH = 32
"""Nesting depth of refs, topic and event; known clients send strings only."""

MOST_PADDING = 256
"""Bytes of a frame beside header and payload, such as blanks, that may be kept in memory with the payload."""

LONGEST_ESCAPE = 6
"""JSON bytes for one byte of text, at most: a header longer than its limit times this need not be decoded."""

_FLAT = frozenset((str, type(None)))
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def is_plain(message: Message) -> bool:
    """Whether the header consists of strings (or a null `join_ref`), as nearly all do."""
    return type(message.topic) is type(message.event) is type(message.ref) is str and type(message.join_ref) in _FLAT


def read_message(serializer: Serializer, frame: Frame, most: int) -> Message:
    """Decode a message, with a header of at most `most` bytes; a header of many times that is not decoded.

    Raises `ProtocolError` if the message is malformed, or its header too long or nested too deeply.
    """
    parts = take_apart(serializer, frame)
    if parts is None:
        return check_header(serializer.decode(frame), frame, most, raw_refs=keeps_refs_raw(serializer))
    header = (parts.join_ref, parts.ref, parts.topic, parts.event)
    length = sum(len(memoryview(part)) for part in header)
    if length > LONGEST_ESCAPE * most:
        raise _too_long(length, most)
    try:
        join_ref, ref, topic, event = map(_decode, header)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"malformed message header: {error}") from None
    return check_header(Message(join_ref, ref, topic, event, parts.payload), frame, most, raw_refs=True)


def check_header(message: Message, frame: Frame, most: int, *, raw_refs: bool) -> Message:
    """Check the header of a message; return a message that does not keep unused parts of the frame in memory.

    With `raw_refs`, lists and objects in the header are replaced by their JSON: decoded, they take up to twenty times
    the memory. Raises `ProtocolError` if the header has more than `most` bytes or is nested too deeply.
    """
    size, kept = 0, list[Any]()
    for part in (message.join_ref, message.ref, message.topic, message.event):
        encoded = _text_or_json(part)
        size += len(encoded)
        is_nested = isinstance(part, list | dict)
        if is_nested and size <= most and _is_deeper(part, MAX_DEPTH):
            raise ProtocolError("a ref or name is nested too deeply")
        kept.append(Raw(encoded) if raw_refs and is_nested else part)
    if size > most:
        raise _too_long(size, most)
    payload = message.payload
    if type(payload) is Raw and (
        (isinstance(frame, str) and not frame.isascii()) or len(frame) - len(memoryview(payload)) - size > MOST_PADDING
    ):
        payload = payload.copy()  # it would keep the frame alive: further elements, blanks, wide characters
    join_ref, ref, topic, event = kept
    return Message(join_ref, ref, topic, event, payload)


def _text_or_json(part: Any) -> str | bytes:
    """Return a part of a header in the form in which its size counts."""
    try:
        if isinstance(part, str):
            return part if part.isascii() else part.encode("utf-8", "surrogatepass")
        return _encode(part)
    except RecursionError:
        raise ProtocolError("a ref or name is nested too deeply") from None
    except (TypeError, ValueError, OverflowError) as error:  # a custom serializer may decode to anything
        raise ProtocolError(f"a ref or name is not a JSON value: {error}") from None


def _too_long(size: int, most: int) -> ProtocolError:
    return ProtocolError(f"refs, topic and event have {size} bytes together, more than {most}")


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, list | dict):
        return False
    if levels == 0:
        return True
    inside = cast("Iterable[object]", value.values() if isinstance(value, dict) else value)
    return any(_is_deeper(one, levels - 1) for one in inside)
