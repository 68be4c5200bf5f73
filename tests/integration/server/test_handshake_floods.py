"""What a client sends before its handshake is answered is not kept, whatever it is that the answer waits for."""

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from starlette_channels.transports.uvicorn import FastLane
from starlette_channels.transports.uvicorn_lane.early_data import EARLY_BYTES
from tests.fuzzing.wire import BINARY, CLOSE, CONTINUATION, PING, Address, Wire, frame, text
from tests.support.lanes import Pipe
from tests.support.servers import FAST_LANE, Server, serve

pytestmark = pytest.mark.anyio
REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
PATH = "/socket/websocket?vsn=2.0.0"
HELD = PATH + "&hold=1"
CLIENTS = 10
MUCH = 9_000_000
LITTLE = 500
"""So many clients that send much take so little of it, each, on top of what a connection costs, in kilobytes."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.support.lane_app:app", FAST_LANE) as server:
        yield server


@pytest.fixture(scope="module")
def h11_server() -> Iterator[Server]:
    kind = replace(FAST_LANE, command=f"{FAST_LANE.command} --http h11")
    with serve("tests.support.lane_app:app", kind) as server:
        yield server


def memory(server: Server) -> int:
    """Return the most memory that the server has had, in kilobytes."""
    with open(f"/proc/{server.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


@asynccontextmanager
async def connection(server: Server, sent: bytes) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def wait_for_calls(server: Server, number: int) -> None:
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(30):
        while (await http.get(f"{server.http}/figures")).json()["open_calls"] != number:
            pass


FLOODS = {
    "messages": frame(b"x" * 60_000, BINARY) * (MUCH // 60_000),
    "pings": frame(b"x" * 125, PING) * (MUCH // 131),
    "fragments": frame(b"x", BINARY, final=False) + frame(b"x" * 60_000, CONTINUATION, final=False) * (MUCH // 60_000),
    "junk": b"x" * MUCH,
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_what_clients_send_while_connect_takes_its_time_stays_in_their_sockets(kind: str) -> None:
    flood = FLOODS[kind]
    with serve("tests.support.lane_app:app", FAST_LANE) as server:  # whose gate nobody has opened yet
        await stays_in_the_sockets(server, flood)


async def stays_in_the_sockets(server: Server, flood: bytes) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connection(server, REQUEST.format(path=HELD).encode()))
            for _ in range(CLIENTS)
        ]
        await wait_for_calls(server, CLIENTS)
        before = memory(server)
        for _, writer in clients:
            writer.write(flood)
        taken = [writer.transport.get_write_buffer_size() for _, writer in clients]
        async with httpx.AsyncClient(trust_env=False) as http:
            for _ in range(20):  # turns in which the server might read
                await http.get(f"{server.http}/figures")
        left = [writer.transport.get_write_buffer_size() for _, writer in clients]
        assert all(left), f"the server has read it all: {taken}, then {left}"
        assert memory(server) - before < CLIENTS * LITTLE


async def test_a_client_that_waits_for_its_turn_is_not_read_from_and_what_comes_all_the_same_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("starlette_channels.transports.uvicorn_lane.handshake.freeze_gc", lambda: None)
    waiting, pipe = (
        FastLane(Config("tests.support.lane_app:app"), ServerState(), {}, asyncio.get_running_loop()),
        Pipe(),
    )
    waiting.connection_made(pipe)
    waiting.data_received(REQUEST.format(path=PATH).encode())
    assert not pipe.reading
    tracemalloc.start()
    try:
        for _ in range(1_000):
            waiting.data_received(bytes(65_536))
        assert tracemalloc.get_traced_memory()[0] < 2 * EARLY_BYTES
    finally:
        tracemalloc.stop()
        waiting.connection_lost(None)


@pytest.mark.parametrize("where", ["one segment", "two segments"])
async def test_frames_in_the_segment_of_the_request_are_heard_if_the_parser_hands_them_on(
    h11_server: Server, where: str
) -> None:
    first = frame(text("1", "1", "room:a", "phx_join")) + frame(text("1", "2", "room:a", "echo", {"n": 1}))
    request = REQUEST.format(path=PATH).encode()
    async with connection(h11_server, request + first if where == "one segment" else request) as (reader, writer):
        if where == "two segments":
            await asyncio.sleep(0)
            writer.write(first)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        wire = Wire(reader, writer)
        assert (await wire.until("2"))[-1][4] == {"status": "ok", "response": {"n": 1}}
        assert await wire.call("1", "3", "room:a", "echo", {}) == {"status": "ok", "response": {}}
        await wire.close()
    await wait_for_calls(h11_server, 0)


async def test_frames_in_the_segment_of_the_request_are_heard_by_other_applications_as_well(h11_server: Server) -> None:
    sent = REQUEST.format(path="/plain").encode() + frame("hello") + frame("bye")
    async with connection(h11_server, sent) as (reader, writer):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        wire = Wire(reader, writer)
        assert [await wire.receive(), await wire.receive()] == ["HELLO", "BYE"]


async def test_a_client_that_sends_more_than_a_little_with_its_request_is_closed(h11_server: Server) -> None:
    sent = REQUEST.format(path=PATH).encode() + frame(text("1", "1", "room:a", "phx_join")) * 400
    async with connection(h11_server, sent) as (reader, writer):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        closed = await Wire(reader, writer).closed()
        assert (closed.code, closed.reason) == (1008, "early_bytes")
        writer.write(frame((1008).to_bytes(2), CLOSE))
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{h11_server.http}/figures")).json()["counts"]["early_bytes"] == 1


async def test_a_client_that_has_gone_before_its_turn_is_not_let_in(server: Server) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        before = (await http.get(f"{server.http}/figures")).json()["kept"]
        for _ in range(50):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(REQUEST.format(path=PATH).encode())
            writer.transport.abort()
        async with asyncio.timeout(30):
            while True:
                now = (await http.get(f"{server.http}/figures")).json()
                if not now["connections"] and all(now["kept"][kind] <= number for kind, number in before.items()):
                    break
    wire = await Wire.open(Address(server.port), PATH)
    await wire.join("room:a")
    await wire.close()
