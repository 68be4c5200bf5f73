"""The wire formats, byte for byte, and what is no frame."""

import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Raw

from starlette_channels import V1, V2, ProtocolError, SerializerError
from starlette_channels.wire.messages import EMPTY, Frame, Message, encode_payload
from starlette_channels.wire.serializers import negotiate

if TYPE_CHECKING:
    from collections.abc import Callable

v1, v2 = V1(), V2()
DATA = b"\x00\xff"
HI = Raw(b'{"body":"hi"}')


def fields(message: Message) -> tuple[Any, ...]:
    """A message with its payload decoded by another decoder than ours, or its bytes."""
    payload = message.payload
    decoded: object = json.loads(bytes(payload)) if isinstance(payload, Raw) else payload
    return message.join_ref, message.ref, message.topic, message.event, decoded


def binary_push(join_ref: str, ref: str, topic: str, event: str, data: bytes) -> bytes:
    """A binary frame as a client writes it."""
    names = [name.encode() for name in (join_ref, ref, topic, event)]
    return bytes([0, *map(len, names)]) + b"".join(names) + data


def as_bytes(frame: Frame) -> bytes:
    assert isinstance(frame, bytes)
    return frame


def read_binary(frame: bytes) -> tuple[Any, ...]:
    """A binary frame as a client reads it: kind, names, data."""
    kind = frame[0]
    count = {0: 3, 1: 4, 2: 2}[kind]
    names: list[str] = []
    position = 1 + count
    for size in frame[1 : 1 + count]:
        names.append(frame[position : position + size].decode())
        position += size
    return kind, *names, frame[position:]


class TestNegotiation:
    @pytest.mark.parametrize("vsn", ["2.0.0", "2.0.9", "2.0.10", "2.0.1-rc.1", "2.0.4+build5", "2.0.1-rc.1+b.7"])
    def test_version_2_0_at_any_patch_level_is_v2(self, vsn: str) -> None:
        assert negotiate(vsn, (v1, v2)) is v2

    @pytest.mark.parametrize("vsn", ["1.0.0", "1.0.5", "1.0.0+x"])
    def test_version_1_0_at_any_patch_level_is_v1(self, vsn: str) -> None:
        assert negotiate(vsn, (v2, v1)) is v1

    @pytest.mark.parametrize(
        "vsn",
        [
            *("1.1.0", "2.1.0", "3.0.0", "2.0", "2", "", "2.0.0-rc.1", "1.0.0-dev", "2.1.0-rc.1", "0.0.0"),
            *("v2.0.0", " 2.0.0", "2.0.0 ", "2.0.0\n", "2.0.0.0", "2..0", "2.0.x", "-2.0.0", "2.0.0-", "2.0.0+", "x"),
            *(["2.0.0"], {"0": "2.0.0"}, None, 2, 2.0),
        ],
        ids=repr,
    )
    def test_everything_else_is_refused(self, vsn: object) -> None:
        assert negotiate(vsn, (v1, v2)) is None

    @pytest.mark.parametrize("vsn", ["\uff12.0.0", "2.0.\u0663", "02.0.0", "2.00.0", "2.0.01"])
    def test_only_plain_numbers_make_a_version(self, vsn: str) -> None:
        assert negotiate(vsn, (v1, v2)) is None

    def test_the_first_serializer_that_fits_is_taken(self) -> None:
        other = V2()
        assert negotiate("2.0.0", (v1, other, v2)) is other
        assert negotiate("2.0.0", (v1,)) is None
        assert negotiate("2.0.0", ()) is None

    def test_other_versions_can_be_added(self) -> None:
        class V3(V2):
            version = "3.1"

        v3 = V3()
        assert negotiate("3.1.4", (v1, v2, v3)) is v3
        assert negotiate("3.0.0", (v1, v2, v3)) is None


