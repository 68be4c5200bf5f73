"""What one connection may use, and what happens when it wants more."""

import logging
from typing import Any

import anyio
import pytest
from trio.testing import MockClock

from starlette_channels import Reply
from starlette_channels.connection.connection import Connection
from starlette_channels.testing import Client, JoinRefused, Received, connect
from starlette_channels.transports.asgi_idle_sweep import SLOWEST_SWEEP, pause
from tests.conftest import error, frames, until
from tests.support.slow_readers import Hall, Server

pytestmark = pytest.mark.anyio

MEGABYTE = 1_048_576


async def refusal(client: Client, topic: str) -> Any:
    with pytest.raises(JoinRefused) as caught:
        await client.join(topic)
    return caught.value.reply.payload


async def test_one_topic_too_many_is_refused_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    channels = Hall(channels=2).channels
    async with connect(channels) as client:
        one = await client.join("hall:one")
        await client.join("hall:two")
        client.send("8", "9", "hall:three", "phx_join", {})
        assert await client.receive() == Received(
            "8", "9", "hall:three", "phx_reply", error("too many channels joined")
        )
        assert channels.statistics().counts == {"too_many_channels": 1}
        assert "too_many_channels" in caplog.text
        client.send("8", "10", "hall:three", "event", {})
        assert (await client.reply("10")).payload == {"reason": "unmatched topic"}
        await one.leave()
        await client.join("hall:three")


async def test_at_the_limit_a_joined_topic_can_be_joined_anew_and_others_have_their_own_limit() -> None:
    channels = Hall(channels=1).channels
    async with connect(channels) as client, connect(channels) as other:
        for _ in range(3):
            assert (await client.join("hall:one")).reply == Reply("ok", {})
        assert await refusal(client, "hall:two") == {"reason": "too many channels joined"}
        await other.join("hall:two")
        assert channels.statistics().channels == 2


async def test_the_default_limit_is_100_topics_and_refused_joins_do_not_count() -> None:
    async with connect(Hall().channels) as client:
        for number in range(101):
            assert await refusal(client, f"no such topic {number}") == {"reason": "unmatched topic"}
        for number in range(100):
            await client.join(f"hall:{number}")
        assert await refusal(client, "hall:100") == {"reason": "too many channels joined"}


