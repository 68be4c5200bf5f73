"""Serializers: Phoenix's wire formats version 1 (JSON objects) and version 2 (JSON arrays and binary frames).

Source: Phoenix's `socket/serializers/v1_json_serializer.ex` and `v2_json_serializer.ex`.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct

from starlette_channels.exceptions import ProtocolError, SerializerError
from starlette_channels.wire.encoding import encode_natively, special_classes
from starlette_channels.wire.messages import Body, Frame, Message, OutgoingFrame, Ref

DEFAULT_VERSION = "1.0.0"
_SEMANTIC = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")

_PUSH, _REPLY, _BROADCAST = b"\x00", b"\x01", b"\x02"
_encoder = msgspec.json.Encoder()


def _encode(fields: object) -> str:
    try:
        return _encoder.encode(fields).decode()
    except UnicodeEncodeError as error:
        raise SerializerError(f"text with lone surrogates: {error}") from None


class Serializer(Protocol):
    """A wire format: decodes the frames of clients and encodes those of the server.

    Implement it for a format of your own, and pass an instance to `Channels(serializers=...)`. One instance serves all
    connections of its version, so it must not keep state. Raise `SerializerError` for a message that the format cannot
    express, and `ProtocolError` for a frame that cannot be decoded.
    """

    @property
    def version(self) -> str:
        """The `major.minor` of the connection parameter `vsn` that selects this serializer, as in "2.0"."""
        ...

    def decode(self, frame: Frame) -> Message:
        """Decode a client's frame, except its payload."""
        ...

    def push(self, join_ref: Ref, ref: Ref, topic: str, event: str, body: Body) -> Frame:
        """Encode a message to one client. `ref` is null except in `phx_close` and `phx_error`."""
        ...

    def reply(self, join_ref: Ref, ref: Ref, topic: Any, status: str, body: Body) -> Frame:
        """Encode a reply. `join_ref`, `ref` and `topic` are those of the client's message, of any JSON type."""
        ...

    def broadcast(self, topic: str, event: str, body: Body) -> Frame:
        """Encode a message to all subscribers of a topic. Called once per broadcast and serializer."""
        ...


def negotiate(vsn: object, serializers: Iterable[Serializer]) -> Serializer | None:
    """Return the first serializer for a `vsn` parameter; `None` if there is none or `vsn` is malformed.

    As Elixir's `~> 2.0.0`: any patch level of the same minor version, but no pre-release of level 0.
    """
    parts = _SEMANTIC.fullmatch(vsn) if isinstance(vsn, str) else None
    if parts is None or (parts[3] == "0" and parts[4]):
        return None
    return next((one for one in serializers if one.version == f"{parts[1]}.{parts[2]}"), None)


class FrameParts(Struct, array_like=True, frozen=True, gc=False):
    """The undecoded parts of a JSON message."""

    join_ref: Raw
    ref: Raw
    topic: Raw
    event: Raw
    payload: Raw


class _ObjectParts(Struct, gc=False):
    topic: Raw
    event: Raw
    payload: Raw
    ref: Raw
    join_ref: Raw = Raw(b"null")


def take_apart(serializer: Serializer, frame: Frame) -> FrameParts | None:
    """Split a JSON message of version 1 or 2 into undecoded parts, whose size can be checked before decoding.

    Returns `None` for another serializer and for a binary frame. Raises `ProtocolError` as `decode` does.
    """
    wrapped = serializer.wrapped if isinstance(serializer, TextOnly) else serializer
    if type(wrapped) is V1:
        return wrapped.take_apart(frame)
    return wrapped.take_apart(frame) if type(wrapped) is V2 and isinstance(frame, str) else None


def keeps_refs_raw(serializer: Serializer) -> bool:
    """Whether a serializer accepts `Raw` in refs, as those of this module do."""
    return isinstance(serializer.wrapped if isinstance(serializer, TextOnly) else serializer, V1 | V2)


class _Object(Struct, gc=False):
    topic: Any
    event: Any
    payload: Raw
    ref: Ref
    join_ref: Ref = None


