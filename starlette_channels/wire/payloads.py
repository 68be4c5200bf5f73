"""Payload decoding: from the wire to the type of a handler's annotation."""

import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

import msgspec
from msgspec import Raw

from starlette_channels.exceptions import InvalidPayload
from starlette_channels.wire.annotations import Parts, alias_value, is_union, parts_of
from starlette_channels.wire.conversions import is_stand_in, misfit, take, type_for_msgspec
from starlette_channels.wire.encoding import note_type
from starlette_channels.wire.messages import Body
from starlette_channels.wire.pydantic_adapters import Adapter, Misfit

Decode: TypeAlias = Callable[[Body], Any]

ANYTHING = (Any, object, inspect.Parameter.empty)

UNDECODABLE = (InvalidPayload, RecursionError, msgspec.DecodeError, UnicodeError, Misfit)
"""The errors that say that a payload does not fit; others are crashes, such as those of a validator."""

MOST_DETAIL = 500
"""Characters of an error text that are sent to the client; it may quote names and values of the payload."""


def payload_decoder(annotation: Any) -> Decode:
    """Build the payload decoder of an annotation, once per handler, when it is defined.

    `bytes` accepts binary frames only, `Raw` leaves JSON undecoded, `Any` accepts everything, a union accepts the
    payloads of its members. Types with pydantic models inside are decoded by pydantic, attrs classes call their
    converters, and all other types are decoded by msgspec. The decoder raises `InvalidPayload` with a text of at most
    500 characters. This function raises `TypeError` for a type that cannot be decoded, and for constraints that would
    not be checked.
    """
    decode_json = json_decoder(annotation)
    decode_binary = _binary_decoder(list(_members(annotation))) or _wants_json

    def decode(body: Body) -> Any:
        try:
            return decode_json(body) if type(body) is Raw else decode_binary(body)
        except UNDECODABLE as error:
            raise invalid_payload(error) from None

    return decode


def json_decoder(annotation: Any) -> Callable[[Raw], Any]:
    """Build the decoder of JSON for an annotation, as `payload_decoder` does; it raises `UNDECODABLE` unexplained."""
    note_type(annotation)
    return _json_decoder(annotation, list(_members(annotation))) or _wants_binary


def invalid_payload(error: Exception) -> InvalidPayload:
    """Return the `InvalidPayload` for one of the errors `UNDECODABLE`."""
    match error:
        case InvalidPayload():
            return error
        case msgspec.DecodeError() | UnicodeError() | Misfit():
            return InvalidPayload(_explain(error))
        case _:
            return InvalidPayload("Nested too deeply")


def _explain(error: msgspec.DecodeError | UnicodeError | Misfit) -> str:
    """Return the text of an error with the path in the payload."""
    if isinstance(error, msgspec.DecodeError) and isinstance(error.__cause__, Misfit):
        error = misfit(error)
    text = str(error)
    path = f" - at `${error.path}`" if isinstance(error, Misfit) else ""
    if len(text) + len(path) <= MOST_DETAIL:
        return text + path
    text, path = text[:MOST_DETAIL], path[:MOST_DETAIL]
    return f"{text[: max(MOST_DETAIL - len(path), MOST_DETAIL // 2)]}{path}"[: MOST_DETAIL - 3] + "..."


def _wants_binary(_: object) -> Any:
    raise InvalidPayload("Expected a binary frame, got JSON")


def _wants_json(_: object) -> Any:
    raise InvalidPayload("Expected JSON, got a binary frame")


def _members(annotation: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the members of a type, each as the bare type and as the annotation with its constraints.

    A union is split only if `bytes`, `Raw` or `Any` is among its members.
    """
    value = alias_value(annotation)
    if isinstance(annotation, typing.NewType):
        yield from _members(annotation.__supertype__)
    elif value is not annotation:
        yield from _whole(annotation, list(_members(value)))
    elif is_union(annotation):
        for member in get_args(annotation):
            yield from _members(member)
    elif get_origin(annotation) is Annotated:
        inside = list(_members(annotation.__origin__))
        if len(inside) == 1:
            yield inside[0][0], annotation
        else:
            yield from _annotated(annotation, inside)
    else:
        yield annotation, annotation


def _annotated(annotation: Any, inside: list[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Apply the metadata of an annotated union to its JSON members and to `bytes` separately."""
    whole = _whole(annotation, inside)
    annotated: Any = Annotated
    if whole is not inside:
        yield from whole
        return
    rest = tuple(spelt for bare, spelt in inside if bare is not bytes)
    metadata = annotation.__metadata__
    if rest:
        bare = next((bare for bare, _ in inside if bare in ANYTHING or bare is Raw), rest)
        yield bare, annotated[(Union[rest], *metadata)]  # noqa: UP007 - members known at run time only
    for bare, spelt in inside:
        if bare is bytes:
            theirs = [one for one in metadata if getattr(one, "discriminator", None) is None]
            yield bare, annotated[(spelt, *theirs)] if theirs else spelt


def _whole(annotation: Any, inside: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    if any(bare in ANYTHING or bare is Raw or bare is bytes for bare, _ in inside):
        return inside
    return [(annotation, annotation)]


def _json_decoder(annotation: Any, members: list[tuple[Any, Any]]) -> Callable[[Raw], Any] | None:
    free = [spelt for bare, spelt in members if bare in ANYTHING or bare is Raw]
    if not any(parts_of(spelt) & Parts.SPECIAL for spelt in free):
        if any(bare in ANYTHING for bare, _ in members):
            return _msgspec_decoder(Any)
        if free:
            return lambda body: body
    rest = tuple(spelt for bare, spelt in members if bare is not bytes)
    if not rest:
        return None
    # Only a union without its bytes is built anew: any other annotation is used as written.
    wanted = type_for_msgspec(annotation if len(rest) == len(members) else Union[rest])  # noqa: UP007
    adapter = _adapter(wanted)
    if adapter is not None:
        return lambda body: adapter.decode(bytes(body))
    return _msgspec_decoder(wanted)


def _adapter(wanted: Any) -> Adapter | None:
    return wanted.adapter if is_stand_in(wanted) else None


def _binary_decoder(members: list[tuple[Any, Any]]) -> Callable[[bytes], bytes] | None:
    anything = next((spelt for bare, spelt in members if bare in ANYTHING), None)
    if anything is not None and not parts_of(anything) & Parts.SPECIAL:
        return lambda data: data
    if anything is not None:
        members = [(bytes, anything)]
    spelt = next((spelt for bare, spelt in members if bare is bytes), None)
    if spelt is None or spelt is bytes:
        return spelt and (lambda data: data)
    wanted = type_for_msgspec(spelt)
    adapter = _adapter(wanted)
    if adapter is not None:
        return adapter.take_bytes
    return lambda data: msgspec.convert(data, wanted)


def _msgspec_decoder(wanted: Any) -> Callable[[Any], Any]:
    return msgspec.json.Decoder(wanted, dec_hook=take).decode


decode_anything: Decode = payload_decoder(Any)
