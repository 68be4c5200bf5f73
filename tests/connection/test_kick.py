"""`channels.kick(socket_id, topic)`: one user out of one topic, wherever that user is connected."""

from typing import Any

import anyio
import anyio.to_thread
import pytest
from msgspec import Struct

from starlette_channels import Channels, Handshake, JoinError, Limits, Reply, Socket, channel
from starlette_channels.testing import JoinRefused, connect
from tests.conftest import frames, lines, until
from tests.support.polling import Poller

pytestmark = pytest.mark.anyio


class User(Struct):
    name: str


class House:
    """Rooms of users with names, handlers that wait for a gate, and a note of how channels ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str, str]] = []
        self.banned: set[str] = set()
        self.gate = anyio.Event()
        self.busy = 0

        async def enter(conn: Handshake) -> User:
            return User(conn.params.get("user", ""))

        @channel("room:*", "user:*")
        async def room(socket: Socket[User], payload: Any) -> None:
            if socket.assigns.name in self.banned:
                raise JoinError("banned")
            if socket.subtopic == "slow":
                self.busy += 1
                await self.gate.wait()

        @room.on("work")
        async def work(socket: Socket[User], payload: Any) -> Reply:
            self.busy += 1
            await self.gate.wait()
            return Reply("ok", payload)

        @room.on("leave me")
        async def leave_me(socket: Socket[User], payload: Any) -> dict[str, str]:
            self.channels.kick("ann", socket.topic)
            return {"last": "words"}

        @room.on_any
        async def relay(socket: Socket[User], event: str, payload: Any) -> None:
            socket.broadcast(event, payload)

        @room.terminate
        async def terminate(socket: Socket[User], reason: str) -> None:
            self.ends.append((socket.assigns.name, socket.topic, reason))

        self.channels = Channels(
            [room],
            connect=enter,
            socket_id=lambda user: user.name,
            limits=Limits(shutdown_seconds=2.0),
            longpoll=True,
        )


@pytest.fixture
async def house() -> House:
    return House()


async def test_one_user_leaves_one_topic_on_all_connections_and_is_told_why(house: House) -> None:
    channels = house.channels
    async with (
        connect(channels, user="ann") as phone,
        connect(channels, user="ann", vsn="1.0.0") as laptop,
        connect(channels, user="bob") as bob,
    ):
        for client in (phone, laptop, bob):
            await client.join("room:a")
            await client.join("room:b")
        channels.kick("ann", "room:a", reason="flooding")
        kicked, closed = await frames(phone, 2)
        assert (kicked.join_ref, kicked.ref, kicked.topic, kicked.event) == ("1", None, "room:a", "kicked")
        assert kicked.payload == {"reason": "flooding"}
        assert (closed.join_ref, closed.topic, closed.event) == ("1", "room:a", "phx_close")
        assert [one.event for one in await frames(laptop, 2)] == ["kicked", "phx_close"]
        channels.broadcast("room:a", "news", {})
        channels.broadcast("room:b", "news", {})
        assert [one.topic for one in await frames(bob, 2)] == ["room:a", "room:b"]
        assert [one.topic for one in await frames(phone, 1)] == ["room:b"]
        assert await phone.heartbeat() == Reply("ok")
        assert house.ends == [("ann", "room:a", "kicked")] * 2


async def test_without_a_reason_there_is_only_the_close(house: House) -> None:
    async with connect(house.channels, user="ann") as client:
        await client.join("room:a")
        house.channels.kick("ann", "room:a")
        assert lines(await frames(client, 1)) == [("1", "1", "phx_close")]


async def test_who_was_kicked_may_join_anew_if_the_join_handler_lets_them(house: House) -> None:
    async with connect(house.channels, user="ann") as client:
        await client.join("room:a")
        house.channels.kick("ann", "room:a")
        await frames(client, 1)
        await client.join("room:a")
        house.banned.add("ann")
        house.channels.kick("ann", "room:a")
        await frames(client, 1)
        with pytest.raises(JoinRefused, match="banned"):
            await client.join("room:a")


async def test_a_running_handler_finishes_and_what_waits_behind_it_is_turned_away(house: House) -> None:
    async with connect(house.channels, user="ann") as client:
        room = await client.join("room:a")
        first, second = room.send("work", {"number": 1}), room.send("work", {"number": 2})
        await until(lambda: house.busy == 1)
        house.channels.kick("ann", "room:a", reason="enough")
        house.channels.broadcast("room:a", "news", {})
        assert await room.receive("kicked") == {"reason": "enough"}
        assert await client.received_nothing()
        house.gate.set()
        assert await client.reply(first) == Reply("ok", {"number": 1})
        await room.receive("phx_close")
        assert await client.reply(second) == Reply("error", {"reason": "unmatched topic"})
        assert await client.received_nothing()
    assert house.busy == 1


async def test_a_handler_that_hangs_is_cancelled(house: House, virtual_clock: object) -> None:
    async with connect(house.channels, user="ann") as client:
        room = await client.join("room:a")
        room.send("work")
        await until(lambda: house.busy == 1)
        began = anyio.current_time()
        house.channels.kick("ann", "room:a")
        await room.receive("phx_close")
        assert anyio.current_time() - began == pytest.approx(2.0)
        await client.join("room:a")
    assert house.ends == [("ann", "room:a", "kicked"), ("ann", "room:a", "closed")]


async def test_a_handler_may_kick_its_own_user(house: House) -> None:
    async with connect(house.channels, user="ann") as client:
        room = await client.join("room:a")
        assert await room.push("leave me") == Reply("ok", {"last": "words"})
        await room.receive("phx_close")


async def test_a_join_that_is_going_on_is_answered_first(house: House) -> None:
    async with connect(house.channels, user="ann") as client:
        client.send("1", "1", "room:slow", "phx_join", {})
        await until(lambda: house.busy == 1)
        house.channels.kick("ann", "room:slow", reason="no")
        assert await client.received_nothing()
        house.gate.set()
        assert [one.event for one in await frames(client, 3)] == ["phx_reply", "kicked", "phx_close"]


async def test_what_nobody_has_and_what_is_no_topic_of_theirs_is_no_error(house: House) -> None:
    async with connect(house.channels, user="ann") as client:
        await client.join("room:a")
        for socket_id, topic in (("ann", "room:b"), ("ann", "room:*"), ("nobody", "room:a"), ("", "")):
            house.channels.kick(socket_id, topic, reason="why")
        assert await client.heartbeat() == Reply("ok")
        house.channels.kick("ann", "room:a")
        house.channels.kick("ann", "room:a", reason="again")
        assert lines(await frames(client, 1)) == [("1", "1", "phx_close")]
        assert await client.received_nothing()


async def test_it_may_come_from_another_thread(house: House) -> None:
    async with connect(house.channels, user="ann") as client:
        room = await client.join("room:a")
        await anyio.to_thread.run_sync(house.channels.kick, "ann", "room:a")
        await room.receive("phx_close")


async def test_it_reaches_clients_that_poll(house: House) -> None:
    poller = await Poller(house.channels, user="ann").open()
    await poller.join("room:a")
    house.channels.kick("ann", "room:a", reason="flooding")
    await until(lambda: bool(house.ends))
    assert [frame[3] for frame in (await poller.poll()).frames] == ["kicked", "phx_close"]
    house.channels.disconnect("ann")


async def test_a_reason_that_is_no_unicode_is_refused(house: House) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        house.channels.kick("ann", "room:a", reason="\ud800")


async def test_clients_have_no_say_in_it_whatever_handlers_pass_on(house: House) -> None:
    async with connect(house.channels, user="user:ann") as ann, connect(house.channels, user="mallory") as mallory:
        await ann.join("room:a")
        topic = await mallory.join("user:ann")  # a topic that is somebody's id
        for event in ("disconnect", "kick", "kicked"):
            topic.send(event, {"tag": "disconnect", "type": "kick", "topic": "room:a", "code": 4000, "reason": "!"})
            assert (await topic.receive(event))["topic"] == "room:a"
        assert await ann.heartbeat() == Reply("ok")
        assert await ann.received_nothing()
        house.channels.broadcast("user:ann", "disconnect", {})
        assert await ann.closed() == 1001