SENT_ARRAYS: list[Any] = [
    (v2.reply("1", "2", "t", "ok", EMPTY), ["1", "2", "t", "phx_reply", {"status": "ok", "response": {}}]),
    (v2.push("1", None, "t", "e", HI), ["1", None, "t", "e", {"body": "hi"}]),
    (v2.broadcast("t", "e", HI), [None, None, "t", "e", {"body": "hi"}]),
    (v2.push("1", "1", "t", "phx_close", EMPTY), ["1", "1", "t", "phx_close", {}]),
    (
        v2.push("1", "1", "t", "phx_error", encode_payload({"reason": "channel_crash"})),
        ["1", "1", "t", "phx_error", {"reason": "channel_crash"}],
    ),
    (
        v2.reply(None, "9", "phoenix", "ok", EMPTY),
        [None, "9", "phoenix", "phx_reply", {"status": "ok", "response": {}}],
    ),
]


ARRAYS: list[Any] = [
    ('["1","2","room:a","echo",{"n":1}]', ("1", "2", "room:a", "echo", {"n": 1})),
    ('[null,null,"t","e",null]', (None, None, "t", "e", None)),
    (' \n[ "1" ,\t"2", "t","e" , [] ]\r\n', ("1", "2", "t", "e", [])),
    ('["1","2","t","e",{},"more",[1]]', ("1", "2", "t", "e", {})),
    ('[1,2.5,3,true,"p"]', (1, 2.5, 3, True, "p")),
    ('[[1],{"a":1},{"t":1},["e"],4]', ([1], {"a": 1}, {"t": 1}, ["e"], 4)),
    ('["ü","\\u00fc","\\"","😀",{"ä":"\\n"}]', ("ü", "ü", '"', "😀", {"ä": "\n"})),
    (f'[{2**100},{-(2**70)},"t","e",{2**80}]', (2**100, -(2**70), "t", "e", 2**80)),
]


class TestVersion2Text:
    @pytest.mark.parametrize(
        ("frame", "expected"),
        ARRAYS,
        ids=lambda value: str(value)[:40],
    )
    def test_an_array_of_five_is_a_message_whatever_its_types(self, frame: str, expected: tuple[Any, ...]) -> None:
        decoded = fields(v2.decode(frame))
        assert decoded == expected
        assert [type(one) for one in decoded] == [type(one) for one in expected]

    @pytest.mark.parametrize(
        "frame",
        [
            *("", " ", "{nope", "7", "null", '"text"', "{}", "[]", '["1","2","t","e"]', '["1","2","t","e",{}', "[1,]"),
            *('["1","2","t","e",{}]x', '["1","2","t","e",{}][]', '["1","2","t\\ud800","e",{}]', "['1','2','t','e',{}]"),
            *('["1","2","t","e",nul]', '["1","2","t","e",{"a"}]', '["1","2","t","e",NaN]', "\ufeff[1,2,3,4,5]"),
            '{"topic":"t","event":"e","payload":{},"ref":"1"}',
            '["1","2","t","e",' + "[" * 100_000 + "]" * 100_000 + "]",
            "[" * 100_000,
            '["1",' + '{"a":' * 100_000 + "1" + "}" * 100_000 + ',"t","e",{}]',
            "[" + "9" * 10_000 + ',"1","t","e",{}]',
            '[1e999,"1","t","e",{}]',
            '["\ud800","1","t","e",{}]',
            '["1","1","t","e","\udfff"]',
        ],
        ids=lambda frame: ascii(frame)[:30],
    )
    def test_what_is_no_message_is_a_protocol_error(self, frame: str) -> None:
        with pytest.raises(ProtocolError):
            v2.decode(frame)

    @pytest.mark.parametrize(
        ("frame", "array"),
        SENT_ARRAYS,
        ids=["reply", "push", "broadcast", "closed", "crashed", "heartbeat reply"],
    )
    def test_every_kind_of_frame_has_its_array(self, frame: Frame, array: list[Any]) -> None:
        assert isinstance(frame, str)
        assert json.loads(frame) == array

    @pytest.mark.parametrize("response", [b"[]", b'"text"', b"null", b"1", b"true", b' {"a": 1}'])
    def test_a_response_may_be_any_json_value(self, response: bytes) -> None:
        frame = v2.reply("1", "2", "t", "created", Raw(response))
        assert json.loads(frame)[4] == {"status": "created", "response": json.loads(response)}

    @pytest.mark.parametrize(
        "ref", [None, "5", "", 5, 5.0, -1, True, False, [1, "a"], {"a": None}, 2**100, "ü"], ids=repr
    )
    def test_refs_go_back_as_they_came(self, ref: Any) -> None:
        message = v2.decode(json.dumps([ref, ref, "t", "e", {}]))
        join_ref, echoed, *_ = json.loads(v2.reply(message.join_ref, message.ref, "t", "ok", EMPTY))
        for one in (join_ref, echoed):
            assert one == ref
            assert type(one) is type(ref)

    @pytest.mark.parametrize("topic", [7, None, [1], {"a": 1}, True])
    def test_a_topic_that_is_no_string_goes_back_in_a_reply(self, topic: Any) -> None:
        assert json.loads(v2.reply(None, "1", topic, "error", EMPTY))[2] == topic

    @pytest.mark.parametrize("payload", [[], ["a"], "text", 1, None, True])
    def test_a_push_or_broadcast_of_anything_but_an_object_is_refused(self, payload: Any) -> None:
        body = encode_payload(payload)
        with pytest.raises(SerializerError, match="must be an object"):
            v2.push("1", None, "t", "e", body)
        with pytest.raises(SerializerError, match="must be an object"):
            v2.broadcast("t", "e", body)

    def test_raw_json_may_begin_with_space(self) -> None:
        assert json.loads(v2.broadcast("t", "e", Raw(b' \n\t\r{"a": 1} ')))[4] == {"a": 1}
        with pytest.raises(SerializerError):
            v2.broadcast("t", "e", Raw(b" \n[1]"))
        with pytest.raises(SerializerError):
            v2.broadcast("t", "e", Raw(b""))

    def test_text_that_is_not_ascii_is_sent_as_it_is(self) -> None:
        assert v2.broadcast("räume", "e", encode_payload({"ä": "😀"})) == '[null,null,"räume","e",{"ä":"😀"}]'


