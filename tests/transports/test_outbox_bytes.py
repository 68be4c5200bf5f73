"""What waits for a client: bounded in bytes, for the slow one alone, and nothing is lost for one that reads."""

import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.types import Message, Receive, Scope, Send
from trio.testing import MockClock

from starlette_channels import Channels, Limits, Reply, Socket, channel
from starlette_channels.testing import connect
from starlette_channels.transports.asgi_idle_sweep import pause
from tests.conftest import frames, until
from tests.support.slow_readers import Hall, Server

pytestmark = pytest.mark.anyio


def waiting_bytes(hall: Hall) -> int:
    """Return what waits for the client that has the most waiting for it."""
    connections: set[Any] = hall.channels._service.connections  # type: ignore  # pyright: ignore[reportPrivateUsage]
    return max(connection._transport._waiting_bytes for connection in connections)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop", "virtual"], indirect=True)
async def test_a_client_that_does_not_read_is_closed_with_1008_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    hall = Hall(pushes_at_the_end=True, outbox_bytes=100_000)
    server = Server(hall.channels)
    async with connect(server) as slow, connect(hall.channels) as quick:
        await slow.join("hall:a")
        there = await quick.join("hall:a")
        server.stop_reading()
        most = n = 0
        with anyio.fail_after(5):
            while hall.channels.statistics().connections == 2:
                most = max(most, waiting_bytes(hall))
                hall.channels.broadcast("hall:a", "news", {"n": n, "text": "x" * 10_000})
                assert (await there.receive("news"))["n"] == n  # nobody else waits for it
                await anyio.sleep(0.02)
                n += 1
        assert 90_000 < most < 450_000  # what may wait, and what comes in the moment that it takes to be sure
        assert await slow.closed() == 1008
        assert hall.ends == ["closed"]
        assert hall.channels.statistics().counts["slow_client"] == 1
        assert server.handed_over == 2  # the join reply, and the frame that hung
        assert await there.received_nothing()
    (record,) = [record for record in caplog.records if "1008" in record.message]
    assert record.levelno == logging.WARNING


async def test_a_client_that_reads_but_always_less_than_comes_is_closed_too(virtual_clock: MockClock) -> None:
    hall = Hall(outbox_bytes=100_000)

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def give(message: Message) -> None:
            await anyio.sleep(0.04)
            await send(message)

        await hall.channels(scope, receive, give)

    async with connect(server) as client:
        await client.join("hall:a")
        most = 0
        with anyio.fail_after(60):
            while hall.channels.statistics().connections:
                most = max(most, waiting_bytes(hall))
                hall.channels.broadcast("hall:a", "news", {"text": "x" * 10_000})
                await anyio.sleep(0.02)
        assert await client.closed() == 1008
        assert most < 300_000
    assert hall.channels.statistics().counts["slow_client"] == 1


async def test_a_client_that_takes_its_time_with_a_burst_gets_all_of_it(virtual_clock: MockClock) -> None:
    hall = Hall(outbox_bytes=10_000)

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def give(message: Message) -> None:
            await anyio.sleep(0.01)
            await send(message)

        await hall.channels(scope, receive, give)

    async with connect(server) as client:
        room = await client.join("hall:a")
        room.send("flood", {"frames": 200, "size": 1000})
        await client.receive()
        hall.channels.broadcast("hall:a", "more", {})
        assert [came.payload["n"] for came in await frames(client, 199)] == list(range(1, 200))
    assert "slow_client" not in hall.channels.statistics().counts


async def test_one_burst_after_the_other_is_no_reason_to_give_up(virtual_clock: MockClock) -> None:
    hall = Hall(outbox_bytes=10_000)

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def give(message: Message) -> None:
            await anyio.sleep(0.0005)
            await send(message)

        await hall.channels(scope, receive, give)

    async with connect(server) as client:
        room = await client.join("hall:a")
        for burst in (50, 400):  # the first takes 25 ms, and the second is under way when 100 ms are over
            room.send("flood", {"frames": burst, "size": 1000})
            await frames(client, burst + 1)
            await anyio.sleep(0.01)
    assert "slow_client" not in hall.channels.statistics().counts


