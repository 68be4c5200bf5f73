"""From the payload on the wire to the type that a handler's annotation asks for."""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeAlias, Union, cast, get_args, get_origin

import msgspec
import msgspec.inspect
from msgspec import Raw

from starlette_channels.exceptions import InvalidPayload
from starlette_channels.messages import Body

Decode: TypeAlias = Callable[[Body], Any]

ANYTHING = (Any, object, inspect.Parameter.empty)


def payload_decoder(annotation: Any) -> Decode:
    """Build the decoder for an annotation, once, when a handler is defined.

    `bytes` takes binary frames only, `Raw` leaves JSON undecoded, `Any` takes everything, a union takes what its
    members take, a pydantic model validates by itself, and any other type takes the JSON that msgspec decodes to it.
    The decoder raises `InvalidPayload`; this function raises `TypeError` for a type that nobody can decode.
    """
    members = list(_members(annotation))
    decode_json = _json_decoder(annotation, members) or _wants_binary
    decode_binary = _binary_decoder(members) or _wants_json

    def decode(body: Body) -> Any:
        try:
            return decode_json(body) if type(body) is Raw else decode_binary(body)
        except RecursionError:
            raise InvalidPayload("Nested too deeply") from None
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InvalidPayload(str(error)) from None

    return decode


def _wants_binary(_: object) -> Any:
    raise InvalidPayload("Expected a binary frame, got JSON")


def _wants_json(_: object) -> Any:
    raise InvalidPayload("Expected JSON, got a binary frame")


def _members(annotation: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a type is made of: the bare type, and how it is spelt, constraints and all."""
    if isinstance(annotation, typing.NewType):
        yield from _members(annotation.__supertype__)
    elif type(annotation).__name__ == "TypeAliasType":  # `type Name = ...`; older Pythons have no such class
        yield from _members(annotation.__value__)
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif get_origin(annotation) is Annotated:
        inside = list(_members(annotation.__origin__))
        yield from [(inside[0][0], annotation)] if len(inside) == 1 else inside
    else:
        yield annotation, annotation


def _json_decoder(annotation: Any, members: list[tuple[Any, Any]]) -> Callable[[Raw], Any] | None:
    if any(bare in ANYTHING for bare, _ in members):
        return _msgspec_decoder(Any)
    if any(bare is Raw for bare, _ in members):
        return lambda body: body
    rest = tuple(spelt for bare, spelt in members if bare is not bytes)
    if not rest:
        return None
    if len(rest) == 1 and hasattr(rest[0], "model_validate_json"):
        return _pydantic_decoder(rest[0])
    # Only a union with bytes is put together anew: anything else keeps its own spelling.
    wanted: Any = annotation if len(rest) == len(members) else Union[rest]  # noqa: UP007
    _refuse_unknown_types(msgspec.inspect.type_info(wanted))
    return _msgspec_decoder(wanted)


def _binary_decoder(members: list[tuple[Any, Any]]) -> Callable[[bytes], bytes] | None:
    if any(bare in ANYTHING for bare, _ in members):
        return lambda data: data
    spelt = next((spelt for bare, spelt in members if bare is bytes), None)
    if spelt is None or spelt is bytes:
        return spelt and (lambda data: data)
    return lambda data: msgspec.convert(data, spelt)


def _msgspec_decoder(wanted: Any) -> Callable[[Any], Any]:
    return msgspec.json.Decoder(wanted).decode


def _pydantic_decoder(model: Any) -> Callable[[Raw], Any]:
    """Let a pydantic model validate; it is known by its methods, so pydantic is no dependency."""

    def decode(body: Raw) -> Any:
        try:
            return model.model_validate_json(bytes(body))
        except ValueError as error:
            first: Any = cast("Any", error).errors(include_url=False, include_input=False)[0]
            steps: tuple[str | int, ...] = first["loc"]
            path = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in steps)
            raise InvalidPayload(f"{first['msg']} - at `${path}`") from None

    return decode


def _refuse_unknown_types(info: Any, seen: set[int] | None = None) -> None:
    """Raise `TypeError` for a class that msgspec would take for a custom one, and then refuse with every payload."""
    seen = set[int]() if seen is None else seen
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        raise TypeError(f"{info.cls.__name__} is no type that JSON can be decoded to")
    for name in ("types", "fields", "item_types"):
        for inner in getattr(info, name, ()):
            _refuse_unknown_types(getattr(inner, "type", inner), seen)
    for name in ("item_type", "key_type", "value_type", "type"):
        inner = getattr(info, name, None)
        if isinstance(inner, msgspec.inspect.Type):
            _refuse_unknown_types(inner, seen)


decode_anything: Decode = payload_decoder(Any)
