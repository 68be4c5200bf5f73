"""While a join handler runs: nobody else waits for it, and what concerns its topic waits behind it."""

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from starlette_channels import Channels, EndReason, JoinError, Limits, Reply, Socket, channel
from starlette_channels.testing import Client, Received, connect
from tests.conftest import OK, error, frames, until

pytestmark = pytest.mark.anyio


class Door:
    """Channels with a topic "door" that lets nobody in until it is opened, and others that are open to everyone."""

    def __init__(self, exception: Exception | None = None, limits: Limits | None = None) -> None:
        self.knocks = 0
        self.opened = anyio.Event()
        self.ends: list[EndReason] = []

        @channel("door")
        async def door(socket: Socket, payload: Any) -> None:
            self.knocks += 1
            socket.push("welcome", {})
            await self.opened.wait()
            if exception is not None:
                raise exception

        @door.on("echo")
        async def echo(socket: Socket, payload: Any) -> Any:
            return payload

        @door.terminate
        async def terminate(socket: Socket, reason: EndReason) -> None:
            self.ends.append(reason)

        @channel("open:*")
        async def other(socket: Socket, payload: Any) -> None:
            pass

        other.on("echo")(echo)
        self.channels = Channels([door, other], limits=limits)


async def knock(client: Client, door: Door, join_ref: str = "j") -> None:
    """Begin to join, and wait until the handler runs."""
    knocks = door.knocks
    client.send(join_ref, join_ref, "door", "phx_join", {})
    await until(lambda: door.knocks > knocks)


async def test_a_slow_join_delays_neither_the_heartbeat_nor_other_channels_nor_other_clients() -> None:
    door = Door()
    async with connect(door.channels) as client, connect(door.channels) as stranger:
        before = await client.join("open:before")
        await knock(client, door)
        assert await client.heartbeat() == Reply("ok", {})
        assert await before.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
        after = await client.join("open:after")
        assert await after.push("echo", {"n": 2}) == Reply("ok", {"n": 2})
        strange = await stranger.join("open:after")
        assert await strange.push("echo", {"n": 3}) == Reply("ok", {"n": 3})
        door.channels.broadcast("open:before", "news", {})
        assert await before.receive("news") == {}
        door.opened.set()
        assert await client.reply("j") == Reply("ok", {})


async def test_events_sent_behind_a_join_are_handled_in_order_after_its_reply_and_pushes() -> None:
    door = Door()
    async with connect(door.channels) as client:
        await knock(client, door)
        for number in range(3):
            client.send("j", number, "door", "echo", {"n": number})
        client.send(None, "x", "door", "echo", {"n": "x"})
        client.send("stale", "y", "door", "echo", {})
        await client.heartbeat()
        assert await client.received_nothing()
        door.opened.set()
        came = await frames(client, 6)
    assert [(one.ref, one.event) for one in came] == [
        ("j", "phx_reply"),
        (None, "welcome"),
        *((ref, "phx_reply") for ref in (0, 1, 2, "x")),
    ]
    assert [one.reply.payload["n"] for one in came[2:]] == [0, 1, 2, "x"]


async def test_events_sent_behind_a_join_that_is_refused_are_unmatched() -> None:
    door = Door(JoinError("no"))
    async with connect(door.channels) as client:
        await knock(client, door)
        client.send("j", 1, "door", "echo", {})
        client.send(None, None, "door", "echo", {})
        client.send("j", 2, "door", "phx_leave", {})
        door.opened.set()
        assert await frames(client, 4) == [
            Received("j", "j", "door", "phx_reply", error("no")),
            Received(None, 1, "door", "phx_reply", error("unmatched topic")),
            Received(None, None, "door", "phx_reply", error("unmatched topic")),
            Received("j", 2, "door", "phx_reply", OK),
        ]
        assert await client.received_nothing()
    assert door.ends == []


async def test_a_leave_sent_behind_a_join_is_heeded_after_it() -> None:
    door = Door()
    async with connect(door.channels) as client:
        await knock(client, door)
        client.send("j", "event", "door", "echo", {})
        client.send("j", "leave", "door", "phx_leave", {})
        door.opened.set()
        assert await frames(client, 5) == [
            Received("j", "j", "door", "phx_reply", OK),
            Received("j", None, "door", "welcome", {}),
            Received("j", "event", "door", "phx_reply", OK),
            Received("j", "leave", "door", "phx_reply", OK),
            Received("j", "j", "door", "phx_close", {}),
        ]
        await client.heartbeat()
        assert door.ends == ["left"]