class TestVersion2Binary:
    def test_the_vectors_of_the_specification_hold_byte_for_byte(self) -> None:
        assert fields(v2.decode(bytes.fromhex("00 01 02 06 03 31 3138 726f6f6d3a61 62696e 00ff"))) == (
            *("1", "18", "room:a", "bin"),
            DATA,
        )
        assert v2.push("1", None, "room:a", "binp", DATA) == b"\x00\x01\x06\x04" + b"1" + b"room:a" + b"binp" + DATA
        assert v2.reply("1", "18", "room:a", "ok", DATA) == b"\x01\x01\x02\x06\x02" + b"1" + b"18" + b"room:aok" + DATA
        assert v2.broadcast("room:a", "bin", DATA) == b"\x02\x06\x03" + b"room:a" + b"bin" + DATA

    def test_fields_that_are_absent_have_no_bytes(self) -> None:
        assert v2.push(None, None, "t", "e", b"") == b"\x00\x00\x01\x01te"
        assert v2.reply(None, None, "t", "ok", DATA) == b"\x01\x00\x00\x01\x02tok" + DATA

    def test_an_empty_field_of_a_client_is_the_empty_string(self) -> None:
        assert fields(v2.decode(b"\x00\x00\x00\x00\x00")) == ("", "", "", "", b"")

    @pytest.mark.parametrize(
        ("ref", "text"),
        [(5, "5"), (0, "0"), (-3, "-3"), (2**70, str(2**70)), (1.5, "1.5"), (2.0, "2.0"), (True, "true"), ("ü", "ü")],
    )
    def test_a_ref_that_is_no_string_is_spelt_out(self, ref: Any, text: str) -> None:
        assert read_binary(as_bytes(v2.push(ref, None, "t", "e", DATA))) == (0, text, "t", "e", DATA)
        assert read_binary(as_bytes(v2.reply(ref, ref, ref, "ok", DATA))) == (1, text, text, text, "ok", DATA)

    @pytest.mark.parametrize("ref", [[1], {"a": 1}, []])
    def test_a_ref_that_has_no_spelling_is_a_serializer_error(self, ref: Any) -> None:
        with pytest.raises(SerializerError, match="does not fit a binary frame"):
            v2.push(ref, None, "t", "e", DATA)
        with pytest.raises(SerializerError, match="does not fit a binary frame"):
            v2.reply("1", ref, "t", "ok", DATA)

    @pytest.mark.parametrize("name", ["x" * 255, "é" * 127 + "x", "😀" * 63 + "xyz"], ids=len)
    def test_a_name_of_255_bytes_fits(self, name: str) -> None:
        for frame in (
            v2.push(name, None, name, name, DATA),
            v2.reply(name, name, name, name, DATA),
            v2.broadcast(name, name, DATA),
        ):
            assert set(read_binary(as_bytes(frame))[1:-1]) == {name}
        assert fields(v2.decode(binary_push(name, name, name, name, DATA))) == (name, name, name, name, DATA)

    @pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "😀" * 64], ids=len)
    def test_a_name_of_256_bytes_is_a_serializer_error_in_every_field(self, name: str) -> None:
        calls: list[Callable[[], Frame]] = [
            lambda: v2.push(name, None, "t", "e", DATA),
            lambda: v2.push("1", None, name, "e", DATA),
            lambda: v2.push("1", None, "t", name, DATA),
            lambda: v2.reply(name, "1", "t", "ok", DATA),
            lambda: v2.reply("1", name, "t", "ok", DATA),
            lambda: v2.reply("1", "1", name, "ok", DATA),
            lambda: v2.reply("1", "1", "t", name, DATA),
            lambda: v2.broadcast(name, "e", DATA),
            lambda: v2.broadcast("t", name, DATA),
        ]
        for call in calls:
            with pytest.raises(SerializerError, match="more than 255 bytes"):
                call()
        assert json.loads(v2.push("1", None, name, name, EMPTY))[2:4] == [name, name], "text frames have no such limit"

    @pytest.mark.parametrize(
        "frame",
        [
            *(b"", b"\x00", b"\x00\x00\x00\x00", b"\x00\x01\x00\x00\x00", b"\x00\x00\x00\x05\x00abcd"),
            *(b"\x01\x00\x00\x00\x00", b"\x02\x00\x00\x00\x00", b"\x03\x00\x00\x00\x00", b"\xff" * 20),
            *(b"\x00\x01\x01\x01\x01abc", b"\x00\xff\xff\xff\xff" + b"x" * 1019),
            *(b"\x00\x00\x00\x01\x00\xff", b"\x00\x01\x01\x01\x01\xc3\xa9xx", b"\x00\x03\x00\x00\x00\xed\xa0\x80"),
            b'["1","2","t","e",{}]',
        ],
        ids=lambda frame: frame.hex()[:20],
    )
    def test_what_is_no_binary_push_is_a_protocol_error(self, frame: bytes) -> None:
        with pytest.raises(ProtocolError):
            v2.decode(frame)

    def test_a_name_of_the_server_that_is_no_unicode_is_a_serializer_error(self) -> None:
        for body in (DATA, HI):
            with pytest.raises(SerializerError):
                v2.broadcast("\ud800", "e", body)