class V1:
    """Wire format version 1.0: JSON objects, payloads of any JSON type, no binary payloads."""

    version: str = "1.0"
    _decode = msgspec.json.Decoder(_Object).decode
    _take_apart = msgspec.json.Decoder(_ObjectParts).decode

    def decode(self, frame: Frame) -> Message:
        """Decode an object with `topic`, `event`, `payload` and `ref`, from a text or binary frame."""
        try:
            one = self._decode(frame if isinstance(frame, str) else frame.decode())
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ProtocolError(f"no version 1 message: {error}") from None
        return Message(one.join_ref, one.ref, one.topic, one.event, one.payload)

    def take_apart(self, frame: Frame) -> FrameParts:
        """Split an object into undecoded parts."""
        try:
            one = self._take_apart(frame if isinstance(frame, str) else frame.decode())
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ProtocolError(f"no version 1 message: {error}") from None
        return FrameParts(one.join_ref, one.ref, one.topic, one.event, one.payload)

    def push(self, join_ref: Ref, ref: Ref, topic: str, event: str, body: Body) -> str:
        """Encode a push; version 1 does not transmit the `join_ref`."""
        return self._object(topic, event, ref, self._json(body))

    def reply(self, join_ref: Ref, ref: Ref, topic: Any, status: str, body: Body) -> str:
        """Encode a reply; version 1 does not transmit the `join_ref`."""
        return self._object(topic, "phx_reply", ref, {"status": status, "response": self._json(body)})

    def broadcast(self, topic: str, event: str, body: Body) -> str:
        """Encode a broadcast."""
        return self._object(topic, event, None, self._json(body))

    def _json(self, body: Body) -> Raw:
        if not isinstance(body, Raw):
            raise SerializerError("version 1 of the protocol has no binary payloads")
        return body

    def _object(self, topic: Any, event: str, ref: Ref, payload: object) -> str:
        return _encode({"topic": topic, "event": event, "payload": payload, "ref": ref})


class V2:
    """Wire format version 2.0: JSON arrays, and binary frames for payloads of bytes."""

    version: str = "2.0"
    decode_text: Callable[[str], Message] = msgspec.json.Decoder(Message).decode
    """Decode a text frame; raises what msgspec raises, where `decode` raises `ProtocolError`."""
    _take_apart = msgspec.json.Decoder(FrameParts).decode

    def decode(self, frame: Frame) -> Message:
        """Decode an array of at least five elements, or a binary frame."""
        if isinstance(frame, bytes):
            return self._decode_binary(frame)
        try:
            return self.decode_text(frame)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ProtocolError(f"no version 2 message: {error}") from None

    def take_apart(self, frame: str) -> FrameParts:
        """Split an array into undecoded parts."""
        try:
            return self._take_apart(frame)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ProtocolError(f"no version 2 message: {error}") from None

    def push(self, join_ref: Ref, ref: Ref, topic: str, event: str, body: Body) -> Frame:
        """Encode a push; JSON payloads must be objects."""
        if not isinstance(body, Raw):
            return binary_frame(_PUSH, (_text(join_ref), topic, event), body)
        return _encode((join_ref, ref, topic, event, _object(body)))

    def reply(self, join_ref: Ref, ref: Ref, topic: Any, status: str, body: Body) -> Frame:
        """Encode a reply; its payload may be any JSON value."""
        if type(body) is not Raw:
            return binary_frame(_REPLY, (_text(join_ref), _text(ref), _text(topic), status), body)
        return _encode((join_ref, ref, topic, "phx_reply", {"status": status, "response": body}))

    def broadcast(self, topic: str, event: str, body: Body) -> Frame:
        """Encode a broadcast; JSON payloads must be objects."""
        if not isinstance(body, Raw):
            return binary_frame(_BROADCAST, (topic, event), body)
        return _encode((None, None, topic, event, _object(body)))

    def _decode_binary(self, frame: bytes) -> Message:
        if len(frame) < 5 or frame[0] != 0:
            raise ProtocolError("malformed binary push: its kind is not 0, or it is shorter than its header")
        fields: list[str] = []
        start = 5
        for size in frame[1:5]:
            field = frame[start : start + size]
            start += size
            try:
                fields.append(field.decode())
            except UnicodeDecodeError:
                raise ProtocolError("a name in a binary push is not UTF-8") from None
        if start > len(frame):
            raise ProtocolError("a binary push is shorter than its header says")
        join_ref, ref, topic, event = fields
        return Message(join_ref, ref, topic, event, frame[start:])


