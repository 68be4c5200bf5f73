"""Payloads on their way out, refs, replies and sizes."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from datetime import date
from typing import Any

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw, Struct

from starlette_channels import Reply, SerializerError
from starlette_channels.wire.messages import EMPTY, encode_answer, encode_payload, frame_size, same_ref, shown
from tests.support.effort import some

bounded = settings(
    max_examples=some(of=100),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


class Point(Struct):
    x: int


@dataclass
class Size:
    width: int


@attrs.define
class Colour:
    name: str


class Model(pydantic.BaseModel):
    day: date


PAYLOADS: list[Any] = [
    ({}, "{}"),
    ({"ä": [1, None, "ü"]}, '{"ä":[1,null,"ü"]}'),
    (OrderedDict(a=1), '{"a":1}'),
    (Point(1), '{"x":1}'),
    (Size(2), '{"width":2}'),
    (Colour("red"), '{"name":"red"}'),
    (Model(day=date(2024, 2, 29)), '{"day":"2024-02-29"}'),
    ({"models": [Model(day=date(2024, 2, 29))]}, '{"models":[{"day":"2024-02-29"}]}'),
    ([1, 2**100], "[1,1267650600228229401496703205376]"),
    (None, "null"),
    ("text", '"text"'),
]


@pytest.mark.parametrize(("payload", "text"), PAYLOADS)
def test_a_payload_is_encoded_as_json_once(payload: object, text: str) -> None:
    body = encode_payload(payload)
    assert isinstance(body, Raw)
    assert bytes(body).decode() == text


def test_bytes_and_raw_json_travel_as_they_are() -> None:
    data, raw = b"\x00\xff", Raw(b'{"a":1}')
    assert encode_payload(data) is data
    assert encode_payload(raw) is raw
    assert encode_payload(bytearray(data)) == data
    assert type(encode_payload(bytearray(data))) is bytes


@pytest.mark.parametrize("payload", [object(), {"a": object()}, {(1, 2): 3}, 1j, lambda: None])
def test_what_has_no_json_form_is_a_type_error(payload: object) -> None:
    with pytest.raises(TypeError):
        encode_payload(payload)


@pytest.mark.parametrize("payload", [{"a": "\ud800"}, {"\udfff": 1}, ["\udc80"]])
def test_text_that_is_no_unicode_is_a_serializer_error(payload: object) -> None:
    with pytest.raises(SerializerError, match="lone surrogates"):
        encode_payload(payload)


@bounded
@given(json_values)
def test_an_encoded_payload_reads_back_as_the_same_json(value: Any) -> None:
    assert json.loads(bytes(encode_payload(value))) == value


ANSWERS: list[Any] = [
    {"a": 1},
    OrderedDict(a=1),
    Point(1),
    Size(2),
    Colour("red"),
    Model(day=date.min),
    Raw(b"{}"),
    b"",
    {},
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_a_returned_payload_is_the_reply_ok(answer: object) -> None:
    assert encode_answer(answer) == ("ok", encode_payload(answer))


def test_a_returned_reply_stays_and_none_is_an_empty_ok() -> None:
    status, body = encode_answer(Reply("created", [1, 2]))
    assert (status, bytes(body)) == ("created", b"[1,2]")
    assert encode_answer(None) == ("ok", EMPTY)
    assert bytes(EMPTY) == b"{}"


@pytest.mark.parametrize("answer", [1, 1.5, True, "text", [1], (1,), {1}, object(), ("ok", {})])
def test_a_handler_that_returns_anything_else_is_told_what_to_return(answer: object) -> None:
    with pytest.raises(TypeError, match=f"returned {type(answer).__name__}: return a dict, a Struct") as caught:
        encode_answer(answer)
    assert 'Reply("ok", ...)' in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", 1),
        (1, True),
        (0, False),
        (1, 1.0),
        (1.0, True),
        (None, ""),
        (None, False),
        (None, 0),
        ([], {}),
        ([1], ["1"]),
        ([1], [1.0]),
        ([1], [True]),
        ({"a": 1}, {"a": 1.0}),
        ({"a": [0]}, {"a": [False]}),
        ([1, 2], [2, 1]),
        ("a", "A"),
        (2**70, 2**70 + 1),
    ],
)
def test_refs_of_another_type_or_value_differ(one: Any, other: Any) -> None:
    assert not same_ref(one, other)
    assert not same_ref(other, one)


@bounded
@given(json_values)
def test_a_ref_is_the_same_as_another_decoding_of_it_whatever_the_order_of_its_keys(ref: Any) -> None:
    text = json.dumps(ref)
    assert same_ref(msgspec.json.decode(text), msgspec.json.decode(text))
    if isinstance(ref, dict):
        backwards = dict(reversed(msgspec.convert(ref, dict[str, Any]).items()))
        assert same_ref(ref, backwards)


def identical(one: Any, other: Any) -> bool:
    """The rule written another way: the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(identical, one, other))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[key], other[key]) for key in one)  # pyright: ignore
    return one == other


similar = st.recursive(
    st.sampled_from([None, 0, 1, False, True, 1.0, 2.5, "", "1", 2**64, -1]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


@bounded
@given(similar, similar)
def test_two_refs_are_the_same_only_if_types_and_values_are(one: Any, other: Any) -> None:
    assert same_ref(one, other) == identical(one, other)


@pytest.mark.parametrize(("frame", "size"), [("", 0), ("abc", 3), ("ä", 2), ("😀", 4), (b"\xff\x00", 2), ("\ud800", 3)])
def test_the_size_of_a_frame_is_counted_in_bytes(frame: str | bytes, size: int) -> None:
    assert frame_size(frame) == size


def nested(depth: int) -> object:
    return "x" * 1_000 if depth == 0 else [nested(depth - 1)] * 6


LONG: list[Any] = [
    "x" * 10_000_000,
    "\n" * 1_000,
    nested(2),
    nested(6),
    {"k" * 1_000 + str(n): "v" * 1_000 for n in range(9)},
]


@pytest.mark.parametrize("value", [*LONG, 10**4_000, [[[[[[[[1]]]]]]]], "\ud800" * 1_000], ids=lambda _: "")
def test_what_a_client_sent_is_cut_for_the_log(value: Any) -> None:
    assert len(shown(value)) <= 120
    assert shown(value).isprintable()


@pytest.mark.parametrize("value", ["new_msg", "", None, 7, 1.5, True, ["a"], {"a": 1}, "two\nlines", "a'b"], ids=repr)
def test_what_is_short_is_shown_as_it_is(value: Any) -> None:
    assert shown(value) == repr(value)
