"""Refs, topic and event are small together, and a message keeps nothing of its frame that nobody needs."""

import json
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from starlette_channels.exceptions import ProtocolError
from starlette_channels.wire.headers import MAX_DEPTH, MOST_PADDING, is_plain, read_message
from starlette_channels.wire.messages import Message, message_size, same_ref
from starlette_channels.wire.serializers import V1, V2, Serializer, TextOnly
from tests.fuzzing.wire import binary

MOST = 4_096
SERIALIZERS: list[Serializer] = [V1(), V2(), TextOnly(V2())]

TOO_LARGE: dict[str, Any] = {
    "ASCII": "x" * MOST,
    "UTF-8": "é" * (MOST // 2),
    "escapes": "\x01" * MOST,
    "numbers": [1e15] * 1_000,
    "lists": [[]] * 2_000,
    "object": {str(n): n for n in range(1_000)},
}
NESTED: list[Any] = [[1, "a", None], {"b": [1.5, 2], "a": {}}, [[]] * 500]


def frame_of(serializer: Serializer, join_ref: Any, ref: Any, topic: Any, event: Any, rest: str = "{}") -> str:
    if serializer.version == "2.0":
        return json.dumps([join_ref, ref, topic, event])[:-1] + f",{rest}]"
    fields = {"topic": topic, "event": event, "ref": ref, "join_ref": join_ref}
    return json.dumps(fields)[:-1] + f',"payload":{rest}}}'


@pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("part", range(4), ids=["join_ref", "ref", "topic", "event"])
@pytest.mark.parametrize("value", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_part_of_the_header_may_not_have_the_size_of_a_payload(serializer: Serializer, part: int, value: Any) -> None:
    fields: list[Any] = ["", "", "", ""]
    fields[part] = value
    frame = frame_of(serializer, *[field or "1" for field in fields])
    with pytest.raises(ProtocolError, match="more than 4096"):
        read_message(serializer, frame, MOST)


@pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda one: type(one).__name__)
def test_the_parts_are_counted_together_to_the_byte(serializer: Serializer) -> None:
    join_ref, ref, topic, event = "j" * 1_000, "r" * 1_000, "t" * 1_000, "e" * (MOST - 3_000)
    message = read_message(serializer, frame_of(serializer, join_ref, ref, topic, event), MOST)
    assert [message.join_ref, message.ref, message.topic, message.event] == [join_ref, ref, topic, event]
    with pytest.raises(ProtocolError):
        read_message(serializer, frame_of(serializer, join_ref, ref, topic, event + "e"), MOST)


def test_a_binary_frame_has_the_same_limit() -> None:
    frame = binary("j" * 100, "r" * 100, "t" * 100, "e" * 100)
    assert read_message(V2(), frame, 400).event == "e" * 100
    with pytest.raises(ProtocolError, match="400 bytes together, more than 399"):
        read_message(V2(), frame, 399)


def test_without_a_limit_any_header_is_taken() -> None:
    ref = [[1]] * 100_000
    assert same_ref(
        read_message(V2(), frame_of(V2(), "1", ref, "a", "b"), sys.maxsize).ref, Raw(msgspec.json.encode(ref))
    )


@pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("ref", NESTED)
def test_lists_and_objects_in_refs_go_back_as_they_came_and_take_no_more_room(serializer: Serializer, ref: Any) -> None:
    message = read_message(serializer, frame_of(serializer, ref, ref, "a", "b"), MOST)
    reply = json.loads(serializer.reply(message.join_ref, message.ref, message.topic, "ok", Raw(b"{}")))
    assert (reply[1] if isinstance(reply, list) else reply["ref"]) == ref
    assert message_size(message) == 2 * len(msgspec.json.encode(ref)) + 4


def test_refs_that_are_objects_are_equal_whatever_the_order_of_their_keys() -> None:
    one, other = (
        read_message(V2(), f'[{ref},"1","a","b",{{}}]', MOST) for ref in ('{"a":1,"b":[1]}', '{"b": [1], "a": 1}')
    )
    assert same_ref(one.join_ref, other.join_ref)
    assert not same_ref(one.join_ref, read_message(V2(), '[{"a":1,"b":[1.0]},"1","a","b",{}]', MOST).join_ref)


@pytest.mark.parametrize(
    "frame",
    [
        '["1","2","a","b",{},"' + "x" * 100_000 + '"]',
        '["1","2","a","b",{}' + " " * 100_000 + "]",
        '["1","2","a","b",' + "\n" * 100_000 + "{}]",
        '{"topic":"a","event":"b","payload":{},"ref":"2","more":"' + "x" * 100_000 + '"}',
        '{"topic":"a","event":"b","payload":[0],"ref":"2"' + f',"payload":[{"1," * 50_000}1]' * 3 + ',"payload":{}}',
        '["1","2","a","b",{"x":"😀"},"' + "x" * 100_000 + '"]',
    ],
    ids=["sixth element", "blanks behind", "blanks before", "unknown key", "keys many times", "wide text"],
)
def test_what_is_no_part_of_the_message_is_not_kept_with_it(frame: str) -> None:
    before = sys.getrefcount(frame)
    message = read_message(V2() if frame[0] == "[" else V1(), frame, MOST)
    assert sys.getrefcount(frame) == before, "the frame is free"
    assert message_size(message) < 50


def test_text_that_is_not_ascii_is_not_kept_as_wide_as_its_widest_letter() -> None:
    frame = '["1","2","a","b",{"x":"😀' + "x" * 100_000 + '"}]'
    before = sys.getrefcount(frame)
    assert message_size(read_message(V2(), frame, MOST)) - 100_000 < 50
    assert sys.getrefcount(frame) == before


def test_a_large_payload_is_not_copied() -> None:
    frame = '["1","2","a","b",{"x":"' + "x" * 100_000 + '"}]'
    before = sys.getrefcount(frame)
    message = read_message(V2(), frame, MOST)
    assert sys.getrefcount(frame) == before + 1
    assert len(frame) - message_size(message) <= MOST_PADDING


class Odd(V2):
    """A serializer of an application's, which decodes what it likes."""

    def __init__(self, ref: object) -> None:
        self.ref: Any = ref

    def decode(self, frame: str | bytes) -> Message:
        return Message(None, self.ref, "a", "b", Raw(b"{}"))


def nest(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("ref", [object(), {1, object()}, "x" * 5_000, nest(MAX_DEPTH), nest(100_000)], ids=range(5))
def test_the_refs_of_other_serializers_are_checked_as_well(ref: object) -> None:
    with pytest.raises(ProtocolError):
        read_message(Odd(ref), "", MOST)
    del ref


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(json_values, json_values, st.text(max_size=9) | json_values, st.text(max_size=9), st.integers(0, 3_000))
def test_a_message_means_the_same_whether_its_frame_is_large_or_small(
    join_ref: Any, ref: Any, topic: Any, event: str, padding: int
) -> None:
    for serializer in (V1(), V2()):
        small = frame_of(serializer, join_ref, ref, topic, event)
        large = frame_of(serializer, join_ref, ref, topic, event, " " * padding + "{}")
        one, other = read_message(serializer, small, MOST), read_message(serializer, large, MOST)
        decoded = serializer.decode(small)
        for part in ("join_ref", "ref", "topic", "event"):
            assert same_ref(getattr(one, part), getattr(other, part))
            kept = getattr(one, part)
            assert (msgspec.json.decode(kept) if type(kept) is Raw else kept) == getattr(decoded, part)
        assert is_plain(one) == is_plain(decoded)