async def test_large_frames_have_the_time_that_they_need(virtual_clock: MockClock) -> None:
    hall = Hall(outbox_bytes=10_000)

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def give(message: Message) -> None:
            await anyio.sleep(len(message.get("text", "")) / 1_000_000)
            await send(message)

        await hall.channels(scope, receive, give)

    async with connect(server) as client:
        room = await client.join("hall:a")
        room.send("flood", {"frames": 10, "size": 900_000})
        assert [came.payload["n"] for came in await frames(client, 10)] == list(range(10))
    assert "slow_client" not in hall.channels.statistics().counts


async def test_a_client_that_reads_again_in_time_gets_everything_in_order() -> None:
    hall = Hall(outbox_bytes=1_000_000)
    server = Server(hall.channels)
    async with connect(server) as client:
        await client.join("hall:a")
        server.stop_reading()
        for n in range(50):
            hall.channels.broadcast("hall:a", "news", {"n": n, "text": "x" * 10_000})
            await anyio.lowlevel.checkpoint()
        server.reading.set()
        assert [came.payload["n"] for came in await frames(client, 50)] == list(range(50))
        assert await client.heartbeat() == Reply("ok", {})
        assert waiting_bytes(hall) == 0
    assert "slow_client" not in hall.channels.statistics().counts


async def test_a_client_that_does_not_read_is_not_read_from_either() -> None:
    hall = Hall(outbox_bytes=100_000)
    server = Server(hall.channels)
    async with connect(server) as client:
        room = await client.join("hall:a")
        server.stop_reading()
        refs = [room.send("flood", {"frames": 1, "size": 10_000}) for _ in range(100)]
        await anyio.wait_all_tasks_blocked()
        assert server.taken < 15
        assert waiting_bytes(hall) < 100_000
        server.reading.set()
        for ref in refs:
            assert await client.reply(ref) == Reply("ok", {})


async def test_a_client_that_never_reads_again_is_closed_in_the_end(virtual_clock: MockClock) -> None:
    hall = Hall(pushes_at_the_end=True, outbox_bytes=100_000, idle_seconds=30)
    server = Server(hall.channels)
    async with connect(server, timeout=1000) as client:
        room = await client.join("hall:a")
        server.stop_reading()
        for _ in range(100):
            room.send("flood", {"frames": 1, "size": 10_000})
        start = anyio.current_time()
        assert await client.closed() == 1008
        assert 30 <= anyio.current_time() - start < 30 + 2 * pause(30)
    assert hall.channels.statistics().counts["slow_client"] == 1
    assert hall.ends == ["closed"]


@pytest.mark.parametrize("how", ["server", "lifespan", "slow", "client"])
async def test_a_server_that_hangs_even_in_the_close_is_left_after_a_while(how: str, virtual_clock: MockClock) -> None:
    hall = Hall(pushes_at_the_end=True, outbox_bytes=1000, shutdown_seconds=3)
    server = Server(hall.channels, close_hangs=True)
    async with connect(server) as client:
        room = await client.join("hall:a")
        server.stop_reading()
        room.send("flood", {"frames": 1, "size": 10})
        await anyio.wait_all_tasks_blocked()
        start = anyio.current_time()
        match how:
            case "server":
                for connection in tuple(hall.channels._service.connections):  # pyright: ignore[reportPrivateUsage]
                    connection.close(1001, "")
            case "lifespan":
                async with hall.channels.lifespan():
                    pass
            case "slow":
                for _ in range(3):
                    await anyio.sleep(0.1)
                    hall.channels.broadcast("hall:a", "news", {"text": "x" * 1000})
            case _:
                client.disconnect()
        assert await client.closed() == 1006
        assert anyio.current_time() - start < 6
    assert hall.ends == ["draining" if how == "lifespan" else "closed"]
    assert hall.channels.statistics().connections == 0


