"""Bad input, sent to a real uvicorn: each gets the answer that it deserves, and nobody else notices.

Two honest clients talk in a room of the same server throughout (`under_watch`), all that a hostile client receives is
searched for words of Python, and at the end the server must have forgotten everybody.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzzing.watch import ANY, LANES, hostile, under_watch
from tests.fuzzing.wire import Closed, Wire, binary, text
from tests.support.servers import Server, serve

V1_PATH = "/socket/websocket"
HEARTBEAT = text(None, "the end", "phoenix", "heartbeat")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=LANES, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve("tests.fuzzing.app:app", request.param) as server:
        yield server


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


MALFORMED: dict[str, str | bytes] = {
    "empty text": "",
    "spaces": "   ",
    "no JSON": "not json",
    "half an array": "[",
    "null": "null",
    "number": "5",
    "string": '"text"',
    "object": "{}",
    "version 1": '{"topic":"room:a","event":"echo","payload":{},"ref":"1"}',
    "no elements": "[]",
    "four elements": '["1","2","room:a","echo"]',
    "more than an array": '["1","2","room:a","echo",{}]]',
    "two arrays": '["1","2","room:a","echo",{}]["1","3","room:a","echo",{}]',
    "trailing comma": '["1","2","room:a","echo",{},]',
    "byte order mark": '\ufeff["1","2","room:a","echo",{}]',
    "single quotes": "['1','2','room:a','echo',{}]",
    "NaN": '["1","2","room:a","echo",NaN]',
    "control character in a payload": '["1","2","room:a","echo","\x01"]',
    "control character in a topic": '["1","2","room:\n","echo",{}]',
    "unknown escape": r'["1","2","room:a","echo","\q"]',
    "lone high surrogate": r'["1","2","room:a","echo",{"body":"\ud800"}]',
    "lone low surrogate": r'["1","2","room:a","echo",{"body":"\udc00"}]',
    "reversed surrogates": r'["1","2","room:a","echo",{"body":"\udc00\ud800"}]',
    "lone surrogate in a topic": r'["1","2","room:\ud800","phx_join",{}]',
    "lone surrogate in a ref": r'["1","\udfff","room:a","echo",{}]',
    "lone surrogate in a key": r'["1","2","room:a","echo",{"\ud800":1}]',
    "payload 100,000 levels deep": f'["1","2","room:a","echo",{nested(100_000)}]',
    "objects 100,000 levels deep": '["1","2","room:a","echo",' + '{"a":' * 100_000 + "1" + "}" * 101_000,
    "ref 100,000 levels deep": f'["1",{nested(100_000)},"room:a","echo",{{}}]',
    "sixth element 100,000 levels deep": f'["1","2","room:a","echo",{{}},{nested(100_000)}]',
    "never closed": "[" * 1_000_000,
    "a megabyte of a ref": f'[[{"1e15," * 190_000}1],"2","room:a","phx_join",{{}}]',
    "lists without end in a ref": f'["1",[{"[]," * 300_000}1],"room:a","echo",{{}}]',
    "event of 5,000 bytes": text("1", "2", "room:a", "e" * 5_000),
    "topic of 5,000 bytes": text("1", "2", "room:" + "é" * 2_500, "phx_join"),
    "refs and names of 4,100 bytes together": text("1" * 1_100, "2" * 1_000, "room:" + "a" * 1_000, "e" * 1_000),
    "ref beyond all numbers": '["1",1e999,"room:a","echo",{}]',
    "ref with 5,000 digits": f'["1",{"9" * 5_000},"room:a","echo",{{}}]',
    "empty binary": b"",
    "binary of zeros": b"\0\0\0\0",
    "binary that is a reply": b"\1" + binary("1", "2", "room:a", "bin")[1:],
    "binary that is a broadcast": b"\2\6\3room:abinx",
    "binary of an unknown kind": b"\xff" * 100,
    "binary shorter than it says": binary("1", "2", "room:a", "bin")[:-1],
    "binary names longer than it": b"\0\xff\xff\xff\xff" + b"x" * 100,
    "binary topic that is not UTF-8": b"\0\1\1\2\3" + b"12\xff\xfebin",
    "binary event cut inside a letter": b"\0\1\1\6\1" + b"12room:a\xc3" + b"\xa9",
    "JSON in a binary frame": text("1", "2", "room:a", "echo").encode(),
    "bytes of all kinds": bytes(range(5, 256)) * 64,
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", MALFORMED)
async def test_what_cannot_be_decoded_closes_its_own_connection_with_1011(server: Server, name: str) -> None:
    async with under_watch(server, malformed_message=1), hostile(server) as client:
        await client.join("room:a")
        client.send(MALFORMED[name], HEARTBEAT)
        closed = await client.closed()
        assert (closed.code, closed.reason) == (1011, "malformed_message")
        assert not client.unread


async def outcome(client: Wire) -> tuple[int, str] | None:
    """How the connection was closed, or `None` if the heartbeat is answered."""
    try:
        while not str(await client.receive()).startswith('[null,"the end"'):
            pass
    except Closed as closed:
        return closed.code, closed.reason
    return None


@pytest.mark.anyio
@pytest.mark.parametrize("element", [0, 1, 2, 3, 4])
async def test_depths_at_the_limit_of_what_can_be_decoded_are_answered_or_end_with_1011(
    server: Server, element: int
) -> None:
    codes = ("unmatched_topic", "unmatched_event", "stale_message", "invalid_payload")
    async with under_watch(server, **dict.fromkeys(codes, ANY)) as counted:
        counted["malformed_message"] = 0
        for levels in (*range(960, 1_000), 2_000, 5_000, 10_000, 20_000):
            elements = ['"1"', '"2"', '"room:a"', '"echo"', "{}"]
            elements[element] = nested(levels)
            async with hostile(server) as client:
                await client.join("room:a")
                client.send(f"[{','.join(elements)}]", HEARTBEAT)
                end = await outcome(client)
                assert end in (None, (1011, "malformed_message"))
                counted["malformed_message"] += end is not None


MALFORMED_V1: dict[str, str | bytes] = {
    "empty": "",
    "array": '["1","2","room:a","echo",{}]',
    "no keys": "{}",
    "no ref": '{"topic":"room:a","event":"echo","payload":{}}',
    "no payload": '{"topic":"room:a","event":"echo","ref":"1"}',
    "no topic": '{"event":"echo","payload":{},"ref":"1"}',
    "bytes that are no JSON": b"\0\1\2\3",
    "bytes that are not UTF-8": b'{"topic":"\xff","event":"echo","payload":{},"ref":"1"}',
    "100,000 levels": nested(100_000),
    "lone surrogate": r'{"topic":"room:a","event":"echo","payload":{"a":"\ud83d"},"ref":"1"}',
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", MALFORMED_V1)
async def test_version_1_knows_the_same_end(server: Server, name: str) -> None:
    async with under_watch(server, malformed_message=1), hostile(server, V1_PATH) as client:
        client.send(MALFORMED_V1[name])
        closed = await client.closed()
        assert (closed.code, closed.reason) == (1011, "malformed_message")


ODD_TOPICS = [
    7,
    1.5,
    2**70,
    -1,
    True,
    None,
    "",
    "room",
    "ROOM:a",
    "nope:a",
    "\0",
    "phoenix",
    [1],
    {"a": 1},
    "x" * 4_000,
]


@pytest.mark.anyio
@pytest.mark.parametrize("event", ["phx_join", "new_msg", "phx_close", "", None, 5, ["a"]])
async def test_a_topic_that_does_not_exist_is_unmatched_whatever_it_is(server: Server, event: Any) -> None:
    async with under_watch(server, unmatched_topic=len(ODD_TOPICS)), hostile(server) as client:
        for topic in ODD_TOPICS:
            client.send(text("1", "2", topic, event))
            reply = json.loads(await client.receive())
            assert reply == [
                None,
                "2",
                topic,
                "phx_reply",
                {"status": "error", "response": {"reason": "unmatched topic"}},
            ]
            assert type(reply[2]) is type(topic)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "event", ["nope", "", "phx_reply", "phx_error", "\0", None, 5, True, ["echo"], {"a": {}}, 2**70]
)
async def test_an_unknown_event_is_answered_and_the_channel_lives(server: Server, event: Any) -> None:
    async with under_watch(server, unmatched_event=2), hostile(server) as client:
        await client.join("room:a")
        unmatched = {"status": "error", "response": {"reason": "unmatched event"}}
        assert await client.call("1", "2", "room:a", event) == unmatched
        client.send(text("1", None, "room:a", event))  # nobody waits for an answer to this one
        assert await client.call("1", "3", "room:a", "echo", {"still": "here"}) == {
            "status": "ok",
            "response": {"still": "here"},
        }


@pytest.mark.anyio
async def test_a_handler_of_any_event_gets_events_of_any_type(server: Server) -> None:
    async with under_watch(server), hostile(server) as client:
        client.send(text("1", "1", "any:a", "phx_join"))
        assert len(await client.until("1")) == 1
        assert json.loads(await client.receive())[3] == "hello"
        for event, seen in (("", ""), (5, "5"), (None, "null"), (["x"], '["x"]'), ("\0", "\0")):
            reply = await client.call("1", "2", "any:a", event)
            assert reply["response"] == {"event": seen, "binary": False}


@pytest.mark.anyio
async def test_a_handler_of_any_event_gets_none_that_clients_take_for_the_protocols_own(server: Server) -> None:
    async with under_watch(server, unmatched_event=3), hostile(server) as client:
        client.send(text("1", "1", "any:a", "phx_join"))
        assert len(await client.until("1")) == 1
        assert json.loads(await client.receive())[3] == "hello"
        unmatched = {"status": "error", "response": {"reason": "unmatched event"}}
        for event in ("phx_close", "phx_reply", "chan_reply_2"):
            assert await client.call("1", "2", "any:a", event) == unmatched


ODD_REFS = [
    7,
    0,
    -1,
    1.5,
    2**64,
    2**70,
    -(2**63) - 1,
    10**1500,
    True,
    False,
    "",
    "\0",
    "😀",
    [1, [2]],
    {"a": {"b": None}},
]


@pytest.mark.anyio
async def test_refs_of_any_type_come_back_as_they_were(server: Server) -> None:
    async with under_watch(server), hostile(server) as client:
        for ref in ODD_REFS:
            for topic, event, payload in (("phoenix", "heartbeat", {}), ("room:a", "phx_leave", {})):
                await client.call(None, ref, topic, event, payload)
            await client.call(ref, ref, "room:odd", "phx_join")
            client.send(text(ref, ref, "room:odd", "echo", 5))
            reply = json.loads(await client.receive())
            assert reply == [ref, ref, "room:odd", "phx_reply", {"status": "ok", "response": 5}]
            assert type(reply[0]) is type(reply[1]) is type(ref)
            client.send(text(ref, "leave", "room:odd", "phx_leave"))
            await client.until("leave")
            assert json.loads(await client.receive()) == [ref, ref, "room:odd", "phx_close", {}]


@pytest.mark.anyio
async def test_a_join_ref_of_another_type_is_stale_and_gets_no_answer(server: Server) -> None:
    stale = [1, 1.0, True, "", "01", "2", ["1"], {"1": "1"}, 2**70]
    async with under_watch(server, stale_message=2 * len(stale)), hostile(server) as client:
        await client.join("room:a", "1")
        for join_ref in stale:
            client.send(text(join_ref, "2", "room:a", "echo"), text(join_ref, "3", "room:a", "phx_leave"))
        await client.call("1", "4", "room:a", "echo")


MISFITS = [
    *("null", "5", "true", '"x"', "[]", '["body"]', "{}"),
    *(
        '{"Body":"x"}',
        '{"body":5}',
        '{"body":null}',
        '{"body":{"body":"x"}}',
        '{"body":[[[1]]]}',
        '{"body":"x","body":1}',
    ),
    *(f'{{"body":"x","count":{number}}}' for number in ('"1"', "1.5", "null", "[]", "1e999", "-1e999", "9" * 5_000)),
    *(f'{{"{key}":{nested(900)}}}' for key in ("body", "count")),
]


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["event", "join"])
async def test_a_payload_that_does_not_fit_is_named_and_never_reaches_the_handler(server: Server, where: str) -> None:
    topic, event = ("room:a", "new_msg") if where == "event" else ("typed:5", "phx_join")
    async with under_watch(server, invalid_payload=len(MISFITS)), hostile(server) as client:
        await client.join("room:a")
        for payload in MISFITS:
            client.send(f'["1","2","{topic}","{event}",{payload}]')
            reply = json.loads(await client.receive())[4]
            assert reply["status"] == "error"
            assert reply["response"]["reason"] == "invalid payload"
            assert set(reply["response"]) == {"reason", "detail"}
            assert 0 < len(reply["response"]["detail"]) < 200
        await client.call("1", "3", "room:a", "echo")


@pytest.mark.anyio
async def test_bytes_for_a_json_handler_and_json_for_a_bytes_handler_do_not_fit(server: Server) -> None:
    async with under_watch(server, invalid_payload=3), hostile(server) as client:
        await client.join("room:a")
        client.send(binary("1", "2", "room:a", "new_msg", b'{"body":"x"}'))
        reason = json.loads(await client.receive())[4]["response"]
        assert reason == {"reason": "invalid payload", "detail": "Expected JSON, got a binary frame"}
        reply = await client.call("1", "3", "room:a", "bin", {})
        assert reply["response"] == {"reason": "invalid payload", "detail": "Expected a binary frame, got JSON"}
        client.send(binary("9", "9", "typed:1", "phx_join", b"x"))
        assert json.loads(await client.receive())[4]["response"]["reason"] == "invalid payload"


@pytest.mark.anyio
async def test_binary_frames_with_empty_names_are_messages_like_others(server: Server) -> None:
    async with under_watch(server, stale_message=1, unmatched_topic=2), hostile(server) as client:
        await client.join("room:a")
        client.send(binary("", "2", "room:a", "bin", b"x"))  # an empty join_ref is one that nobody has
        client.send(binary("", "", "", ""), binary("1", "3", "nope", "bin", b"\xff"))
        for ref, topic in (("", ""), ("3", "nope")):
            reply = json.loads(await client.receive())
            assert reply[:3] == [None, ref, topic]
            assert reply[4]["response"] == {"reason": "unmatched topic"}
        client.send(binary("1", "", "room:a", "bin", b"\xff\0"))
        assert await client.receive() == b"\2\6\3room:abin\xff\0"
        assert await client.receive() == b"\1\1\0\6\2" + b"1room:aok\xff\0"


@pytest.mark.anyio
async def test_handlers_that_raise_end_their_channel_and_say_no_more_than_that(server: Server) -> None:
    async with under_watch(server, channel_crashed=1, join_crashed=1, join_refused=1), hostile(server) as client:
        await client.join("room:a")
        client.send(text("1", "2", "room:a", "crash"))
        assert json.loads(await client.receive()) == ["1", "1", "room:a", "phx_error", {"reason": "channel_crash"}]
        for topic, reason in (("room:crash", "join crashed"), ("room:refused", "not you")):
            reply = await client.call("2", "2", topic, "phx_join")
            assert reply == {"status": "error", "response": {"reason": reason}}