def ok_reply(
    serializer: Serializer,
    join_ref: Ref,
    ref: Ref,
    topic: str,
    answer: object,
    _modules: Mapping[str, Any] = sys.modules,
) -> Raw | None:
    """Encode the "ok" reply of a dict in one step, as `V2.reply` does in three; `None` for any other answer or wire.

    It is the hot path of every reply. Raises `TypeError` for an answer that cannot be encoded.
    """
    if type(serializer) is not V2 or type(answer) is not dict or special_classes or "pydantic.dataclasses" in _modules:
        return None
    try:
        return Raw(encode_natively((join_ref, ref, topic, "phx_reply", {"status": "ok", "response": answer})))
    except (UnicodeEncodeError, RecursionError):
        return None  # `encode_answer` says which it is


def shared_frame(serializer: Serializer, topic: str, event: str, body: Body) -> OutgoingFrame:
    """Encode a broadcast, once for all subscribers of a serializer; with `V2` it stays UTF-8."""
    if type(serializer) is V2 and type(body) is Raw:
        try:
            return Raw(_encoder.encode((None, None, topic, event, _object(body))))
        except UnicodeEncodeError as error:
            raise SerializerError(f"text that is no Unicode: {error}") from None
    return serializer.broadcast(topic, event, body)


def binary_frame(kind: bytes, fields: tuple[str, ...], data: bytes) -> bytes:
    """Encode a binary frame: the kind, a byte of length for each name, the names, and the data."""
    try:
        names = [field.encode() for field in fields]
    except UnicodeEncodeError as error:
        raise SerializerError(f"a name with lone surrogates: {error}") from None
    if any(len(name) > 255 for name in names):
        raise SerializerError("a name of more than 255 bytes does not fit a binary frame")
    return b"".join((kind, bytes(map(len, names)), *names, data))


def _object(body: Raw) -> Raw:
    start = bytes(memoryview(body)[:64])
    if not start.startswith(b"{") and not start.lstrip().startswith(b"{"):
        raise SerializerError("the payload of a push or broadcast must be an object (or bytes)")
    return body


def refuse_inexpressible(topic: str, event: str, body: Body, *, heard: bool = False) -> None:
    """Raise `SerializerError` for a broadcast that version 2 of the protocol cannot express.

    That is a JSON payload other than an object, a name of more than 255 bytes beside bytes, and a name with lone
    surrogates. If there are subscribers (`heard`), only the last raises: their serializers may express more.
    """
    _encode((topic, event))
    if isinstance(body, Raw):
        if not heard:
            _object(body)
    elif not heard:
        binary_frame(_BROADCAST, (topic, event), b"")


def _text(ref: Ref) -> str:
    """Return a ref or topic as the text of a binary header: null is empty, numbers are JSON."""
    if isinstance(ref, str):
        return ref
    if ref is None:
        return ""
    if isinstance(ref, int | float):
        return json.dumps(ref)
    raise SerializerError("a list or an object as a ref does not fit a binary frame")


class TextOnly:
    """Wraps a serializer for a transport that cannot send binary frames, such as long-polling."""

    def __init__(self, serializer: Serializer) -> None:
        self.wrapped: Serializer = serializer
        self.version: str = serializer.version

    def decode(self, frame: Frame) -> Message:
        """Decode a client's frame, text or binary."""
        return self.wrapped.decode(frame)

    def push(self, join_ref: Ref, ref: Ref, topic: str, event: str, body: Body) -> str:
        """Encode a push."""
        return _as_text(self.wrapped.push(join_ref, ref, topic, event, body))

    def reply(self, join_ref: Ref, ref: Ref, topic: Any, status: str, body: Body) -> str:
        """Encode a reply."""
        return _as_text(self.wrapped.reply(join_ref, ref, topic, status, body))

    def broadcast(self, topic: str, event: str, body: Body) -> str:
        """Encode a broadcast."""
        return _as_text(self.wrapped.broadcast(topic, event, body))


def _as_text(frame: Frame) -> str:
    if isinstance(frame, str):
        return frame
    raise SerializerError("this transport cannot send binary payloads to the client")