OBJECTS: list[Any] = [
    ('{"topic":"t","event":"e","payload":{"n":1},"ref":"1"}', (None, "1", "t", "e", {"n": 1})),
    ('{"topic":"t","event":"e","payload":[],"ref":1,"join_ref":"j"}', ("j", 1, "t", "e", [])),
    (' {"ref":null,"payload":null,"event":null,"topic":null,"x":[{}]} ', (None, None, None, None, None)),
    (b'{"topic":"t\xc3\xa4","event":"e","payload":"p","ref":"1"}', (None, "1", "tä", "e", "p")),
    (f'{{"topic":7,"event":[],"payload":1,"ref":{2**90}}}', (None, 2**90, 7, [], 1)),
]


SENT_OBJECTS: list[Any] = [
    (v1.reply("j", "1", "t", "ok", EMPTY), ["t", "phx_reply", {"status": "ok", "response": {}}, "1"]),
    (v1.push("j", None, "t", "e", HI), ["t", "e", {"body": "hi"}, None]),
    (v1.broadcast("t", "e", HI), ["t", "e", {"body": "hi"}, None]),
    (v1.push("j", "j", "t", "phx_close", EMPTY), ["t", "phx_close", {}, "j"]),
    (v1.push(None, None, "t", "phx_close", EMPTY), ["t", "phx_close", {}, None]),
    (
        v1.push("j", "j", "t", "phx_error", encode_payload({"reason": "channel_crash"})),
        ["t", "phx_error", {"reason": "channel_crash"}, "j"],
    ),
    (v1.reply(None, 9, "phoenix", "ok", EMPTY), ["phoenix", "phx_reply", {"status": "ok", "response": {}}, 9]),
]


