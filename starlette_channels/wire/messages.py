"""The words that all layers share: message, reply, broadcast, and what payloads are."""

import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, cast

import msgspec
from msgspec import Raw, Struct

from starlette_channels.wire.encoding import encode_natively, encoders, json_encoder, refusal, special_classes

Frame: TypeAlias = str | bytes
"""One WebSocket message: `str` goes as a text frame, `bytes` as a binary frame."""

Outgoing: TypeAlias = str | bytes | Raw
"""A frame to a client: a `Frame`, or a text frame that is encoded as UTF-8 already (`Raw`), so that it stays bytes."""

Ref: TypeAlias = Any
"""A ref is whatever JSON value the client chose, lists and objects as `Raw`; it is only compared and handed back."""

Body: TypeAlias = Raw | bytes
"""A payload on its way: JSON that nobody has decoded yet (`Raw`), or the bytes of a binary frame."""


class DataclassInstance(Protocol):
    """An instance of any dataclass: it is encoded as an object."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class AttrsInstance(Protocol):
    """An instance of any attrs class: it is encoded as an object."""

    __attrs_attrs__: ClassVar[Any]


class PydanticInstance(Protocol):
    """An instance of a pydantic model: it is encoded as pydantic writes it."""

    def model_dump(self, *, mode: str) -> Any:
        """Return the fields as JSON has them."""
        ...


Payload: TypeAlias = Mapping[str, Any] | Struct | DataclassInstance | AttrsInstance | PydanticInstance | Raw | bytes
"""What can be pushed and broadcast: anything that is encoded as a JSON object, raw JSON, or bytes for a binary frame.
"""


class Message(Struct, array_like=True, frozen=True, gc=False):
    """What a client sent, its payload undecoded. The order of the fields is that of a version 2 frame."""

    join_ref: Ref
    ref: Ref
    topic: Any
    event: Any
    if TYPE_CHECKING:
        payload: Body
    else:
        payload: Raw  # a JSON decoder of this struct keeps the payload raw; binary frames put their bytes here


class Reply(Struct, frozen=True):
    """An answer with an explicit status: `Reply("error", {"reason": "full"})`.

    Clients know "ok" and "error"; any other status works as well. `payload` may be any JSON value, or bytes.
    """

    status: str
    """Text that clients know answers by: "ok", "error" or another."""

    payload: Any = {}
    """Any JSON value, or bytes."""


HandlerAnswer: TypeAlias = Payload | Reply | None
"""What a handler may return: a payload is the status `ok`, `None` means no reply."""


class Broadcast(Struct, frozen=True):
    """A broadcast on a topic that this channel subscribed to: `@room.info(Broadcast)` receives it, payload decoded."""

    topic: str
    """The topic that the channel subscribed to."""

    event: str
    """The name of the event."""

    payload: Any
    """The payload, decoded from JSON, or bytes."""


class Gap(Struct, frozen=True):
    """Broadcasts of another process on a topic did not get here: `@room.info(Gap)` receives it.

    The engine between the processes was away, or this process was too slow. Let the handler bring the client up to
    date; `@channel("room:*", resync="resync")` tells it to ask, without a handler.
    """

    topic: str
    """The topic of the broadcasts."""

    lost: int
    """How many there were.

    At least so many, if it is the first that is heard of a process that spoke on the topic before this one listened.
    0 if nobody can say: a join was answered before the engine had the subscription, which is in force by now.
    """

    publisher: str
    """The process that sent them: an id that it has until it ends, or nothing if `lost` is 0."""


def encode_payload(payload: object, _modules: Mapping[str, Any] = sys.modules) -> Body:
    """Return a payload as it travels: JSON encoded once, bytes as they are.

    A type is written as it is read: pydantic's by its aliases and without what it excludes, as in FastAPI's answers.
    What is not a number (`nan`, `inf`) is null, as in JavaScript. Raises `TypeError` for what cannot be encoded and for
    a `Reply`, which only a handler can return, and `SerializerError` for text that is no Unicode, and for what contains
    itself or is nested too deeply.
    """
    kind: type[Any] = type(payload)
    # What `encode_json` does, without a call: most payloads are dicts.
    if kind is dict and not special_classes and "pydantic.dataclasses" not in _modules:
        try:
            return Raw(encode_natively(payload))
        except (UnicodeEncodeError, RecursionError) as error:
            raise refusal(error) from None
    return (_known_payload_encoder(kind) or _payload_encoder(kind))(payload)


def encode_answer(answer: object, _modules: Mapping[str, Any] = sys.modules) -> tuple[str, Body]:
    """Return the status and the encoded payload of what a handler returned.

    Raises `TypeError` for what is neither payload, `Reply` nor `None`, and what `encode_payload` raises.
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
    raise TypeError("a Reply is an answer: return it from a handler; push and broadcast take the payload itself")


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
    """Return what a client sent as a log line may have it: quoted, and about 100 characters at most."""
    text = _repr.repr(bytes(value).decode(errors="replace") if isinstance(value, Raw) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."


EMPTY: Body = Raw(b"{}")


def same_ref(one: Ref, other: Ref) -> bool:
    """Whether two refs are the same JSON value, type included: `1` is neither `"1"` nor `1.0` nor `true`."""
    if type(one) is type(other) is str or one is None:
        return one == other
    if type(one) is not type(other):
        return False
    return _sorted(one) == _sorted(other)


def _sorted(ref: Ref) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(ref) if type(ref) is Raw else ref, order="sorted")


def as_frame(frame: Outgoing) -> Frame:
    """Return a frame as a serializer of an application would: text as `str`."""
    return bytes(frame).decode() if type(frame) is Raw else frame


def frame_size(frame: Frame) -> int:
    """Return the bytes that a frame's payload takes on the wire."""
    return len(frame) if isinstance(frame, bytes) or frame.isascii() else len(frame.encode("utf-8", "surrogatepass"))


def message_size(message: Message) -> int:
    """Return about how many bytes a waiting message holds; `headers.check_header` sees to it that it holds no more."""
    size = memoryview(message.payload).nbytes
    for field in (message.join_ref, message.ref, message.topic, message.event):
        if isinstance(field, str | Raw):
            size += len(field) if isinstance(field, str) else memoryview(field).nbytes
    return size