async def test_one_big_frame_may_be_bigger_than_what_may_wait() -> None:
    hall = Hall(outbox_bytes=1000)
    async with connect(hall.channels) as client:
        room = await client.join("hall:a")
        hall.channels.broadcast("hall:a", "news", b"x" * 5_000_000)
        assert len(await room.receive("news")) == 5_000_000
        room.send("flood", {"frames": 1, "size": 1_000_000})
        assert len((await room.receive("flood"))["text"]) == 1_000_000
        assert await client.heartbeat() == Reply("ok", {})
    assert "slow_client" not in hall.channels.statistics().counts


async def test_a_burst_of_more_than_may_wait_reaches_a_client_that_reads() -> None:
    hall = Hall(outbox_bytes=10_000)
    async with connect(hall.channels) as client:
        room = await client.join("hall:a")
        for _ in range(2):
            ref = room.send("flood", {"frames": 1000, "size": 100})
            assert [came.payload["n"] for came in await frames(client, 1000)] == list(range(1000))
            assert await client.reply(ref) == Reply("ok", {})
    assert "slow_client" not in hall.channels.statistics().counts


@pytest.mark.parametrize("blocked_seconds", [0, 0.1])
async def test_a_burst_while_a_send_is_under_way_reaches_a_client_that_reads(blocked_seconds: float) -> None:
    hall, sending = Hall(outbox_bytes=10_000), 0

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def give(message: Message) -> None:
            nonlocal sending
            sending += 1
            for _ in range(3):  # the server gives way to others, as some do at every send
                await anyio.lowlevel.checkpoint()
            await send(message)
            sending -= 1

        await hall.channels(scope, receive, give)

    async with connect(server) as client:
        await client.join("hall:a")
        hall.channels.broadcast("hall:a", "first", {})
        await until(lambda: sending > 0)
        time.sleep(blocked_seconds)  # noqa: ASYNC251 - a handler that blocks the event loop
        for n in range(100):
            hall.channels.broadcast("hall:a", "news", {"n": n, "text": "x" * 1000})
        assert [came.payload["n"] for came in (await frames(client, 101))[1:]] == list(range(100))
    assert "slow_client" not in hall.channels.statistics().counts


async def test_a_send_that_fails_ends_its_connection_and_nothing_else(
    count_tasks: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    hall = Hall()
    broken = False

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def give(message: Message) -> None:
            if broken:
                raise OSError("broken pipe")
            await send(message)

        await hall.channels(scope, receive, give)

    async with connect(server) as client, connect(hall.channels) as other:
        await client.join("hall:a")
        there = await other.join("hall:a")
        await anyio.wait_all_tasks_blocked()
        before = count_tasks()
        broken = True
        hall.channels.broadcast("hall:a", "news", {})
        assert await there.receive("news") == {}
        assert await client.closed() == 1006
        await until(lambda: hall.channels.statistics().connections == 1)
        await anyio.wait_all_tasks_blocked()
        assert hall.ends == ["closed"]
        assert count_tasks() == before - 1
        hall.channels.broadcast("hall:a", "news", {})
        assert await there.receive("news") == {}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(("limit", "size"), [(100_000, 10_000), (100_000, 9_000), (10_000, 900)])
async def test_a_client_of_a_channel_that_drops_the_oldest_stays_connected_however_long_it_does_not_read(
    limit: int, size: int, virtual_clock: MockClock
) -> None:
    hall = Hall()

    @channel("pictures", when_slow="drop_oldest")
    async def pictures(socket: Socket, payload: Any) -> None: ...

    hall.channels = Channels([pictures], limits=Limits(outbox_bytes=limit))
    server = Server(hall.channels)
    async with connect(server) as client:
        await client.join("pictures")
        server.stop_reading()
        for n in range(100):
            hall.channels.broadcast("pictures", "picture", {"n": n, "text": "x" * size})
            await anyio.sleep(0.05)
        server.reading.set()
        came = await frames(client, 1)
        while came[-1].payload["n"] != 99:
            came += await frames(client, 1)
        assert len(came) < 15
    counts = hall.channels.statistics().counts
    assert "slow_client" not in counts
    assert counts["dropped_oldest"] > 80
