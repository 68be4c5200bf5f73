"""Topic segments: decoding of their text to the annotations of the join handler's parameters."""

import enum
import inspect
import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin
from uuid import UUID

import msgspec

from starlette_channels.wire.annotations import Parts, is_class, is_pydantic_class, is_union, parts_of, unwrapped
from starlette_channels.wire.conversions import FAULTS, type_for_msgspec
from starlette_channels.wire.pydantic_adapters import Adapter, Misfit

DecodeText: TypeAlias = Callable[[str], Any]
"""Decodes a text; raises `Misfit` if it does not fit."""

TEXT = (str, Any, object, inspect.Parameter.empty)
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)


def segment_decoders(
    parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, DecodeText]:
    """Return the decoders of a topic's segments by name; segments that stay `str` have none.

    Raises `TypeError` for an annotation to which text cannot be decoded.
    """
    rest = next((one.name for one in parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD), "")
    decoders: dict[str, DecodeText] = {}
    for name in names:
        annotation = hints.get(name if name in parameters else rest, inspect.Parameter.empty)
        try:
            decoder = text_decoder(annotation)
        except TypeError as error:
            raise TypeError(f"the segment {{{name}}} cannot be decoded: {error}") from None
        if decoder is not None:
            decoders[name] = decoder
    return decoders


def text_decoder(annotation: Any) -> DecodeText | None:
    """Return the decoder of text to a type, or `None` if the type is `str` or accepts anything.

    The members of a union are tried in order, `None` excepted, because a segment is never missing. Integers have one
    spelling only: `7`, not `07` or `+7`. Raises `TypeError` for a type to which text cannot be decoded.
    """
    annotation = unwrapped(annotation)
    if annotation in TEXT:
        return None
    if is_union(annotation):
        return _first_of([text_decoder(one) for one in get_args(annotation) if one not in (None, type(None))])
    if get_origin(annotation) is Annotated:
        return _constrained(annotation)
    if get_origin(annotation) is Literal:
        return _one_of({_text_of(one): one for one in get_args(annotation) if one is not None})
    if is_pydantic_class(annotation):
        return _validated(annotation)
    if is_class(annotation):
        if issubclass(annotation, enum.Enum):
            return _enum_decoder(annotation)
        if annotation in _SIMPLE:
            return _SIMPLE[annotation]
    name: object = getattr(annotation, "__name__", annotation)
    raise TypeError(
        f"text of a topic segment cannot be decoded to {name}:"
        " use str, int, float, bool, Decimal, UUID, date, datetime, timedelta, an Enum, a Literal, or a union of these"
    )


def _whole_number(text: str) -> int:
    if _WHOLE_NUMBER.fullmatch(text) is None:
        raise Misfit("Expected `int`")
    try:
        return int(text)
    except ValueError:  # Python refuses thousands of digits
        raise Misfit("Integer out of range") from None


def _number(text: str) -> float:
    number: float = _convert(text, float)
    if not math.isfinite(number):
        raise Misfit("Expected a finite number")
    return number


def _decimal(text: str) -> Decimal:
    number: Decimal = _convert(text, Decimal)
    if not text.isascii() or not number.is_finite():  # Python takes the digits of all scripts
        raise Misfit("Expected a finite number")
    return number


def _convert(value: Any, wanted: Any) -> Any:
    try:
        return msgspec.convert(value, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise Misfit(str(error)) from None


def _converter(wanted: Any) -> DecodeText:
    return lambda text: _convert(text, wanted)


_SIMPLE: dict[type, DecodeText] = {
    int: _whole_number,
    float: _number,
    Decimal: _decimal,
    **{one: _converter(one) for one in (bool, UUID, date, datetime, timedelta)},
}


def _first_of(decoders: list[DecodeText | None]) -> DecodeText | None:
    """Try the decoders in order; those after `str` are never reached."""
    if decoders and decoders[0] is None:
        return None

    def decode(text: str) -> Any:
        for decoder in decoders:
            if decoder is None:
                return text
            try:
                return decoder(text)
            except Misfit:
                continue
        raise Misfit("No member of the union fits")

    return decode


def _constrained(annotation: Any) -> DecodeText | None:
    """Decode to the type inside `Annotated`, then check the constraints."""
    parts = parts_of(annotation)
    inside = text_decoder(annotation.__origin__)
    if parts & Parts.PYDANTIC:
        adapter = Adapter(annotation)

        def validate(text: str) -> Any:
            if inside is not None:
                inside(text)
            return adapter.take_text(text)

        return validate
    if not parts & (Parts.CHECKS | Parts.NOT_PYDANTIC):
        return inside
    wanted = type_for_msgspec(annotation)
    msgspec.json.Decoder(wanted)  # raises `TypeError` for a constraint that does not apply to the type
    return lambda text: _convert(text if inside is None else inside(text), wanted)


def _validated(kind: Any) -> DecodeText:
    """Decode to a pydantic type without fields."""
    fields: Mapping[str, Any] = getattr(kind, "__pydantic_fields__", {})
    if getattr(kind, "__pydantic_root_model__", False):
        text_decoder(fields["root"].annotation)
    elif fields or hasattr(kind, "__pydantic_validator__"):
        raise TypeError(f"{kind.__name__} has fields, but a topic segment is text")
    return Adapter(kind).take_text


def _text_of(value: object) -> str:
    if isinstance(value, enum.Enum):
        return _text_of(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise TypeError(f"{value!r} is neither a string nor an integer")


def _one_of(values: Mapping[str, Any]) -> DecodeText:
    def decode(text: str) -> Any:
        if text not in values:
            raise Misfit("Expected one of the values")
        return values[text]

    return decode


def _enum_decoder(kind: type[enum.Enum]) -> DecodeText:
    members: dict[str, enum.Enum] = {}
    for one in kind.__members__.values():
        members.setdefault(_text_of(one), one)

    def decode(text: str) -> Any:
        member = members.get(text)
        if member is not None:
            return member
        try:
            return kind(text)  # `_missing_` may accept more spellings
        except FAULTS:
            raise Misfit(f"Expected one of {kind.__name__}") from None

    return decode
