"""Messages, replies, broadcasts and payloads: the types that all layers share."""

import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, cast

import msgspec
from msgspec import Raw, Struct

from starlette_channels.wire.encoding import encode_natively, encoders, json_encoder, refusal, special_classes

Frame: TypeAlias = str | bytes
"""A WebSocket message: `str` for a text frame, `bytes` for a binary frame."""

OutgoingFrame: TypeAlias = str | bytes | Raw
"""A frame to a client: a `Frame`, or a text frame that is encoded as UTF-8 already (`Raw`), so that it stays bytes."""

Ref: TypeAlias = Any
"""A message reference: any JSON value, chosen by the client; lists and objects are `Raw`. Only compared and echoed."""

Body: TypeAlias = Raw | bytes
"""An encoded payload: undecoded JSON (`Raw`), or the bytes of a binary frame."""


class DataclassInstance(Protocol):
    """An instance of any dataclass, encoded as a JSON object."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class AttrsInstance(Protocol):
    """An instance of any attrs class, encoded as a JSON object."""

    __attrs_attrs__: ClassVar[Any]


class PydanticInstance(Protocol):
    """An instance of any pydantic model, encoded by pydantic."""

    def model_dump(self, *, mode: str) -> Any:
        """Return the fields."""
        ...


Payload: TypeAlias = Mapping[str, Any] | Struct | DataclassInstance | AttrsInstance | PydanticInstance | Raw | bytes
"""A payload to push or broadcast: a dict, `Struct`, dataclass, attrs instance or pydantic model, which become a JSON
object; `msgspec.Raw` with encoded JSON; or `bytes` for a binary frame.
"""


class Message(Struct, array_like=True, frozen=True, gc=False):
    """A message from a client, its payload undecoded. The fields are in the order of a version 2 frame."""

    join_ref: Ref
    ref: Ref
    topic: Any
    event: Any
    if TYPE_CHECKING:
        payload: Body
    else:
        payload: Raw  # a JSON decoder of this struct keeps the payload raw; binary frames put their bytes here


class Reply(Struct, frozen=True):
    """A reply with an explicit status, returned by a handler: `return Reply("error", {"reason": "full"})`."""

    status: str
    """The status: "ok", "error" or any other string, as in `push.receive(status, ...)` of the client."""

    payload: Any = {}
    """The response: any JSON value, or `bytes`."""


HandlerAnswer: TypeAlias = Payload | Reply | None
"""The return value of a handler: a payload replies `ok`, `None` is no reply."""


class Broadcast(Struct, frozen=True):
    """A broadcast on a topic to which a channel has subscribed, handled by `@room.info(Broadcast)`."""

    topic: str
    """The topic of `socket.subscribe(topic)`."""

    event: str
    """The name of the event."""

    payload: Any
    """The payload: decoded JSON, or `bytes`."""


class Gap(Struct, frozen=True):
    """Broadcasts of another process on a topic that were lost on the way, handled by `@room.info(Gap)`.

    The engine was unreachable, or this process too slow. Send the client the current state from the handler. Without a
    handler, `@channel("room:*", resync="resync")` pushes the event `resync`, so that the client can ask for it.
    """

    topic: str
    """The topic of the lost broadcasts."""

    lost: int
    """The number of lost broadcasts.

    A lower bound if the other process sent broadcasts on the topic before this process subscribed. 0 if the number is
    unknown: a join was answered before the engine had confirmed the subscription, which it has done now.
    """

    publisher: str
    """The id of the process that sent the broadcasts, valid until that process ends; empty if `lost` is 0."""


def encode_payload(payload: object, _modules: Mapping[str, Any] = sys.modules) -> Body:
    """Encode a payload as JSON; `bytes` and `Raw` are returned unchanged.

    Pydantic models are written by alias and without excluded fields, as in FastAPI's responses; `nan` and `inf` as
    null. Raises `TypeError` for a value that cannot be encoded, and for a `Reply`, which only a handler can return.
    Raises `SerializerError` for lone surrogates, and for values that contain themselves or are nested too deeply.
    """
    kind: type[Any] = type(payload)
    # `encode_json` inlined: most payloads are dicts.
    if kind is dict and not special_classes and "pydantic.dataclasses" not in _modules:
        try:
            return Raw(encode_natively(payload))
        except (UnicodeEncodeError, RecursionError) as error:
            raise refusal(error) from None
    return (_known_payload_encoder(kind) or _payload_encoder(kind))(payload)


def encode_answer(answer: object, _modules: Mapping[str, Any] = sys.modules) -> tuple[str, Body]:
    """Return the status and the encoded payload of a handler's return value.

    Raises `TypeError` unless it is a payload, a `Reply` or `None`; otherwise as `encode_payload`.
    """
    kind: type[Any] = type(answer)
    if kind is dict and not special_classes and "pydantic.dataclasses" not in _modules:
        try:
            return "ok", Raw(encode_natively(answer))
        except (UnicodeEncodeError, RecursionError) as error:
            raise refusal(error) from None
    return (_known_answer_encoder(kind) or _answer_encoder(kind))(answer)


def _payload_encoder(kind: type[Any]) -> Callable[[Any], Body]:
    encoder: Callable[[Any], Body]
    if issubclass(kind, Raw | bytes):
        encoder = _as_it_is
    elif issubclass(kind, bytearray):
        encoder = bytes
    elif issubclass(kind, Reply):
        encoder = _refuse_reply
    else:
        encoder = json_encoder(kind)
    return _payload_encoders.remember(kind, encoder)


def _answer_encoder(kind: type[Any]) -> Callable[[Any], tuple[str, Body]]:
    encoder: Callable[[Any], tuple[str, Body]] = _refuse_answer
    if issubclass(kind, Reply):
        encoder = _explicit
    elif kind is type(None):
        encoder = _empty
    elif issubclass(kind, Raw | bytes):
        encoder = _ok_as_it_is
    elif issubclass(kind, Mapping | Struct) or any(hasattr(kind, mark) for mark in _OBJECT_MARKS):
        encoder = _ok_as(_payload_encoder(cast("type[Any]", kind)))
    return _answer_encoders.remember(cast("type", kind), encoder)


_payload_encoders = encoders()
_answer_encoders = encoders()
_known_payload_encoder: Callable[[type], Callable[[Any], Body] | None] = _payload_encoders.get
_known_answer_encoder: Callable[[type], Callable[[Any], tuple[str, Body]] | None] = _answer_encoders.get
_OBJECT_MARKS = ("__dataclass_fields__", "__attrs_attrs__", "model_dump")


def _as_it_is(payload: Body) -> Body:
    return payload


def _refuse_reply(_: object) -> Body:
    raise TypeError("a Reply is returned from a handler; push and broadcast take the payload itself")


def _ok_as(encode: Callable[[Any], Body]) -> Callable[[Any], tuple[str, Body]]:
    def encoder(answer: object) -> tuple[str, Body]:
        return "ok", encode(answer)

    return encoder


def _ok_as_it_is(answer: Body) -> tuple[str, Body]:
    return "ok", answer


def _empty(_: None) -> tuple[str, Body]:
    return "ok", EMPTY


def _explicit(answer: Reply) -> tuple[str, Body]:
    return answer.status, encode_payload(answer.payload)


def _refuse_answer(answer: object) -> tuple[str, Body]:
    raise TypeError(
        f"a handler returned {type(answer).__name__}: return a dict, a Struct, a dataclass, a model, bytes or None,"
        ' or Reply("ok", ...) for any other JSON value'
    )


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100
_repr.maxlevel = 2


def shown(value: object) -> str:
    """Return the `repr` of a client's value for a log line, at most about 100 characters."""
    text = _repr.repr(bytes(value).decode(errors="replace") if isinstance(value, Raw) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."


EMPTY: Body = Raw(b"{}")


def same_ref(one: Ref, other: Ref) -> bool:
    """Whether two refs are the same JSON value of the same type: `1` is neither `"1"` nor `1.0` nor `true`."""
    if type(one) is type(other) is str or one is None:
        return one == other
    if type(one) is not type(other):
        return False
    return _sorted(one) == _sorted(other)


def _sorted(ref: Ref) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(ref) if type(ref) is Raw else ref, order="sorted")


def as_frame(frame: OutgoingFrame) -> Frame:
    """Return a frame as a serializer of an application would: text as `str`."""
    return bytes(frame).decode() if type(frame) is Raw else frame


def frame_size(frame: Frame) -> int:
    """Return the size of a frame in bytes on the wire, without the WebSocket header."""
    return len(frame) if isinstance(frame, bytes) or frame.isascii() else len(frame.encode("utf-8", "surrogatepass"))


def message_size(message: Message) -> int:
    """Return the approximate memory of a waiting message in bytes; `headers.check_header` keeps it from being more."""
    size = memoryview(message.payload).nbytes
    for field in (message.join_ref, message.ref, message.topic, message.event):
        if isinstance(field, str | Raw):
            size += len(field) if isinstance(field, str) else memoryview(field).nbytes
    return size