@pytest.mark.parametrize(
    ("filling", "fits"),
    [("x" * 400, True), ("x" * 600, False), ("é" * 200, True), ("é" * 400, False), ("😀" * 200, False)],
)
async def test_a_message_of_too_many_bytes_closes_with_1009(
    filling: str, fits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hall = Hall(message_bytes=500)
    async with connect(hall.channels) as client, connect(hall.channels) as other:
        room, there = await client.join("hall:a"), await other.join("hall:a")
        ref = room.send("nothing", {"text": filling})
        if fits:
            assert (await client.reply(ref)).payload == {"reason": "unmatched event"}
            assert room.send("nothing", b"x" * 400)
        else:
            assert await client.closed() == 1009
            assert hall.channels.statistics().counts == {"message_too_big": 1}
            assert [one.levelno for one in caplog.records if "1009" in one.message] == [logging.WARNING]
            await until(lambda: hall.ends == ["closed"])
        assert await there.received_nothing()
        assert await other.heartbeat() == Reply("ok", {})


async def test_a_message_of_exactly_as_many_bytes_as_allowed_is_taken() -> None:
    frame = '["1","2","hall:a","phx_join",{}]'
    for limit, code in ((len(frame), None), (len(frame) - 1, 1009)):
        async with connect(Hall(message_bytes=limit).channels) as client:
            client.send_frame(frame)
            assert (await client.closed() if code else (await client.reply("2")).status) == (code or "ok")


async def test_a_binary_message_of_too_many_bytes_closes_with_1009() -> None:
    async with connect(Hall(message_bytes=500).channels) as client:
        room = await client.join("hall:a")
        room.send("nothing", b"x" * 500)
        assert await client.closed() == 1009


async def test_a_client_that_is_far_ahead_of_its_handlers_is_not_read_from_until_they_catch_up() -> None:
    hall = Hall(backlog=10)
    server = Server(hall.channels)
    async with connect(server) as client, connect(hall.channels) as other:
        room = await client.join("hall:a")
        refs = [room.send("wait", n) for n in range(100)]
        await anyio.wait_all_tasks_blocked()
        assert server.taken < 2 + 10 + 2  # connect and join, the backlog, and no more than a little
        assert await (await other.join("hall:a")).push("nothing") == Reply("error", {"reason": "unmatched event"})
        hall.gate.set()
        assert [one.ref for one in await frames(client, 100)] == refs
        assert hall.handled == list(range(100))
        assert await client.heartbeat() == Reply("ok", {})


async def test_what_waits_for_handlers_is_bounded_in_bytes_too() -> None:
    hall = Hall(message_bytes=1000)
    server = Server(hall.channels)
    async with connect(server) as client:
        room = await client.join("hall:a")
        refs = [room.send("wait", "x" * 300) for _ in range(50)]
        await anyio.wait_all_tasks_blocked()
        assert server.taken < 2 + 4 + 2
        hall.gate.set()
        assert [one.ref for one in await frames(client, 50)] == refs
        assert await client.heartbeat() == Reply("ok", {})


async def test_messages_that_nobody_will_handle_do_not_count_for_the_backlog() -> None:
    hall = Hall(backlog=4)
    async with connect(hall.channels) as client:
        for _ in range(5):
            room = await client.join("hall:a")
            for _ in range(3):
                room.send("wait")
            await client.heartbeat()  # the second join abandons them
        for n in range(20):
            client.send(None, n, "hall:b", "nothing", {})
            client.send("stale", n, "hall:a", "nothing", {})
        await frames(client, 20 + 4)
        await client.heartbeat()
        (connection,) = hall.channels._service.connections  # pyright: ignore[reportPrivateUsage]
        assert isinstance(connection, Connection)
        assert connection._backlog == 3  # pyright: ignore[reportPrivateUsage]
        hall.gate.set()


async def test_a_backlog_at_its_limit_does_not_keep_a_connection_from_ending(virtual_clock: MockClock) -> None:
    hall = Hall(backlog=3, shutdown_seconds=2)
    async with connect(hall.channels) as client:
        room = await client.join("hall:a")
        for n in range(10):
            room.send("wait", n)
        await anyio.wait_all_tasks_blocked()
        hall.channels.broadcast("hall:a", "news", {})
        start = anyio.current_time()
        async with hall.channels.lifespan():
            pass
        assert await client.closed() == 1012
        assert anyio.current_time() - start == pytest.approx(2)  # pyright: ignore[reportUnknownMemberType]
    assert hall.ends == ["draining"]


async def test_a_mailbox_that_overflows_ends_its_channel(caplog: pytest.LogCaptureFixture) -> None:
    hall = Hall(mailbox=5)
    async with connect(hall.channels) as client:
        room, other = await client.join("hall:a"), await client.join("hall:b")
        room.send("wait")
        await anyio.wait_all_tasks_blocked()
        for n in range(5):
            hall.sockets[0].send_info(n)
        await client.heartbeat()
        assert hall.ends == []
        hall.sockets[0].send_info("one too many")
        assert await room.receive("phx_error") == {"reason": "channel_crash"}
        assert await other.push("nothing") == Reply("error", {"reason": "unmatched event"})
        assert hall.ends == ["error"]
        assert hall.handled == []
    assert hall.channels.statistics().counts["mailbox_overflow"] == 1
    assert "letters wait" in caplog.text


async def test_a_client_can_fill_a_mailbox_itself_again_and_again() -> None:
    hall = Hall(mailbox=2, backlog=6)
    async with connect(hall.channels) as client:
        for _ in range(5):
            room = await client.join("hall:a")
            for _ in range(6):
                room.send("wait")
            assert await room.receive("phx_error") == {"reason": "channel_crash"}
        assert await client.heartbeat() == Reply("ok", {})
    assert hall.ends == ["error"] * 5


async def test_a_silent_client_is_closed_with_1002_when_its_time_is_over(virtual_clock: MockClock) -> None:
    hall = Hall()
    async with connect(hall.channels, timeout=1000) as client:
        room = await client.join("hall:a")
        start = anyio.current_time()
        assert await client.closed() == 1002
        assert 60 <= anyio.current_time() - start < 60 + 2 * SLOWEST_SWEEP
        assert await room.received_nothing()
    assert hall.ends == ["closed"]
    assert hall.channels.statistics().counts == {"idle_timeout": 1}


async def test_messages_of_the_client_keep_it_alive_but_those_to_it_do_not(virtual_clock: MockClock) -> None:
    hall = Hall(idle_seconds=10)
    async with connect(hall.channels, timeout=1000) as client:
        await client.join("hall:a")
        for _ in range(10):
            await anyio.sleep(9)
            await client.heartbeat()
        for _ in range(9):
            await anyio.sleep(1)
            hall.channels.broadcast("hall:a", "news", {})
        await frames(client, 9)
        start = anyio.current_time()
        assert await client.closed() == 1002
        assert 1 <= anyio.current_time() - start < 1 + 2 * pause(10)


async def test_a_client_whose_handlers_are_busy_is_not_called_silent(virtual_clock: MockClock) -> None:
    hall = Hall(idle_seconds=10, backlog=2)
    async with connect(hall.channels, timeout=1000) as client:
        room = await client.join("hall:a")
        for n in range(5):
            room.send("wait", n)
        await anyio.sleep(100)  # nobody reads from it
        hall.gate.set()
        await frames(client, 5)
        await client.heartbeat()
