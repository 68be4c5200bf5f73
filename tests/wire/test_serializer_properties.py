"""The wire formats, whatever is sent: properties of all frames, and mutated ones by the thousand."""

import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from starlette_channels import V1, V2, ProtocolError
from starlette_channels.wire.messages import Frame, encode_payload
from starlette_channels.wire.serializers import Serializer
from tests.support.effort import some
from tests.wire.test_serializers import as_bytes, binary_push, fields, read_binary

bounded = settings(
    max_examples=some(of=120),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
v1, v2 = V1(), V2()
names = st.text(st.characters(codec="utf-8"), max_size=20)
refs = st.none() | names | st.integers() | st.booleans() | st.lists(st.integers(), max_size=2)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(names, json_values, max_size=4)


def assert_decodes_or_raises_protocol_error(frame: Frame) -> None:
    for serializer in (v1, v2):
        try:
            message = serializer.decode(frame)
        except ProtocolError:
            continue
        assert isinstance(message.payload, Raw | bytes)


@bounded
@given(st.text(st.characters(), max_size=80) | st.binary(max_size=80))
def test_any_frame_is_a_message_or_a_protocol_error(frame: Frame) -> None:
    assert_decodes_or_raises_protocol_error(frame)


@bounded
@given(st.lists(st.sampled_from([*'[]{}:," \\', "null", "1", "-", "e9", '"topic"', '"ref"', "\ud800", "\\ud800"])))
def test_any_heap_of_json_is_a_message_or_a_protocol_error(pieces: list[str]) -> None:
    assert_decodes_or_raises_protocol_error("".join(pieces))


@bounded
@given(names, names, names, names, st.binary())
def test_a_binary_push_of_a_client_is_read_as_it_was_written(
    join_ref: str, ref: str, topic: str, event: str, data: bytes
) -> None:
    assert fields(v2.decode(binary_push(join_ref, ref, topic, event, data))) == (join_ref, ref, topic, event, data)


@bounded
@given(names, names, names, names, st.binary())
def test_a_client_reads_binary_frames_as_they_were_written(
    join_ref: str, ref: str, topic: str, name: str, data: bytes
) -> None:
    assert read_binary(as_bytes(v2.push(join_ref, None, topic, name, data))) == (0, join_ref, topic, name, data)
    assert read_binary(as_bytes(v2.reply(join_ref, ref, topic, name, data))) == (1, join_ref, ref, topic, name, data)
    assert read_binary(as_bytes(v2.broadcast(topic, name, data))) == (2, topic, name, data)


@bounded
@given(refs, refs, names, names, objects, json_values)
def test_text_frames_are_json_that_reads_back_as_the_same_values(
    join_ref: Any, ref: Any, topic: str, name: str, payload: dict[str, Any], response: Any
) -> None:
    body, answer = encode_payload(payload), encode_payload(response)
    envelope = {"status": name, "response": response}
    assert json.loads(v2.push(join_ref, ref, topic, name, body)) == [join_ref, ref, topic, name, payload]
    assert json.loads(v2.reply(join_ref, ref, topic, name, answer)) == [join_ref, ref, topic, "phx_reply", envelope]
    assert json.loads(v2.broadcast(topic, name, body)) == [None, None, topic, name, payload]
    assert json.loads(v1.push(join_ref, ref, topic, name, answer)) == v1_object(topic, name, response, ref)
    assert json.loads(v1.reply(join_ref, ref, topic, name, answer)) == v1_object(topic, "phx_reply", envelope, ref)
    assert json.loads(v1.broadcast(topic, name, answer)) == v1_object(topic, name, response, None)


def v1_object(topic: str, event: str, payload: Any, ref: Any) -> dict[str, Any]:
    return {"topic": topic, "event": event, "payload": payload, "ref": ref}


@bounded
@given(refs, refs, json_values, json_values, json_values)
def test_a_text_frame_of_a_client_keeps_its_values(
    join_ref: Any, ref: Any, topic: Any, event: Any, payload: Any
) -> None:
    assert fields(v2.decode(json.dumps([join_ref, ref, topic, event, payload]))) == (
        *(join_ref, ref, topic, event),
        payload,
    )
    one = {"join_ref": join_ref, "ref": ref, "topic": topic, "event": event, "payload": payload}
    assert fields(v1.decode(json.dumps(one, ensure_ascii=False))) == (join_ref, ref, topic, event, payload)


VALID = {
    "1.0": [
        b'{"topic":"room:lobby","event":"phx_join","payload":{"a":{"b":[]}},"ref":"1","join_ref":"1"}',
        b'{"topic":"phoenix","event":"heartbeat","payload":{},"ref":null}',
        '{"topic":"räume","event":"e","payload":{"\\u00fc":"\\ud83d\\ude00","ä":"😀"},"ref":7}'.encode(),
        b' { "ref" : 1.5e3 , "payload" : [ true , false , null ] , "event" : "e" , "topic" : "t" , "more" : {} } ',
    ],
    "2.0": [
        b'["1","2","room:lobby","new_msg",{"body":"hi","n":[1,2.5e3,null,true]}]',
        '["j","r","räume","e",{"\\u00fc":"\\ud83d\\ude00","ä":"😀"}]'.encode(),
        binary_push("1", "18", "room:a", "bin", b"\x00\xff"),
        binary_push("", "", "räume", "e", b"some more data"),
    ],
}


def mutated(rng: random.Random, data: bytes) -> bytes:
    frame = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(frame) + 1)
        match rng.randrange(6):
            case 0:
                frame[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                frame[place:place] = rng.randbytes(rng.randint(1, 4))
            case 2:
                del frame[place : place + rng.randint(1, 6)]
            case 3:
                frame[place:place] = frame[rng.randrange(len(frame) + 1) :][:20]
            case 4:
                frame[place:place] = rng.choice([b'"', b"[", b"]", b"{", b"}", b",", b"\\u", b"\\ud800", b"1e", b"-"])
            case _:
                if place < len(frame):
                    frame[place] ^= 1 << rng.randrange(8)
    return bytes(frame)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("serializer", [v1, v2], ids=["v1", "v2"])
def test_mutated_frames_are_messages_or_protocol_errors(serializer: Serializer, seed: int) -> None:
    rng = random.Random(seed)
    outcomes = {"messages": 0, "errors": 0}
    for number in range(10_000):
        data = mutated(rng, VALID[serializer.version][number % 4])
        for frame in (data, data.decode("utf-8", "surrogateescape")):
            try:
                serializer.decode(frame)
            except ProtocolError:
                outcomes["errors"] += 1
            else:
                outcomes["messages"] += 1
    assert min(outcomes.values()) > 500, outcomes
