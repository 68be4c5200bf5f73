"""Query strings with brackets, as phoenix.js writes them and Phoenix reads them."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from starlette_channels import Handshake
from starlette_channels.wire.query import MAX_DEPTH, MAX_PAIRS, decode_query, encode_query
from tests.support.effort import some

bounded = settings(
    max_examples=some(of=200),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize(
    ("query", "params"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("a=1&b=2", {"a": "1", "b": "2"}),
        ("a=1&a=2", {"a": "2"}),
        ("a", {"a": ""}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("=x", {"": "x"}),
        ("&&a=1&&b=2&", {"a": "1", "b": "2"}),
        ("a[b]=1", {"a": {"b": "1"}}),
        ("a[b]", {"a": {"b": ""}}),
        ("a[b]=1&a[c]=2", {"a": {"b": "1", "c": "2"}}),
        ("a[b]=1&a[b]=2", {"a": {"b": "2"}}),
        ("a[b][c][d]=1", {"a": {"b": {"c": {"d": "1"}}}}),
        ("a[]=x&a[]=y", {"a": ["x", "y"]}),
        ("a[]=x&b=1&a[]=y", {"a": ["x", "y"], "b": "1"}),
        ("a[]", {"a": [""]}),
        ("a[b][]=x&a[b][]=y", {"a": {"b": ["x", "y"]}}),
        ("a[0]=q&a[1]=r", {"a": {"0": "q", "1": "r"}}),
        ("a[0][b]=q", {"a": {"0": {"b": "q"}}}),
        ("a[][b]=1&a[][b]=2", {"a": [{"b": "1"}, {"b": "2"}]}),
        ("token=true&n=7", {"token": "true", "n": "7"}),
        ("a=1+2%2B3", {"a": "1 2+3"}),
        ("a%20b=1", {"a b": "1"}),
        ("a%5Bb%5D=1", {"a": {"b": "1"}}),
        ("n%C3%A4me=%F0%9F%98%80", {"näme": "😀"}),
        ("a=%00", {"a": "\x00"}),
        ("vsn=2.0.0", {"vsn": "2.0.0"}),
    ],
)
def test_a_query_is_decoded_as_phoenix_decodes_it(query: str, params: dict[str, Any]) -> None:
    assert decode_query(query) == params


@pytest.mark.parametrize(
    ("query", "params"),
    [
        ("a=1&a[b]=2", {"a": {"b": "2"}}),
        ("a[b]=1&a=2", {"a": "2"}),
        ("a[]=1&a[b]=2", {"a": {"b": "2"}}),
        ("a[b]=1&a[]=2", {"a": ["2"]}),
        ("a[]=1&a=2", {"a": "2"}),
    ],
)
def test_of_two_shapes_of_one_name_the_later_wins(query: str, params: dict[str, Any]) -> None:
    assert decode_query(query) == params


@pytest.mark.parametrize("name", ["a[", "a]", "a[b", "a[b]c", "a[[b]]", "a[b]]", "[a]", "[]", "]", "a][b"])
def test_brackets_that_do_not_add_up_are_part_of_a_plain_name(name: str) -> None:
    assert decode_query(f"{name}=1") == {name: "1"}


@pytest.mark.parametrize("broken", ["%", "%2", "%zz", "%2g", "100%", "%%41", "%ff", "%C3", "%ED%A0%80", "\ud800"])
@pytest.mark.parametrize("place", ["a={}", "{}=1", "a[{}]=1", "fine=1&a=x{}"])
def test_a_malformed_escape_and_what_is_not_utf8_is_a_value_error(broken: str, place: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any ValueError is the endpoint's 400
        decode_query(place.format(broken))


def test_the_number_of_pairs_is_bounded_and_empty_ones_do_not_count() -> None:
    many = "&".join(f"k{number}=1" for number in range(MAX_PAIRS))
    assert len(decode_query(many + "&&&")) == MAX_PAIRS
    with pytest.raises(ValueError, match="too many parameters"):
        decode_query(many + "&one=more")


def test_the_depth_is_bounded() -> None:
    deepest = decode_query("a" + "[b]" * (MAX_DEPTH - 1) + "=1")
    for _ in range(MAX_DEPTH):
        (deepest,) = deepest.values()
    assert deepest == "1"
    with pytest.raises(ValueError, match="nested too deeply"):
        decode_query("a" + "[b]" * MAX_DEPTH + "=1")


@pytest.mark.parametrize(
    ("params", "query"),
    [
        ({"user": "Ann Ö", "vsn": "2.0.0"}, "user=Ann+%C3%96&vsn=2.0.0"),
        ({"a": {"b": ["x", "y"]}}, "a%5Bb%5D%5B%5D=x&a%5Bb%5D%5B%5D=y"),
        ({"a": None, "b": {"c": None}, "d": 1, "e": ("x",)}, "d=1&e%5B%5D=x"),
    ],
)
def test_parameters_are_encoded_with_brackets_and_none_is_left_out(params: dict[str, Any], query: str) -> None:
    assert encode_query(params) == query


texts = st.text(max_size=8)
names = st.text(st.characters(exclude_characters="[]", codec="utf-8"), min_size=1, max_size=8)
values = st.recursive(
    texts | st.lists(texts, min_size=1, max_size=4),
    lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3),
    max_leaves=8,
)


@bounded
@given(st.dictionaries(names, values, max_size=3))
def test_nested_objects_and_lists_of_strings_survive_encoding_and_decoding(params: dict[str, Any]) -> None:
    assert decode_query(encode_query(params)) == params


def assert_decodes_or_raises_value_error(query: str) -> None:
    try:
        params = decode_query(query)
    except ValueError:
        return
    pending: list[Any] = [params]
    while pending:
        node = pending.pop()
        match node:
            case dict():
                pending += node.values()
            case list():
                pending += node
            case _:
                assert isinstance(node, str)


@bounded
@given(st.text(st.characters()))
def test_any_text_decodes_to_strings_or_raises_value_error(query: str) -> None:
    assert_decodes_or_raises_value_error(query)


@bounded
@given(st.lists(st.sampled_from(["a", "b", "0", "[", "]", "[]", "=", "&", "+", "%41", "%5B", "%", "é"])).map("".join))
def test_any_heap_of_brackets_decodes_to_strings_or_raises_value_error(query: str) -> None:
    assert_decodes_or_raises_value_error(query)


def handshake(query: bytes, **path_params: str) -> Handshake:
    return Handshake({"type": "websocket", "query_string": query, "headers": []}, path_params)


def test_path_variables_win_over_the_query() -> None:
    params = handshake(b"region=eu&vsn=2.0.0", region="us").params
    assert params == {"region": "us", "vsn": "2.0.0"}


def test_utf8_that_a_client_did_not_escape_is_read_as_utf8() -> None:
    assert handshake("user=Jörg".encode()).params == {"user": "Jörg"}


def test_bytes_in_the_query_that_are_not_utf8_are_a_value_error() -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any ValueError is the endpoint's 400
        _ = handshake(b"user=\xff").params
