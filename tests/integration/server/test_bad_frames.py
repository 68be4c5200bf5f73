"""Bad frames, too big ones and too many: what a client can do to a server below, and beside, the messages."""

import json
import zlib
from collections.abc import Iterator

import pytest

from tests.fuzzing.honest import figures, figures_when
from tests.fuzzing.watch import ANY, LANES, fast, hostile, under_watch
from tests.fuzzing.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    Address,
    Wire,
    binary,
    frame,
    opened,
    text,
)
from tests.support.servers import Server, serve

SMALL_PATH = "/small/websocket?vsn=2.0.0"
HEARTBEAT = text(None, "the end", "phoenix", "heartbeat")
MESSAGE = b'["1","2","room:a","echo",{}]'


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=LANES, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve("tests.fuzzing.app:app", request.param) as server:
        yield server


BAD_FRAMES = {
    "text that is not UTF-8": (1007, frame(b'["1","2","room:a","echo","\xff"]', TEXT)),
    "half a letter": (1007, frame(b'["1","2","room:a","echo","\xc3"]', TEXT)),
    "a surrogate as bytes": (1007, frame(b'["1","2","room:a","echo","\xed\xa0\x80"]', TEXT)),
    "a letter spelt too long": (1007, frame(b'["1","2","room:a","echo","\xc0\xaf"]', TEXT)),
    "fragments that are not UTF-8": (1007, frame(b"\xff", TEXT, final=False) + frame(b"\xff", CONTINUATION)),
    "no mask": (1002, frame(MESSAGE, TEXT, mask=False)),
    "reserved bit 1, without an extension": (1002, frame(MESSAGE, TEXT, reserved=4)),
    "reserved bit 2": (1002, frame(MESSAGE, TEXT, reserved=2)),
    "reserved bit 3": (1002, frame(MESSAGE, TEXT, reserved=1)),
    "reserved opcode 3": (1002, frame(MESSAGE, 3)),
    "reserved control opcode 11": (1002, frame(b"", 11)),
    "continuation of nothing": (1002, frame(MESSAGE, CONTINUATION)),
    "a message inside another": (1002, frame(b"[", TEXT, final=False) + frame(MESSAGE, TEXT)),
    "long ping": (1002, frame(b"x" * 126, PING)),
    "fragmented ping": (1002, frame(b"x", PING, final=False)),
    "close with half a code": (1002, frame(b"\3", CLOSE)),
    "close with a code for nobody": (1002, frame((1005).to_bytes(2), CLOSE)),
    "close with a code too small": (1002, frame((999).to_bytes(2), CLOSE)),
    "close with a reason that is not UTF-8": (1007, frame((1000).to_bytes(2) + b"\xff", CLOSE)),
    "a length out of range": (1002, b"\x81\xff" + (2**63).to_bytes(8) + b"\0\0\0\0"),
    "a length of exabytes": (1009, b"\x82\xff" + (2**62).to_bytes(8) + b"\0\0\0\0" + b"x" * 1000),
    "HTTP": (1002, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_a_frame_that_breaks_the_websocket_protocol_closes_its_own_connection(server: Server, name: str) -> None:
    code, data = BAD_FRAMES[name]
    too_big = code == 1009
    counted = fast(server)
    async with (
        under_watch(server, message_too_big=counted and too_big, broken_frame=counted and not too_big),
        hostile(server) as client,
    ):
        await client.join("room:a")
        client.write(data + frame(HEARTBEAT))
        # websockets takes a length of more than 63 bits for a size; RFC 6455 forbids it.
        assert (await client.closed()).code in (code, 1009 if "out of range" in name and not fast(server) else code)


@pytest.mark.anyio
@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 3000, 4999])
async def test_a_client_that_closes_gets_its_code_back(server: Server, code: int) -> None:
    async with under_watch(server), hostile(server) as client:
        await client.join("room:a")
        assert (await client.close(code)).code == code


