"""What is particular to the fast lane; whatever it shares with other servers is tested where they are."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.transports import CLOSE_SECONDS
from starlette_channels.transports.uvicorn import FastLane
from starlette_channels.transports.uvicorn_lane.connection import Lane
from starlette_channels.transports.uvicorn_lane.frames import close_frame
from starlette_channels.transports.uvicorn_lane.handshake import UNSENT_BYTES, limit_unsent_buffer
from starlette_channels.transports.uvicorn_lane.idle_sweep import idle_sweep_of
from tests.autobahn.echo import Echo
from tests.fuzzing.wire import PING, SECONDS, Address, Refused, Wire, frame, opened, text
from tests.support.lanes import Pipe
from tests.support.servers import FAST_LANE, Server, serve

pytestmark = pytest.mark.anyio
PATH = "/socket/websocket?vsn=2.0.0"
HANDSHAKE = (
    f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.support.lane_app:app", FAST_LANE) as server:
        yield server


@pytest.fixture
async def figures(server: Server) -> Callable[..., Any]:
    async def wait_for(**wanted: Any) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        async with httpx.AsyncClient(trust_env=False) as http:
            while True:
                found = (await http.get(f"{server.http}/figures")).json()
                if all(found[name] == value for name, value in wanted.items()):
                    return found
                assert time.monotonic() < deadline, f"wanted {wanted}, found {found}\n{server.tail()}"

    return wait_for


async def test_the_asgi_call_returns_and_the_connection_goes_on(server: Server, figures: Callable[..., Any]) -> None:
    async with opened(Address(server.port), PATH) as wire:
        await figures(open_calls=0, connections=1)
        await wire.join("room:a")
        assert await wire.call("1", "2", "room:a", "echo", {"n": 1}) == {"status": "ok", "response": {"n": 1}}
        await wire.close()
    await figures(open_calls=0, connections=0)


async def test_the_objects_of_uvicorn_are_let_go_without_waiting_for_the_collector(
    server: Server, figures: Callable[..., Any]
) -> None:
    before = (await figures())["kept"]
    async with opened(Address(server.port), PATH), opened(Address(server.port), "/plain"):
        now = {
            "FastLane": before["FastLane"] + 1,
            "UvicornWebSocket": before["UvicornWebSocket"] + 1,
            "Lane": before["Lane"] + 1,
            "Connection": before["Connection"] + 1,
        }
        await figures(open_calls=1, connections=1, kept={**before, **now})


async def test_clients_that_have_gone_or_were_refused_leave_nothing_to_the_collector(
    server: Server, figures: Callable[..., Any]
) -> None:
    before = (await figures(open_calls=0, connections=0))["kept"]
    for number in range(5):
        async with opened(Address(server.port), PATH) as wire:
            await wire.join("room:a")
            if number % 2:
                await wire.close()
        async with opened(Address(server.port), "/plain"):
            pass
        with pytest.raises(Refused):
            await Wire.open(Address(server.port), f"{PATH}&token=guess-{number}")
        async with opened(Address(server.port), f"{PATH}&close=please") as wire:
            assert (await wire.closed()).code == 4401
    await figures(open_calls=0, connections=0, kept=before)


async def test_all_of_a_crowd_that_comes_at_once_are_let_in(server: Server, figures: Callable[..., Any]) -> None:
    crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(30)]
    for _, writer in crowd:
        writer.write(HANDSHAKE)
    crowd.pop(7)[1].close()
    for reader, writer in crowd:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        await Wire(reader, writer).join("room:a")
        writer.close()
    await figures(open_calls=0, connections=0)


async def test_what_a_client_says_while_its_handshake_waits_for_its_turn_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("starlette_channels.transports.uvicorn_lane.handshake.freeze_gc", lambda: None)
    heard: list[Any] = []
    done = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(await receive())
        await send({"type": "websocket.accept"})
        heard.append((await receive())["text"])
        done.set()

    loop = asyncio.get_running_loop()
    early, gone = (FastLane(Config(app), ServerState(), {}, loop) for _ in range(2))
    pipe = Pipe()
    early.connection_made(pipe)
    gone.connection_made(Pipe())
    for client in (early, gone):
        client.data_received(HANDSHAKE)
        client.data_received(frame("too early"))
    gone.connection_lost(None)
    assert pipe.written == []
    async with asyncio.timeout(SECONDS):
        await done.wait()
    assert b"".join(pipe.written).startswith(b"HTTP/1.1 101")
    assert heard == [{"type": "websocket.connect"}, "too early"]


async def test_a_client_that_waits_for_its_turn_is_answered_when_the_server_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("starlette_channels.transports.uvicorn_lane.handshake.freeze_gc", lambda: None)
    state, pipe = ServerState(), Pipe()
    waiting = FastLane(Config("tests.support.lane_app:app"), state, {})
    waiting.connection_made(pipe)
    waiting.data_received(HANDSHAKE)
    assert state.connections == {waiting}
    for connection in list(state.connections):
        connection.shutdown()
    assert b"".join(pipe.written).startswith(b"HTTP/1.1 500")
    assert pipe.closed
    await asyncio.sleep(0)
    assert not state.tasks


async def test_the_system_takes_little_for_a_client_that_does_not_read() -> None:
    made: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()

    class Sender(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.set_result(cast("asyncio.Transport", transport))

    async with await asyncio.get_running_loop().create_server(Sender, "127.0.0.1", 0) as listening:
        _, writer = await Address(listening.sockets[0].getsockname()[1], lazy=True).connect()
        transport = await made
        limit_unsent_buffer(transport)
        taken = 0
        while transport.get_write_buffer_size() == 0:
            transport.write(b"x" * 10_000)
            taken += 10_000
        assert taken < 2 * UNSENT_BYTES  # without a bound, it is more than two megabytes on Linux
        transport.abort()
        writer.close()


async def test_other_websocket_endpoints_stay_what_they_are(server: Server, figures: Callable[..., Any]) -> None:
    async with opened(Address(server.port), "/plain") as wire:
        await figures(open_calls=1)
        wire.send("hello", "bye")
        assert [await wire.receive(), await wire.receive()] == ["HELLO", "BYE"]
        closed = await wire.closed()
        assert (closed.code, closed.reason) == (4001, "as you wish")
    await figures(open_calls=0)


async def test_a_client_that_does_not_wait_for_the_handshake_is_heard_and_is_on_the_fast_lane(
    server: Server, figures: Callable[..., Any]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HANDSHAKE.replace(b" HTTP/1.1", b"&hold=1 HTTP/1.1"))
    await figures(open_calls=1)
    writer.write(frame(text("1", "1", "room:a", "phx_join")))
    await writer.drain()
    async with httpx.AsyncClient(trust_env=False) as http:
        await http.get(f"{server.http}/release")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    wire = Wire(reader, writer)
    assert json.loads(await wire.receive())[3] == "phx_reply"
    await figures(open_calls=0, connections=1)
    assert await wire.call("1", "2", "room:a", "echo", {}) == {"status": "ok", "response": {}}
    await wire.close()
    await figures(open_calls=0, connections=0)


async def test_frames_that_arrive_byte_by_byte_and_pings_between_fragments_are_understood(server: Server) -> None:
    async with opened(Address(server.port), PATH) as wire:
        await wire.join("room:a")
        message = text("1", "2", "room:a", "echo", {"text": "é" * 10})
        for byte in frame(message[:20], final=False) + frame(b"?", PING) + frame(message[20:], 0):
            wire.write(bytes([byte]))
            await wire.drain()
        assert (await wire.until("2"))[-1][4]["response"] == {"text": "é" * 10}


async def test_a_broken_frame_is_counted_and_ends_its_connection_only(
    server: Server, figures: Callable[..., Any]
) -> None:
    async with opened(Address(server.port), PATH) as other, opened(Address(server.port), PATH) as wire:
        await other.join("room:a")
        wire.write(frame("x", mask=False))
        assert (await wire.closed()).code == 1002
        assert (await figures(connections=1))["counts"]["broken_frame"] == 1
        assert await other.call("1", "2", "room:a", "echo", {}) == {"status": "ok", "response": {}}


@pytest.mark.parametrize("topic", ["pictures:a", "prices:a"])
async def test_a_client_that_is_behind_misses_what_its_channel_allows_and_nothing_else(
    server: Server, figures: Callable[..., Any], topic: str
) -> None:
    before = (await figures(connections=0))["counts"]
    async with opened(Address(server.port, lazy=True), PATH) as lazy, opened(Address(server.port), PATH) as other:
        await lazy.join(topic)
        await other.join(topic)
        batch, sent = 20, 0
        async with httpx.AsyncClient(trust_env=False) as http:
            while sent < 2_000:  # 20 MB: more than any buffer on the way holds
                query = {"topic": topic, "first": sent, "number": batch, "size": 10_000}
                await http.get(f"{server.http}/publish", params=query)
                for _ in range(batch):
                    assert json.loads(await other.receive())[4]["price"] == sent
                    sent += 1
        prices: list[int] = []
        while not prices or prices[-1] < sent - 1:
            prices.append(json.loads(await lazy.receive())[4]["price"])
        assert prices == sorted(prices), "in order"
        assert prices[-2:] == [sent - 2, sent - 1], "and up to date"
        dropped = "dropped_oldest" if topic == "pictures:a" else "dropped_stale"
        now = await figures(connections=2)
        assert now["counts"][dropped] - before.get(dropped, 0) == sent - len(prices) > 0
        assert "slow_client" not in now["counts"]
        assert await lazy.call("1", "2", topic, "echo", {"n": 1}) == {"status": "ok", "response": {"n": 1}}


async def test_the_server_hangs_up_on_who_broke_the_protocol_and_waits_for_no_answer(server: Server) -> None:
    async with opened(Address(server.port), PATH) as wire, asyncio.timeout(CLOSE_SECONDS):
        wire.write(frame("x", mask=False) + frame("y") * 100_000)
        assert await wire.reader.read() == close_frame(1002, "frame is not masked")


async def test_clients_are_told_to_come_back_when_the_server_stops() -> None:
    with serve("tests.support.lane_app:app", FAST_LANE) as server:
        async with opened(Address(server.port), PATH) as wire:
            await wire.join("room:a")
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            assert (await wire.closed()).code == 1012
        await stopping


async def test_at_no_moment_does_the_server_believe_that_a_connection_has_ended_before_it_has() -> None:
    """uvicorn, which ends the lifespan then, looks whenever it likes: at connections first, at tasks second."""
    loop = asyncio.get_running_loop()
    register, tasks = set[Any](), set[asyncio.Task[Any]]()
    begun, ended = asyncio.Event(), asyncio.Event()

    class Ending(Echo):
        async def end(self) -> None:
            await asyncio.sleep(0)
            ended.set()

    class Reception(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            pulse = idle_sweep_of(loop)
            lane = Lane(transport, loop, pulse, Bounds(), ErrorLog(Counter()), 1 << 20, register, tasks)
            transport.set_protocol(lane)
            connect: Any = Ending
            lane.start(connect)
            begun.set()

    server = await loop.create_server(Reception, "127.0.0.1")
    async with server, asyncio.timeout(SECONDS):
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await begun.wait()
        writer.close()
        while register or tasks:  # noqa: ASYNC110 - so does uvicorn
            await asyncio.sleep(0)
        assert ended.is_set()
