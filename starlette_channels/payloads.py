"""From the payload on the wire to the type that a handler's annotation asks for."""

import types
from collections.abc import Callable
from inspect import Parameter
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

import msgspec
from msgspec import Raw

from starlette_channels.exceptions import InvalidPayload
from starlette_channels.messages import Body

Decode: TypeAlias = Callable[[Body], Any]

ANYTHING = (Any, object, Parameter.empty)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated and annotation.__origin__ in (bytes, Raw):
        return (annotation.__origin__,)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(one for member in get_args(annotation) for one in _alternatives(member))
    return (annotation,)


def payload_decoder(annotation: Any) -> Decode:
    """Build the decoder for an annotation, once, when a handler is defined.

    `bytes` takes binary frames only, `Raw` leaves JSON undecoded, `Any` takes everything, a union takes what its
    members take, and any other type takes the JSON that msgspec decodes to it. The decoder raises `InvalidPayload`;
    this function raises `TypeError` for a type that msgspec does not know.
    """
    members = _alternatives(annotation)
    anything = any(member in ANYTHING for member in members)
    binary = anything or bytes in members
    raw = Raw in members and not anything
    rest = tuple(member for member in members if member not in (bytes, Raw))
    decode_json = None
    if anything:
        decode_json = msgspec.json.Decoder(Any).decode
    elif rest and not raw:
        # Only a union with bytes is put together anew: anything else keeps its own spelling (Annotated, aliases).
        wanted: Any = annotation if len(rest) == len(members) else Union[rest]  # noqa: UP007
        decode_json = msgspec.json.Decoder(wanted).decode

    def decode(body: Body) -> Any:
        if not isinstance(body, Raw):
            if binary:
                return body
            raise InvalidPayload("Expected JSON, got a binary frame")
        if decode_json is None:
            if raw:
                return body
            raise InvalidPayload("Expected a binary frame, got JSON")
        try:
            return decode_json(body)
        except RecursionError:
            raise InvalidPayload("Nested too deeply") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidPayload(str(error)) from None

    return decode


decode_anything = payload_decoder(Any)