@pytest.mark.anyio
async def test_messages_in_fragments_with_pings_between_are_put_together(server: Server) -> None:
    async with under_watch(server), hostile(server) as client:
        await client.join("room:a")
        message = text("1", "2", "room:a", "echo", "é😀" * 50).encode()
        pieces = [frame(message[:1], TEXT, final=False)]
        pieces += [
            frame(message[at : at + 1], CONTINUATION, final=False) + frame(b"", PING) for at in range(1, len(message))
        ]
        client.write(b"".join(pieces) + frame(b"", CONTINUATION))
        assert json.loads(await client.receive())[4] == {"status": "ok", "response": "é😀" * 50}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "rest", [b"", b"\x81", b"\x81\xfe\x10", frame("[" * 5000)[:-1], frame(b"[", TEXT, final=False)]
)
async def test_clients_that_vanish_inside_a_frame_are_forgotten(server: Server, rest: bytes) -> None:
    async with under_watch(server):
        for reset in (True, False):
            async with opened(Address(server.port)) as client:
                await client.join("room:a")
                client.write(frame(text("1", "2", "room:a", "later")) + rest)
                await client.until("2")
                if not reset:
                    await client.end()


# Too big.


@pytest.mark.anyio
@pytest.mark.parametrize("letter", ["x", "é"])
async def test_the_limit_of_a_message_counts_bytes_and_is_taken_exactly(server: Server, letter: str) -> None:
    async with under_watch(server, "small", message_too_big=1), hostile(server, SMALL_PATH) as client:
        await client.join("room:a")
        room = 4096 - len('["1","2","room:a","echo",""]')
        body = letter * (room // len(letter.encode()))
        fits = f'["1","2","room:a","echo","{body}"]'.ljust(4096 - len(body.encode()) + len(body))
        assert len(fits.encode()) == 4096
        client.send(fits)
        assert json.loads(await client.receive())[4]["response"] == body
        client.send(fits + " ", HEARTBEAT)
        closed = await client.closed()
        assert (closed.code, closed.reason) == (1009, "message_too_big")
        assert not client.unread


@pytest.mark.anyio
async def test_the_limit_of_a_binary_message_counts_its_names(server: Server) -> None:
    async with under_watch(server, "small", message_too_big=1), hostile(server, SMALL_PATH) as client:
        await client.join("room:a")
        fits = binary("1", "2", "room:a", "bin", b"x" * (4096 - 5 - len("12room:abin")))
        client.send(fits)
        assert len(await client.receive()) > 4000  # the broadcast
        assert len(await client.receive()) > 4000  # the reply
        client.send(fits + b"x")
        assert (await client.closed()).code == 1009


@pytest.mark.anyio
async def test_a_megabyte_is_taken_and_a_byte_more_is_not(server: Server) -> None:
    fits = text("1", "2", "room:a", "echo", "x" * (1_000_000 - len(text("1", "2", "room:a", "echo", ""))))
    assert len(fits) == 1_000_000
    async with under_watch(server, message_too_big=1), hostile(server) as client:
        await client.join("room:a")
        client.send(fits)
        assert len(await client.receive()) > len(fits)
        client.send(fits + " ")
        assert (await client.closed()).code == 1009


@pytest.mark.anyio
async def test_a_message_over_the_limit_of_uvicorn_ends_with_the_same_code(server: Server) -> None:
    megabyte = b"x" * 1_000_000
    async with under_watch(server, message_too_big=2 * fast(server)):
        async with hostile(server) as client:
            client.send("x" * 17_000_000)
            assert (await client.closed()).code == 1009
        async with hostile(server) as client:
            client.write(frame(megabyte, BINARY, final=False) + frame(megabyte, CONTINUATION, final=False) * 17)
            assert (await client.closed()).code == 1009


@pytest.mark.anyio
async def test_a_small_message_that_inflates_to_a_big_one_is_refused_before_it_is_there(server: Server) -> None:
    async with under_watch(server, broken_frame=int(fast(server))):
        before = await figures(server.http)
        compressor = zlib.compressobj(9, wbits=-15)
        zeros = bytes(1 << 20)
        bomb = b"".join(compressor.compress(zeros) for _ in range(1 << 8))
        bomb += compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]
        async with hostile(server, extra="Sec-WebSocket-Extensions: permessage-deflate") as client:
            client.write(frame(bomb, BINARY, reserved=4))
            # The fast lane does not agree to compression, so the bit that says so is a mistake.
            assert (await client.closed()).code == (1002 if fast(server) else 1009)
        after = await figures(server.http)
        assert after["rss"] < before["rss"] + (128 << 20)


# Too many.