async def test_join_event_leave_and_join_in_one_burst_are_taken_one_after_the_other() -> None:
    door = Door()
    door.opened.set()
    async with connect(door.channels) as client:
        client.send("1", "1", "door", "phx_join", {})
        client.send("1", "2", "door", "echo", {})
        client.send("1", "3", "door", "phx_leave", {})
        client.send("4", "4", "door", "phx_join", {})
        client.send("4", "5", "door", "echo", {})
        assert (await client.reply("1")).status == "ok"
        assert (await client.reply("4")).status == "ok"
        assert (await client.reply("5")).status == "ok"
        assert door.channels.statistics().channels == 1
        assert await client.received_nothing(lambda one: one.join_ref == "4" and one.event == "phx_close")


async def test_a_broadcast_during_a_join_does_not_reach_the_client_and_one_right_after_it_does() -> None:
    door = Door()
    async with connect(door.channels) as client:
        await knock(client, door)
        door.channels.broadcast("door", "early", {})
        door.opened.set()
        assert await client.reply("j") == Reply("ok", {})
        door.channels.broadcast("door", "later", {})
        assert [one.event for one in await frames(client, 2)] == ["welcome", "later"]
        assert await client.received_nothing()


async def test_nothing_of_a_channel_precedes_its_join_reply() -> None:
    door = Door()
    async with connect(door.channels) as client:
        await knock(client, door)
        for number in range(100):
            door.channels.broadcast("door", "news", {"n": number})
            if number == 50:
                door.opened.set()
            await anyio.lowlevel.checkpoint()
        await client.heartbeat()
        assert (await client.receive()).ref == "j"
        assert (await client.receive()).event == "welcome"


async def test_a_client_that_goes_while_a_join_runs_is_not_let_in_and_the_join_finishes() -> None:
    door = Door()
    async with connect(door.channels) as client:
        await knock(client, door)
        client.disconnect()
        await anyio.wait_all_tasks_blocked()
        door.channels.broadcast("door", "news", {})
        door.opened.set()
    assert door.ends == ["closed"]
    assert door.channels.statistics().topics == 0
    assert door.channels.statistics().connections == 0


async def test_a_join_that_never_returns_is_cancelled_a_while_after_its_client_has_gone(virtual_clock: object) -> None:
    door = Door(limits=Limits(shutdown_seconds=3, idle_seconds=1000))
    async with connect(door.channels) as client:
        await knock(client, door)
        await anyio.sleep(900)  # there is no timeout for a join as long as its client is there
        await client.heartbeat()
        client.disconnect()
        gone = anyio.current_time()
    assert anyio.current_time() - gone == pytest.approx(3)  # pyright: ignore[reportUnknownMemberType]
    assert door.ends == []
    assert door.channels.statistics().channels == 0


async def test_pending_joins_count_for_the_limit() -> None:
    door = Door(limits=Limits(channels=1))
    async with connect(door.channels) as client:
        await knock(client, door)
        client.send("2", "2", "open:a", "phx_join", {})
        assert (await client.reply("2")).payload == {"reason": "too many channels joined"}
        door.opened.set()
        assert (await client.reply("j")).status == "ok"


async def test_a_join_lets_a_cancellation_through_that_was_not_meant_for_it(anyio_backend_name: str) -> None:
    door = Door(anyio.get_cancelled_exc_class()() if anyio_backend_name == "asyncio" else RuntimeError())  # type: ignore
    async with connect(door.channels) as client:
        bystander = await client.join("open:a")
        door.opened.set()
        client.send("j", "j", "door", "phx_join", {})
        assert await client.reply("j") == Reply("error", {"reason": "join crashed"})
        assert await bystander.push("echo", {"n": 1}) == Reply("ok", {"n": 1})


async def test_a_join_that_stops_itself_and_is_refused_all_the_same_is_just_refused() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.stop()
        raise JoinError("no")

    channels = Channels([room])
    async with connect(channels) as client:
        client.send("1", "1", "room:a", "phx_join", {})
        assert await client.receive() == Received("1", "1", "room:a", "phx_reply", error("no"))
        assert await client.received_nothing()
        assert channels.statistics().channels == 0


async def test_a_channel_can_be_stopped_by_its_own_join() -> None:
    ends: list[str] = []

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.push("sorry", {})
        socket.stop()

    @room.terminate
    async def terminate(socket: Socket, reason: str) -> None:
        ends.append(reason)

    channels = Channels([room])
    async with connect(channels) as client:
        await client.join("room:a")
        assert [one.event for one in await frames(client, 2)] == ["sorry", "phx_close"]
        await client.heartbeat()
        assert ends == ["stopped"]
        assert channels.statistics().channels == 0
