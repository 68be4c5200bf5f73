"""From the payload on the wire to the type in a handler's annotation."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from inspect import Parameter
from typing import Annotated, Any, Literal, NewType, Optional, TypedDict

import attrs
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta, Raw, Struct, UnsetType
from typing_extensions import TypeAliasType

from starlette_channels import InvalidPayload
from starlette_channels.wire.messages import encode_payload
from starlette_channels.wire.payloads import decode_anything, payload_decoder
from tests.support.effort import some

bounded = settings(
    max_examples=some(of=200),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

DATA = b"\x00\xff"


class NewMsg(Struct):
    body: str
    tags: list[str] = []


class Move(Struct, tag=True):
    x: int


class Resize(Struct, tag=True):
    width: int


@dataclass
class Point:
    x: int
    y: int = 0


@attrs.define
class Colour:
    name: str


class Model(pydantic.BaseModel):
    body: str
    tags: list[str] = []


class Tree(Struct):
    """A type that contains itself."""

    leaves: list["Tree"] = []


class Typed(TypedDict):
    x: int


class Kind(Enum):
    A = "a"


Age = Annotated[int, Meta(ge=0, le=150)]
Blob = NewType("Blob", bytes)
Alias = TypeAliasType("Alias", NewMsg | Blob)


def raw(text: str) -> Raw:
    return Raw(text.encode())


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (NewMsg, '{"body":"hi","unknown":1}', NewMsg("hi")),
        (NewMsg, '{"body":"hi","tags":["a"]}', NewMsg("hi", ["a"])),
        (dict, '{"a":[1]}', {"a": [1]}),
        (dict[str, int], '{"a":1}', {"a": 1}),
        (Mapping[str, Any], '{"a":1}', {"a": 1}),
        (Typed, '{"x":1}', {"x": 1}),
        (Point, '{"x":1}', Point(1)),
        (Colour, '{"name":"red"}', Colour("red")),
        (Model, '{"body":"hi"}', Model(body="hi")),
        (Annotated[Model, "documented"], '{"body":"hi"}', Model(body="hi")),
        (Model | bytes, '{"body":"hi"}', Model(body="hi")),
        (Tree, '{"leaves":[{"leaves":[{}]}]}', Tree([Tree([Tree()])])),
        (int | UnsetType, "1", 1),
        (Move | Resize, '{"type":"Resize","width":3}', Resize(3)),
        (Any, "[null,true]", [None, True]),
        (object, '"text"', "text"),
        (Parameter.empty, "1.5", 1.5),
        (list[int], "[1,2]", [1, 2]),
        (int | str, '"1"', "1"),
        (Optional[NewMsg], "null", None),  # noqa: UP045 - people write it this way too
        (NewMsg | None, '{"body":"hi"}', NewMsg("hi")),
        (None, "null", None),
        (Literal["on", "off"], '"off"', "off"),
        (Kind, '"a"', Kind.A),
        (datetime, '"2024-02-29T12:00:00"', datetime(2024, 2, 29, 12)),
        (Age, "150", 150),
        (Annotated[NewMsg, "documented"], '{"body":"hi"}', NewMsg("hi")),
        (NewMsg | bytes, '{"body":"hi"}', NewMsg("hi")),
        (Annotated[NewMsg | bytes, "documented"], '{"body":"hi"}', NewMsg("hi")),
        (bytes | dict[str, int], '{"a":1}', {"a": 1}),
        (bytes | None, "null", None),
        (bytes | Age | None, "7", 7),
        (dict[str, bytes], '{"a":"AP8="}', {"a": DATA}),
        (Any, "123456789012345678901234567890", 123456789012345678901234567890),
    ],
    ids=str,
)
def test_json_is_decoded_to_the_annotation(annotation: Any, text: str, value: object) -> None:
    decoded = payload_decoder(annotation)(raw(text))
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize(
    "annotation",
    [
        bytes,
        bytes | None,
        NewMsg | bytes,
        Model | bytes,
        Raw | bytes,
        Any,
        object,
        Parameter.empty,
        Any | None,
        Annotated[bytes, "documented"],
        Annotated[bytes | NewMsg, "documented"],
        Annotated[Any, "documented"],
        Blob,
    ],
    ids=str,
)
def test_a_binary_frame_reaches_a_handler_that_takes_bytes_as_it_is(annotation: Any) -> None:
    assert payload_decoder(annotation)(DATA) is DATA
    assert payload_decoder(annotation)(b"") == b""


@pytest.mark.parametrize(
    "annotation", [Raw, Raw | bytes, Raw | NewMsg, Raw | None, Annotated[Raw, "documented"]], ids=str
)
def test_raw_leaves_json_undecoded(annotation: Any) -> None:
    body = raw(' {"a" : 1} ')
    assert payload_decoder(annotation)(body) is body


@pytest.mark.parametrize("annotation", [NewMsg, dict, Raw, Typed, Point, int, None, Raw | None], ids=str)
def test_a_binary_frame_does_not_fit_an_annotation_without_bytes(annotation: Any) -> None:
    with pytest.raises(InvalidPayload, match=r"^Expected JSON, got a binary frame$"):
        payload_decoder(annotation)(DATA)


@pytest.mark.parametrize("annotation", [bytes, Annotated[bytes, "documented"], Blob], ids=str)
@pytest.mark.parametrize("text", ["{}", '"AP8="', "null"])
def test_json_does_not_fit_bytes_alone(annotation: Any, text: str) -> None:
    with pytest.raises(InvalidPayload, match=r"^Expected a binary frame, got JSON$"):
        payload_decoder(annotation)(raw(text))


@pytest.mark.parametrize(
    ("annotation", "text", "why"),
    [
        (NewMsg, '{"body":1}', "Expected `str`, got `int` - at `$.body`"),
        (NewMsg, "{}", "Object missing required field `body`"),
        (NewMsg, "[]", "Expected `object`, got `array`"),
        (NewMsg, '{"body":"hi","tags":["a",null]}', "at `$.tags[1]`"),
        (dict, "1", "Expected `object`, got `int`"),
        (Typed, '{"x":"1"}', "Expected `int`, got `str` - at `$.x`"),
        (Point, "{}", "`x`"),
        (Age, "-1", "Expected `int` >= 0"),
        (Age, "151", "Expected `int` <= 150"),
        (Literal["on", "off"], '"of"', "Invalid enum value 'of'"),
        (bytes | dict[str, int], '{"a":"x"}', "Expected `int`, got `str`"),
        (bytes | dict[str, int], '"AP8="', "Expected `object`, got `str`"),
        (bytes | None, "{}", "Expected `null`, got `object`"),
        (int, "1.5", "Expected `int`, got `float`"),
        (Any, "9" * 5000, "out of range"),
        (Any, "1e999", "out of range"),
        (Any, '"\\ud800 and more"', "surrogate"),
        (Any, "{", "truncated"),
        (Any, "", "truncated"),
        (Model, '{"body":[1]}', "$.body"),
        (Model, '{"body":"hi","tags":["a",1]}', "$.tags[1]"),
        (Model, "{", "Invalid JSON"),
        (Model | bytes, "[]", "Input should be an object - at `$`"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json_that_does_not_fit_says_where_and_why(annotation: Any, text: str, why: str) -> None:
    with pytest.raises(InvalidPayload, match=re.escape(why)) as caught:
        payload_decoder(annotation)(raw(text))
    assert str(caught.value)


@pytest.mark.parametrize("annotation", [Any, dict, list, dict[str, Any]], ids=str)
def test_deep_nesting_is_an_invalid_payload_and_no_recursion_error(annotation: Any) -> None:
    decode = payload_decoder(annotation)
    for text in ("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000):
        with pytest.raises(InvalidPayload):
            decode(raw(text))


def test_json_that_is_not_utf8_is_an_invalid_payload() -> None:
    with pytest.raises(InvalidPayload):
        decode_anything(Raw(b'{"a":"\xff"}'))


class Unknown:
    """A class that says nothing about its fields."""


class WithUnknown(Struct):
    inner: list[Unknown]


@pytest.mark.parametrize(
    "annotation",
    [
        NewMsg | Point,
        NewMsg | dict[str, Any],
        list[int] | set[int],
        "NewMsg",
        Unknown,
        Unknown | bytes,
        list[Unknown],
        WithUnknown,
        complex,
        Callable[[], int],
        Iterator[int],
    ],
    ids=str,
)
def test_a_type_that_msgspec_cannot_decode_is_a_type_error_at_definition(annotation: Any) -> None:
    with pytest.raises(TypeError):
        payload_decoder(annotation)


def test_constraints_on_the_length_of_bytes_hold() -> None:
    decode = payload_decoder(Optional[Annotated[bytes, Meta(min_length=1, max_length=2)]])  # noqa: UP045
    assert decode(DATA) == DATA
    assert decode(raw("null")) is None
    for data in (b"", b"xyz"):
        with pytest.raises(InvalidPayload, match="length"):
            decode(data)


def test_aliases_and_new_types_around_a_union_are_looked_into() -> None:
    decode = payload_decoder(Alias)
    assert decode(DATA) is DATA
    assert decode(raw('{"body":"hi"}')) == NewMsg("hi")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=16,
)


@bounded
@given(json_values)
def test_whatever_json_is_sent_any_receives_it(value: Any) -> None:
    assert decode_anything(encode_payload(value)) == value
    assert decode_anything(raw(json.dumps(value, indent=1))) == value


DECODERS = [payload_decoder(one) for one in (Any, NewMsg, Model, Typed, Point, bytes | NewMsg, Raw, bytes, Age, Kind)]


@bounded
@given(
    st.binary(max_size=50)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.lists(st.sampled_from(['{"', "body", '":', '"', "[", "]", "}", ",", "\\ud800", "\\u", "1e", "9" * 30, "null"]))
    .map("".join)
    .map(str.encode)
)
def test_whatever_bytes_come_they_are_decoded_or_an_invalid_payload(data: bytes) -> None:
    for decode in DECODERS:
        for body in (Raw(data), data):
            with suppress(InvalidPayload):
                decode(body)
