"""Types that validate by themselves: pydantic's and attrs', wherever they stand in an annotation, in and out."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Annotated, Any, Generic, Literal, NamedTuple, Required, TypedDict, TypeVar

import annotated_types
import attrs
import msgspec
import pydantic
import pytest
import typing_extensions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveInt,
    RootModel,
    StringConstraints,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

from starlette_channels import InvalidPayload
from starlette_channels.wire.messages import encode_payload
from starlette_channels.wire.payloads import MOST_DETAIL, payload_decoder
from tests.support.effort import some

bounded = settings(
    max_examples=some(of=150),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

T = TypeVar("T")


class Model(BaseModel):
    x: int = Field(ge=0)


@pydantic_dataclass
class Order:
    item: str = Field(min_length=1)
    count: int = Field(default=1, ge=1)
    secret: str = Field(default="s3cret", exclude=True)


class Aliased(BaseModel):
    model_config = ConfigDict(alias_generator=lambda name: name.title().replace("_", ""))
    user_name: str
    secret: str = Field("s3cret", exclude=True)

    @pydantic.computed_field
    @property
    def shout(self) -> str:
        return self.user_name.upper()


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Page(BaseModel, Generic[T]):
    items: list[T]


class Holder(Struct):
    model: Model
    other: Model | None = None


class Box(Struct, Generic[T]):
    content: T


class Renamed(Struct, rename="camel", tag="renamed"):
    the_name: Annotated[str, Field(min_length=3)]
    the_orders: list[Order] = []


class Row(Struct, array_like=True):
    number: int
    model: Model
    text: str = "z"


class Tree(Struct):
    model: Model
    branches: list["Tree"] = []


class Mixed(Struct):
    value: Model | Holder | int | None = None
    maybe: Model | UnsetType = UNSET


@dataclasses.dataclass
class Plain:
    model: Model
    address: IPv4Address


@dataclasses.dataclass
class PlainWithStruct:
    holder: Holder
    model: Model


class Pair(NamedTuple):
    model: Model
    holder: Holder
    number: int = 3


class OldDict(TypedDict, total=False):
    model: Required[Model]
    holder: Holder


class NewDict(typing_extensions.TypedDict):
    model: Model


@attrs.define
class Converted:
    number: int = attrs.field(converter=int)
    name: str = attrs.field(default="n", validator=attrs.validators.min_len(1))


class WithConverted(Struct):
    inner: Converted


class Checked(Struct):
    number: Annotated[int, annotated_types.Ge(3), annotated_types.Le(5)]
    text: Annotated[str, annotated_types.Len(1, 3)] = "a"


class Unix(Struct):
    at: Annotated[
        datetime,
        BeforeValidator(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
        PlainSerializer(lambda when: int(when.timestamp())),
    ]


def raw(value: object) -> Raw:
    return Raw(json.dumps(value).encode())


ONE: dict[str, Any] = {"x": 1}

GOOD: list[tuple[Any, Any, Any]] = [
    (Model, ONE, Model(x=1)),
    (Order, {"item": "tea", "count": 2}, Order("tea", 2)),
    (Order | None, None, None),
    (list[Order], [{"item": "tea", "count": 1}], [Order("tea")]),
    (Model | None, ONE, Model(x=1)),
    (list[Model], [ONE], [Model(x=1)]),
    (dict[str, Model], {"a": ONE}, {"a": Model(x=1)}),
    (tuple[Model, int], [ONE, 2], (Model(x=1), 2)),
    (Annotated[Model, "documented"], ONE, Model(x=1)),
    (Aliased, {"UserName": "ann", "Shout": "ANN"}, Aliased(UserName="ann")),  # pyright: ignore[reportCallIssue]
    (Pet, {"kind": "dog", "name": "rex"}, Dog(kind="dog", name="rex")),
    (Pet | bytes, {"kind": "cat", "lives": 9}, Cat(kind="cat", lives=9)),
    (Cat | Dog | None, {"kind": "dog", "name": "rex"}, Dog(kind="dog", name="rex")),
    (Page[Model], {"items": [ONE]}, Page[Model](items=[Model(x=1)])),
    (RootModel[list[int]], [1], RootModel[list[int]]([1])),
    (Holder, {"model": ONE, "other": None}, Holder(Model(x=1))),
    (list[Holder], [{"model": ONE, "other": ONE}], [Holder(Model(x=1), Model(x=1))]),
    (Box[Model], {"content": ONE}, Box(Model(x=1))),
    (Box[list[Order]], {"content": [{"item": "tea", "count": 1}]}, Box([Order("tea")])),
    (
        Renamed,
        {"type": "renamed", "theName": "ann", "theOrders": [{"item": "tea", "count": 1}]},
        Renamed("ann", [Order("tea")]),
    ),
    (Row, [1, ONE, "y"], Row(1, Model(x=1), "y")),
    (
        Tree,
        {"model": ONE, "branches": [{"model": ONE, "branches": []}]},
        Tree(Model(x=1), [Tree(Model(x=1))]),
    ),
    (Mixed, {"value": ONE}, Mixed(Model(x=1))),
    (Mixed, {"value": {"model": ONE, "other": None}, "maybe": ONE}, Mixed(Holder(Model(x=1)), Model(x=1))),
    (Mixed, {"value": 3}, Mixed(3)),
    (Mixed, {"value": None}, Mixed()),
    (Model | Holder, {"model": ONE, "other": None}, Holder(Model(x=1))),
    (Plain, {"model": ONE, "address": "10.0.0.1"}, Plain(Model(x=1), IPv4Address("10.0.0.1"))),
    (
        PlainWithStruct,
        {"holder": {"model": ONE, "other": None}, "model": ONE},
        PlainWithStruct(Holder(Model(x=1)), Model(x=1)),
    ),
    (Pair, [ONE, {"model": ONE, "other": None}, 4], Pair(Model(x=1), Holder(Model(x=1)), 4)),
    (OldDict, {"model": ONE}, {"model": Model(x=1)}),
    (NewDict, {"model": ONE}, {"model": Model(x=1)}),
    (list[OldDict], [{"model": ONE, "holder": {"model": ONE, "other": None}}], None),
    (Mapping[str, Holder], {"a": {"model": ONE, "other": None}}, {"a": Holder(Model(x=1))}),
    (Sequence[Holder], [], []),
    (Converted, {"number": 5, "name": "n"}, Converted("5")),
    (WithConverted, {"inner": {"number": 5, "name": "n"}}, WithConverted(Converted(5))),
    (dict[str, Converted] | None, {"a": {"number": 5, "name": "n"}}, {"a": Converted(5)}),
    (Checked, {"number": 4, "text": "abc"}, Checked(4, "abc")),
    (Unix, {"at": 1_700_000_000}, Unix(datetime.fromtimestamp(1_700_000_000, UTC))),
    (Annotated[str, Field(min_length=3)], "abc", "abc"),
    (PositiveInt, 1, 1),
]


@pytest.mark.parametrize(("annotation", "sent", "value"), GOOD, ids=str)
def test_what_fits_is_decoded_and_encodes_to_what_was_sent_however_it_is_nested(
    annotation: Any, sent: Any, value: Any
) -> None:
    decoded = payload_decoder(annotation)(raw(sent))
    if value is not None:
        assert decoded == value
        assert type(decoded) is type(value)
    assert json.loads(bytes(encode_payload(decoded))) == sent
    for nested in ({"a": [decoded]}, [{"a": decoded}], Box(decoded), Box([{"b": (decoded,)}])):
        inside = json.loads(bytes(encode_payload(nested)))
        assert json.dumps(sent, sort_keys=True) in json.dumps(inside, sort_keys=True)


BAD: list[tuple[Any, Any, str]] = [
    (Order, {"item": "", "count": -5}, "String should have at least 1 character - at `$.item`"),
    (Order, {}, "Field required - at `$.item`"),
    (list[Order], [{"item": "tea"}, {"item": "tea", "count": 0}], "at `$[1].count`"),
    (Model | None, {"x": -1}, "Input should be greater than or equal to 0 - at `$.x`"),
    (Model | bytes, {"x": -1}, "Input should be greater than or equal to 0 - at `$.x`"),
    (dict[str, Model], {"a": {"x": "q"}}, "at `$.a.x`"),
    (Pet, {"kind": "cow"}, "'cow'"),
    (Pet, {"kind": "cat", "lives": "q"}, "at `$.lives`"),
    (Page[Model], {"items": [{"x": -1}]}, "at `$.items[0].x`"),
    (RootModel[list[int]], [1, "a"], "at `$[1]`"),
    (Holder, {"model": {"x": -1}}, "at `$.model.x`"),
    (list[Holder], [{"model": ONE, "other": {"x": -1}}], "at `$[0].other.x`"),
    (Holder, {}, "Object missing required field `model`"),
    (Renamed, {"type": "renamed", "theName": "ab"}, "String should have at least 3 characters - at `$.theName`"),
    (Renamed, {"type": "other", "theName": "abc"}, "Invalid value 'other' - at `$.type`"),
    (Renamed, {"type": "renamed", "theName": "abc", "theOrders": [{"item": ""}]}, "at `$.theOrders[0].item`"),
    (Row, [1, {"x": -1}], "at `$[1].x`"),
    (Tree, {"model": ONE, "branches": [{"model": {"x": -1}}]}, "at `$.branches[0].model.x`"),
    (Mixed, {"value": {"model": {"x": -1}}}, "at `$.value.model.x`"),
    (Mixed, {"value": "text"}, "at `$.value`"),
    (Plain, {"model": {"x": -1}, "address": "::1"}, "at `$.model.x`"),
    (PlainWithStruct, {"holder": {"model": {"x": -1}}, "model": ONE}, "at `$.holder.model.x`"),
    (Pair, [ONE, {"model": {"x": -1}}], "at `$[1].model.x`"),
    (OldDict, {}, "Object missing required field `model`"),
    (OldDict, {"model": {"x": -1}}, "at `$.model.x`"),
    (NewDict, {"model": {"x": -1}}, "at `$.model.x`"),
    (Converted, {"number": "x"}, "invalid literal"),
    (Converted, {"number": [1]}, "int() argument"),
    (WithConverted, {"inner": {"number": 1, "name": ""}}, "at `$.inner`"),
    (Checked, {"number": 2}, "Expected `int` >= 3 - at `$.number`"),
    (Checked, {"number": 3, "text": ""}, "Expected `str` of length >= 1 - at `$.text`"),
    (Annotated[str, Field(min_length=3)], "ab", "String should have at least 3 characters"),
    (Annotated[str, StringConstraints(min_length=3)], "ab", "String should have at least 3 characters"),
    (Annotated[str, annotated_types.MinLen(3)], "ab", "Expected `str` of length >= 3"),
    (Annotated[str, Meta(min_length=3)], "ab", "Expected `str` of length >= 3"),
    (dict[Annotated[str, Field(min_length=3)], int], {"ab": 1}, "String should have at least 3 characters"),
    (dict[Annotated[str, Field(min_length=3)], Holder], {"ab": {"model": ONE}}, "at least 3 characters"),
    (Annotated[str | bytes, Field(min_length=3)], "ab", "at least 3"),
    (Annotated[str | bytes, Meta(min_length=3)], "ab", "length >= 3"),
    (Annotated[Cat | Dog | bytes, Field(discriminator="kind")], {"kind": "cow"}, "'cow'"),
    (Annotated[Any, AfterValidator(lambda one: int(one))], "q", "invalid literal"),
    (Holder | Model | None, {"x": -1}, "at `$.x`"),
    (PositiveInt, 0, "Expected `int` >= 1"),
    (Annotated[int, AfterValidator(lambda one: one if one % 2 else 1 / 0)], "q", "valid integer"),
]


@pytest.mark.parametrize(("annotation", "sent", "why"), BAD, ids=lambda value: str(value)[:60])
def test_what_does_not_fit_is_an_invalid_payload_that_says_where(annotation: Any, sent: Any, why: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        payload_decoder(annotation)(raw(sent))
    assert why in str(caught.value)


def test_constraints_on_bytes_are_checked_whoever_made_them() -> None:
    for constraint in (Field(max_length=2), annotated_types.MaxLen(2), Meta(max_length=2)):
        for annotation in (Annotated[bytes, constraint], Annotated[str | bytes, constraint]):
            decode = payload_decoder(annotation)
            assert decode(b"ab") == b"ab"
            with pytest.raises(InvalidPayload):
                decode(b"abc")
    assert payload_decoder(Annotated[Cat | bytes, "documented"])(b"abc") == b"abc"
    assert payload_decoder(Annotated[Any, AfterValidator(len)])(b"abc") == 3


class WithMeta(BaseModel):
    text: Annotated[str, Meta(min_length=3)]


class Unknown:
    """A class that says nothing about its fields."""


class WithUnknown(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    unknown: Unknown


class MakesUnknown(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    unknown: Annotated[Unknown, BeforeValidator(lambda _: Unknown())]
    perhaps: Unknown | None = None


def test_a_validator_may_make_of_json_what_is_none() -> None:
    assert isinstance(payload_decoder(MakesUnknown)(raw({"unknown": 1})).unknown, Unknown)


REFUSED: list[tuple[Any, str]] = [
    (Annotated[str, Meta(min_length=3), Field(max_length=5)], "does not go together"),
    (Annotated[Holder, BeforeValidator(dict)], "does not go together"),
    (WithMeta, "WithMeta.text: pydantic does not check msgspec.Meta: use pydantic's Field"),
    (list[WithMeta], "WithMeta.text"),
    (Annotated[str, annotated_types.Predicate(str.islower)], "is not checked here"),
    (Annotated[Holder, Meta(min_length=3)], "constraints are not checked on Holder"),
    (Model | Unknown, "pydantic cannot decode"),
    (list[Unknown], "make it a Struct"),
    (type[Model], "an instance of Model cannot be decoded from JSON"),
    (WithUnknown, "an instance of Unknown cannot be decoded from JSON"),
    (list[WithUnknown] | None, "an instance of Unknown cannot be decoded from JSON"),
    (Annotated[Raw, Field(min_length=3)], "does not go together"),
    (dict[str, Holder | Unknown], "Unknown: JSON cannot be decoded to this type"),
]


@pytest.mark.parametrize(("annotation", "why"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_would_not_be_checked_is_refused_when_the_handler_is_defined(annotation: Any, why: str) -> None:
    with pytest.raises(TypeError) as caught:
        payload_decoder(annotation)
    assert why in str(caught.value)


def test_a_model_that_is_completed_later_is_decoded_then() -> None:
    class Early(BaseModel):
        late: "list[Late]"

    decode = payload_decoder(list[Early])

    class Late(BaseModel):
        x: int

    Early.model_rebuild(_types_namespace={"Late": Late})
    assert decode(raw([{"late": [{"x": 1}]}]))[0].late == [Late(x=1)]


def test_thousands_of_errors_are_neither_described_nor_sent() -> None:
    with pytest.raises(InvalidPayload) as caught:
        payload_decoder(list[Model])(Raw(b"[" + b"{}," * 4_999 + b"{}]"))
    assert str(caught.value).startswith("5000 validation errors")


@pytest.mark.parametrize("annotation", [Literal["a"], dict[str, Model], Holder, Mixed], ids=str)
def test_a_detail_is_short_however_much_of_the_payload_is_in_it(annotation: Any) -> None:
    long = "x" * 100_000
    for sent in (long, {long: long, "value": long}, {"model": long, "value": {"model": long}}):
        with pytest.raises(InvalidPayload) as caught:
            payload_decoder(annotation)(raw(sent))
        assert len(str(caught.value)) <= MOST_DETAIL


def test_deep_nesting_is_an_invalid_payload_for_pydantic_as_well() -> None:
    for annotation in (Model, list[Model], Holder, Mixed, Tree, RootModel[Any]):
        for text in ("[" * 50_000 + "]" * 50_000, '{"value":' * 50_000 + "1" + "}" * 50_000):
            with pytest.raises(InvalidPayload):
                payload_decoder(annotation)(Raw(text.encode()))


class Left(Struct):
    inner: "list[Left | Right]"
    model: Model | None = None


class Right(Struct):
    inner: "list[Left | Right]"
    model: Model | None = None


def test_a_union_that_contains_itself_is_not_tried_for_ever() -> None:
    decode = payload_decoder(Left)
    assert decode(Raw(b'{"inner":[{"inner":[],"model":{"x":1}}]}')) == Left([Left([], Model(x=1))])
    deep: Any = {"inner": [{"wrong": 1}]}
    for _ in range(40):
        deep = {"inner": [deep]}
    with pytest.raises(InvalidPayload, match="Too many union members tried"):
        decode(raw(deep))
    assert decode(Raw(b'{"inner":[]}')) == Left([])


class Part:
    """A type for the property tests, with JSON that fits it and JSON in which one number is wrong."""

    def __init__(self, annotation: Any, good: Any, bad: Any) -> None:
        self.annotation = annotation
        self.good = good
        self.bad = bad


LEAVES = [
    Part(Model, {"x": 1}, {"x": -1}),
    Part(Order, {"item": "tea", "count": 2}, {"item": "tea", "count": 0}),
    Part(Annotated[int, Field(ge=0)], 1, -1),
    Part(Annotated[int, annotated_types.Ge(0)], 1, -1),
    Part(Annotated[int, Meta(ge=0)], 1, -1),
    Part(Converted, {"number": 1, "name": "n"}, {"number": "q", "name": "n"}),
    Part(int, 1, "q"),
    Part(Holder, {"model": {"x": 1}, "other": None}, {"model": {"x": -1}, "other": None}),
]


def _around(inner: Part, how: str) -> Part:
    kind, good, bad = inner.annotation, inner.good, inner.bad
    if how == "list":
        return Part(list[kind], [good, good], [good, bad])
    if how == "dict":
        return Part(dict[str, kind], {"a": good}, {"a": bad})
    if how == "tuple":
        return Part(tuple[kind, int], [good, 1], [bad, 1])
    if how == "optional":
        return Part(kind | None if not isinstance(kind, str) else kind, good, bad)
    fields = {"a": good, "b": 1}, {"a": bad, "b": 1}
    if how == "struct":
        return Part(msgspec.defstruct("S", [("a", kind), ("b", int)]), *fields)
    if how == "array":
        return Part(msgspec.defstruct("R", [("a", kind), ("b", int)], array_like=True), [good, 1], [bad, 1])
    if how == "attrs":
        made = attrs.make_class("A", {"a": attrs.field(type=kind), "b": attrs.field(type=int)})
        return Part(made, *fields)
    return Part(dataclasses.make_dataclass("D", [("a", kind), ("b", int)]), *fields)


HOW = ["list", "dict", "tuple", "optional", "struct", "array", "attrs", "dataclass"]
parts = st.recursive(
    st.sampled_from(LEAVES), lambda inner: st.builds(_around, inner, st.sampled_from(HOW)), max_leaves=6
)


@bounded
@given(parts)
def test_whatever_nesting_takes_what_fits_gives_it_back_and_refuses_the_rest(part: Part) -> None:
    decode = payload_decoder(part.annotation)
    decoded = decode(raw(part.good))
    assert json.loads(bytes(encode_payload(decoded))) == part.good
    assert json.loads(bytes(encode_payload({"a": [decoded]}))) == {"a": [part.good]}
    with pytest.raises(InvalidPayload):
        decode(raw(part.bad))


PROGRAM = """
import sys
from typing import Annotated
import attrs
from msgspec import Meta, Struct
from starlette_channels import Channels, Socket, channel
from starlette_channels.wire.messages import encode_payload
from types import MappingProxyType

@attrs.define
class Converted:
    number: int = attrs.field(converter=int)

class Holder(Struct):
    inner: Converted

@channel("room:{number}")
async def room(socket: Socket, payload: Holder | None, number: Annotated[int, Meta(ge=1)]) -> None: ...

Channels([room])
assert bytes(encode_payload(MappingProxyType({"a": Holder(Converted("1"))}))) == b'{"a":{"inner":{"number":1}}}'
assert "pydantic" not in sys.modules
"""


def test_pydantic_is_not_imported_unless_the_application_has() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], check=True)