class TestVersion1:
    @pytest.mark.parametrize(
        ("frame", "expected"),
        OBJECTS,
        ids=str,
    )
    def test_an_object_with_four_keys_is_a_message_in_a_frame_of_either_kind(
        self, frame: Frame, expected: tuple[Any, ...]
    ) -> None:
        assert fields(v1.decode(frame)) == expected

    @pytest.mark.parametrize("missing", ["topic", "event", "payload", "ref"])
    def test_an_object_without_one_of_the_keys_is_a_protocol_error(self, missing: str) -> None:
        message: dict[str, Any] = {"topic": "t", "event": "e", "payload": {}, "ref": "1", "join_ref": None}
        del message[missing]
        with pytest.raises(ProtocolError, match=missing):
            v1.decode(json.dumps(message))

    @pytest.mark.parametrize(
        "frame",
        [
            *("", "{nope", "7", "null", "[]", "{}", '["1","2","t","e",{}]', b"", b"\x00\x00\x00\x00\x00", b"\xff"),
            b'{"topic":"\xff","event":"e","payload":{},"ref":"1"}',
            '{"topic":"\ud800","event":"e","payload":{},"ref":"1"}',
            '{"topic":"t","event":"e","ref":"1","payload":' + "[" * 100_000 + "]" * 100_000 + "}",
            '{"x":' * 100_000,
        ],
        ids=lambda frame: ascii(frame)[:30],
    )
    def test_what_is_no_message_is_a_protocol_error(self, frame: Frame) -> None:
        with pytest.raises(ProtocolError):
            v1.decode(frame)

    @pytest.mark.parametrize(
        ("frame", "expected"),
        SENT_OBJECTS,
        ids=["reply", "push", "broadcast", "closed", "closed without join_ref", "crashed", "heartbeat reply"],
    )
    def test_every_kind_of_frame_is_an_object_with_four_keys(self, frame: str, expected: list[Any]) -> None:
        assert json.loads(frame) == dict(zip(("topic", "event", "payload", "ref"), expected, strict=True))

    @pytest.mark.parametrize("payload", [[], [1], "text", None, 7])
    def test_a_payload_may_be_any_json_value(self, payload: Any) -> None:
        assert json.loads(v1.broadcast("t", "e", encode_payload(payload)))["payload"] == payload
        assert json.loads(v1.push("j", None, "t", "e", encode_payload(payload)))["payload"] == payload

    def test_bytes_cannot_be_expressed(self) -> None:
        calls: list[Callable[[], Frame]] = [
            lambda: v1.broadcast("t", "e", DATA),
            lambda: v1.push("j", None, "t", "e", DATA),
            lambda: v1.reply("j", "1", "t", "ok", DATA),
        ]
        for call in calls:
            with pytest.raises(SerializerError, match="no binary payloads"):
                call()
