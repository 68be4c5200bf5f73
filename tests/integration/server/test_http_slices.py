"""HTTP of `starlette-channels run`: however a request is cut up, others have their turn while it is read."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from starlette_channels.runtime.turn_budget import EVENTS_AT_ONCE
from starlette_channels.transports.uvicorn import SlicedHTTP
from starlette_channels.transports.uvicorn_lane.http_slices import SLICE_BYTES, HTTPSlices
from tests.fuzzing.wire import Address, opened, text
from tests.support.lanes import Pipe
from tests.support.servers import RUNNER, Server, serve

pytestmark = pytest.mark.anyio
POST = "POST /socket/longpoll?vsn=2.0.0&token={token} HTTP/1.1\r\nHost: localhost\r\n"
PIECES = b"1\r\na\r\n"
SEGMENT = 1 << 18
"""What an event loop reads of a client at once."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.support.stall_app:app", RUNNER) as server:
        yield server


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode().lower()
    size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(size))


def served(config: Config, data: bytes) -> tuple[HTTPSlices, Pipe]:
    """Let a client send this, and return the protocol that reads it."""
    first, pipe = SlicedHTTP(config, ServerState(), {}), Pipe()
    pipe.set_protocol(first)
    first.connection_made(pipe)
    first.data_received(data)
    return cast("HTTPSlices", pipe.get_protocol()), pipe


async def test_a_body_in_chunks_of_one_byte_and_requests_in_a_row_are_answered_in_order(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /socket/longpoll?vsn=2.0.0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    token = (await answer(reader))[1]["token"]
    request = POST.format(token=token).encode() + b"Transfer-Encoding: chunked\r\n\r\n"
    sent = b""
    for body in (text("1", "1", "room:a", "phx_join"), text("1", "2", "room:a", "echo", {"x": "x" * 30_000})):
        sent += request + b"".join(b"1\r\n%c\r\n" % byte for byte in body.encode()) + b"0\r\n\r\n"
    sent += b"GET /socket/longpoll?vsn=2.0.0&token=%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % token.encode()
    writer.write(sent)
    assert [(await answer(reader))[1]["status"] for _ in range(2)] == [200, 200]
    status, polled = await answer(reader)
    assert status == 200
    replies = [json.loads(message) for message in polled["messages"]]
    assert [reply[1] for reply in replies] == ["1", "2"]
    assert len(replies[1][4]["response"]["x"]) == 30_000
    writer.close()


async def test_a_websocket_behind_requests_of_the_same_connection_is_served(server: Server) -> None:
    async with opened(Address(server.port), extra="X-Long: " + "x" * 3 * SLICE_BYTES) as wire:
        await wire.join("room:a")
        assert await wire.call("1", "2", "room:a", "echo", {"n": 1}) == {"status": "ok", "response": {"n": 1}}


async def test_no_turn_of_the_event_loop_parses_more_than_a_few_slices_of_a_client() -> None:
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + PIECES * (SEGMENT // len(PIECES))
    read = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal read
        while True:
            read += len((await receive()).get("body", b""))

    config = Config(app, http=SlicedHTTP)
    config.load()
    protocol, pipe = served(config, sent)
    turns, most, before = 0, 0, 0
    while not pipe.reading:
        await asyncio.sleep(0)
        turns, most, before = turns + 1, max(most, read - before), read
        assert turns < 10_000
    assert most <= EVENTS_AT_ONCE * SLICE_BYTES
    assert turns >= SEGMENT // (EVENTS_AT_ONCE * SLICE_BYTES)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert read == sent.count(PIECES), "the application has the last of it a turn later"
    for task in list(protocol.tasks):
        task.cancel()


async def test_requests_in_a_row_are_parsed_one_by_one() -> None:
    begun: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["path"])
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    config = Config(app, http=SlicedHTTP)
    config.load()
    request = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
    protocol, _ = served(config, b"".join(request % number for number in range(5_000)))
    most = 0
    for _ in range(100_000):
        await asyncio.sleep(0)
        most = max(most, len(protocol.tasks) + len(getattr(protocol, "pipeline", ())))
        if len(begun) == 5_000:
            break
    assert begun == [f"/{number}" for number in range(5_000)]
    assert most <= 2 * SLICE_BYTES // len(request), "what is parsed waits in memory, and what is not is in the socket"
    await asyncio.sleep(0)
    protocol.connection_lost(None)