@pytest.mark.anyio
async def test_of_thousands_of_joins_in_one_go_a_hundred_succeed(server: Server) -> None:
    joins, limit = 5_000, 100
    async with under_watch(server, too_many_channels=joins - limit), hostile(server) as client:
        client.send(*(text(str(n), str(n), f"room:{n}", "phx_join") for n in range(joins)))
        outcomes: dict[str, str] = {}
        while len(outcomes) < joins:
            join_ref, ref, topic, event, payload = json.loads(await client.receive())
            assert (join_ref, topic, event) == (ref, f"room:{ref}", "phx_reply")
            assert ref not in outcomes
            outcomes[ref] = payload["response"].get("reason", payload["status"])
        joined = [ref for ref, outcome in outcomes.items() if outcome == "ok"]
        assert sorted(joined, key=int) == [str(n) for n in range(limit)]
        assert set(outcomes.values()) == {"ok", "too many channels joined"}
        # The connection has not suffered: a topic that it has can be joined anew, one that it leaves makes room.
        client.send(text("again", "again", "room:0", "phx_join"))
        assert [message[3] for message in await client.until("again")] == ["phx_reply"]
        assert json.loads(await client.receive()) == ["0", "0", "room:0", "phx_close", {}]
        client.send(text("1", "left", "room:1", "phx_leave"))
        await client.until("left")
        assert json.loads(await client.receive())[3] == "phx_close"
        await client.join("room:another", "another")
        assert (await figures(server.http))["channels"] == limit + 2  # and two of the honest pair


@pytest.mark.anyio
async def test_thousands_of_joins_of_one_topic_leave_one_channel(server: Server) -> None:
    joins = 2_000
    async with under_watch(server), hostile(server) as client:
        client.send(*(text(str(n), str(n), "room:a", "phx_join") for n in range(joins)))
        replies = closes = 0
        while replies < joins or closes < joins - 1:
            message = json.loads(await client.receive())
            replies += message[3] == "phx_reply"
            closes += message[3] == "phx_close"
            if message[3] == "phx_reply":
                assert message[4]["status"] == "ok"
        assert (await figures(server.http))["channels"] == 1 + 2
        await client.call(str(joins - 1), "the last one lives", "room:a", "echo")


@pytest.mark.anyio
async def test_joins_refused_by_the_thousand_take_no_topic(server: Server) -> None:
    async with (
        under_watch(server, join_refused=1_000, join_crashed=1_000, unmatched_topic=1_000),
        hostile(server) as client,
    ):
        for topic in ("room:refused", "room:crash", "nope"):
            client.send(*(text(str(n), str(n), topic, "phx_join") for n in range(1_000)))
            for _ in range(1_000):
                assert json.loads(await client.receive())[4]["status"] == "error"
        assert (await figures(server.http))["channels"] == 2


@pytest.mark.anyio
async def test_a_client_that_floods_and_vanishes_leaves_nothing_behind(server: Server) -> None:
    flood = b"".join(
        frame(text(str(n), str(n), f"room:{n % 90}", event))
        for n in range(1_000)
        for event in ("phx_join", "later", "new_msg", "shout", "phx_leave", "wait")
    )
    async with under_watch(server, invalid_payload=ANY, stale_message=ANY, unmatched_topic=ANY):
        for _ in range(3):
            client = await Wire.open(Address(server.port))
            client.write(flood)
            await client.receive()
            client.abort()
        await figures_when(lambda found: found["connections"] == 2, server.http)


@pytest.mark.anyio
async def test_bad_input_again_and_again_does_not_make_the_server_grow(server: Server) -> None:
    bad = ["[" * 500_000, "x" * 500_000, json.dumps(["1", "2", "x" * 500_000, "phx_join", {}]), bytes(500_000)]

    async def attack() -> int:
        for message in bad * 10:
            async with hostile(server) as client:
                client.send(*(text(str(n), str(n), f"room:{n}", "phx_join") for n in range(50)), message)
                client.send("no JSON")
                await client.closed()
        return (await figures_when(lambda found: found["connections"] == 2, server.http, collect=True))["rss"]

    async with under_watch(server, unmatched_topic=ANY, malformed_message=ANY):
        first = await attack()
        last = [await attack() for _ in range(4)]
        assert min(last) < first + (16 << 20), (first, last)
