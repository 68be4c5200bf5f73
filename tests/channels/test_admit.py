"""`await socket.admit()`: the client is subscribed before its join reads what it answers, so that it misses nothing."""

from collections import Counter
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from msgspec import Struct

from starlette_channels import (
    Channels,
    EndReason,
    JoinError,
    Limits,
    Presence,
    Reply,
    Socket,
    WhenSlow,
    channel,
    latest_by_key,
)
from starlette_channels.testing import Client, JoinRefused, connect
from tests.conftest import error, frames, lines, until
from tests.support.polling import Poller

pytestmark = pytest.mark.anyio


class Item(Struct):
    n: int


class Shop:
    """A topic whose join handler admits the client, if it is told to, and then waits until a test lets it go on."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        admits: bool = True,
        longpoll: bool = False,
        when_slow: WhenSlow = "disconnect",
    ) -> None:
        self.rows: list[int] = []
        self.reading = 0
        self.read = anyio.Event()
        self.sockets: list[Socket[Any]] = []
        self.outcome: Exception | None = None
        self.ends: list[EndReason] = []

        @channel("shop:*", when_slow=when_slow)
        async def shop(socket: Socket, payload: dict[str, Any]) -> dict[str, Any]:
            self.sockets.append(socket)
            if payload.get("quick"):
                return {}
            answers = [await socket.admit() for _ in range(2 if payload.get("twice") else 1)] if admits else []
            socket.push("first", {})
            rows = list(self.rows)
            self.reading += 1
            await self.read.wait()
            socket.push("last", {})
            if self.outcome is not None:
                raise self.outcome
            return {"rows": rows, "answers": answers}

        @shop.on("add")
        async def add(socket: Socket, payload: Item) -> Reply:
            self.rows.append(payload.n)
            socket.broadcast("added", payload)
            return Reply("ok")

        @shop.on("admit")
        async def late(socket: Socket, payload: Any) -> None:
            await socket.admit()

        @shop.intercept("priced")
        async def priced(socket: Socket, payload: Item) -> None:
            await anyio.lowlevel.checkpoint()
            socket.push("price", {"n": payload.n})

        @shop.terminate
        async def terminate(socket: Socket, reason: EndReason) -> None:
            self.ends.append(reason)

        self.channels = Channels([shop], socket_id=lambda _: "ann", limits=limits, longpoll=longpoll)

    async def visit(self, client: Client, join_ref: str = "j", **payload: Any) -> None:
        """Begin to join, and wait until the state is being read."""
        before = self.reading
        client.send(join_ref, join_ref, "shop:a", "phx_join", payload)
        await until(lambda: self.reading > before)

    def say(self, event: str, number: int) -> None:
        self.channels.broadcast("shop:a", event, Item(number))


@pytest.fixture
async def shop() -> Shop:
    return Shop()


async def test_what_is_broadcast_while_a_join_reads_its_state_is_in_the_state_or_follows_it(shop: Shop) -> None:
    async with connect(shop.channels) as writer, connect(shop.channels) as reader:
        there = await writer.join("shop:a", {"quick": True})
        await there.push("add", {"n": 1})
        await shop.visit(reader)
        await there.push("add", {"n": 2})
        shop.read.set()
        assert (await reader.reply("j")).payload == {"rows": [1], "answers": [False]}
        await there.push("add", {"n": 3})
        added = [one.payload["n"] for one in await frames(reader, 4) if one.event == "added"]
        assert added == [2, 3]


async def test_without_it_what_is_broadcast_during_the_join_does_not_reach_the_client() -> None:
    shop = Shop(admits=False)
    async with connect(shop.channels) as client:
        await shop.visit(client)
        shop.say("added", 1)
        shop.read.set()
        await client.reply("j")
        shop.say("added", 2)
        assert [(one.event, one.payload.get("n")) for one in await frames(client, 3)] == [
            ("first", None),
            ("last", None),
            ("added", 2),
        ]


@pytest.mark.parametrize("vsn", ["2.0.0", "1.0.0"])
async def test_broadcasts_are_held_behind_the_reply_in_order_with_the_pushes(shop: Shop, vsn: str) -> None:
    async with connect(shop.channels, vsn=vsn) as client:
        await shop.visit(client)
        shop.say("added", 1)
        shop.sockets[0].push("between", {})
        shop.say("added", 2)
        assert await client.received_nothing()
        shop.read.set()
        came = await frames(client, 6)
    assert [one.event for one in came] == ["phx_reply", "first", "added", "between", "added", "last"]
    assert [one.payload["n"] for one in came if one.event == "added"] == [1, 2]


async def test_bytes_are_held_as_well_and_skipped_for_a_client_that_cannot_have_them(shop: Shop) -> None:
    async with connect(shop.channels) as client, connect(shop.channels, vsn="1.0.0") as old:
        await shop.visit(client)
        await shop.visit(old)
        shop.channels.broadcast("shop:a", "picture", b"\x00\xff")
        shop.read.set()
        assert [(one.event, one.payload) for one in (await frames(client, 4))[1:]] == [
            ("first", {}),
            ("picture", b"\x00\xff"),
            ("last", {}),
        ]
        assert [one.event for one in await frames(old, 3)] == ["phx_reply", "first", "last"]
    assert shop.channels.statistics().counts == {"inexpressible_broadcast": 1}


async def test_a_second_call_changes_nothing(shop: Shop) -> None:
    shop.read.set()
    async with connect(shop.channels) as client:
        joined = await client.join("shop:a", {"twice": True})
        assert joined.reply.payload["answers"] == [False, False]
        shop.say("added", 1)
        assert await joined.receive("added") == {"n": 1}
        assert await joined.received_nothing("added")


@pytest.mark.parametrize(
    ("outcome", "reason"), [(JoinError("no"), "no"), (RuntimeError("secret"), "join crashed")], ids=["refused", "crash"]
)
async def test_what_is_held_is_dropped_if_the_join_fails_after_all(shop: Shop, outcome: Exception, reason: str) -> None:
    shop.outcome = outcome
    async with connect(shop.channels) as client:
        await shop.visit(client)
        shop.say("added", 1)
        shop.say("priced", 2)
        shop.read.set()
        assert (await client.receive()).payload == error(reason)
        shop.say("added", 3)
        assert await client.received_nothing()
        assert shop.channels.statistics().topics == 0
        shop.outcome = None
        joined = await client.join("shop:a")
        assert [one.event for one in await frames(client, 2)] == ["first", "last"]
        assert await joined.received_nothing()


async def test_what_is_held_is_dropped_if_the_join_takes_too_long() -> None:
    shop = Shop(Limits(handler_seconds=0.2))
    async with connect(shop.channels) as client:
        await shop.visit(client)
        shop.say("added", 1)
        assert (await client.receive()).payload == error("join timed out")
        shop.say("added", 2)
        assert await client.received_nothing()
        assert shop.channels.statistics().topics == 0


async def test_what_is_held_is_dropped_if_the_client_goes(shop: Shop) -> None:
    async with connect(shop.channels) as client:
        await shop.visit(client)
        shop.say("added", 1)
        client.disconnect()
        await anyio.wait_all_tasks_blocked()
        shop.say("added", 2)
        shop.read.set()
    assert shop.channels.statistics().topics == 0
    assert shop.ends == ["closed"]


async def test_a_client_for_which_too_much_would_be_held_is_refused_and_may_come_again() -> None:
    shop = Shop(Limits(outbox_bytes=1_000))
    async with connect(shop.channels) as client, connect(shop.channels) as other:
        there = await other.join("shop:a", {"quick": True})
        await shop.visit(client)
        for number in range(200):
            shop.channels.broadcast("shop:a", "filled", {"n": number, "filler": "x" * 90})
        assert await there.receive("filled") == {"n": 0, "filler": "x" * 90}
        shop.read.set()
        assert (await client.receive()).payload == error("join overflow")
        assert await client.received_nothing()
        assert shop.channels.statistics().counts == {"join_overflow": 1}
        await client.join("shop:a")


async def test_intercepted_broadcasts_count_as_held_and_are_handled_behind_the_reply_in_order(shop: Shop) -> None:
    async with connect(shop.channels) as client:
        await shop.visit(client)
        for number in range(3):
            shop.say("priced", number)
        client.send("j", "2", "shop:a", "add", {"n": 9})
        await anyio.wait_all_tasks_blocked()
        shop.say("priced", 3)
        shop.read.set()
        came = await frames(client, 9)
        assert [one.event for one in came[:3]] == ["phx_reply", "first", "last"]
        assert [one.payload["n"] for one in came if one.event == "price"] == [0, 1, 2, 3]
    shop = Shop(Limits(outbox_bytes=1_000))
    async with connect(shop.channels) as client:
        await shop.visit(client)
        for _ in range(200):
            shop.say("priced", 1)
        shop.read.set()
        assert (await client.receive()).payload == error("join overflow")


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest", latest_by_key("n")], ids=["end", "oldest", "latest"])
async def test_what_is_held_is_dropped_by_no_policy_since_the_client_is_not_slow(policy: WhenSlow) -> None:
    """Texts, bytes and intercepted broadcasts: all follow the reply."""
    shop = Shop(when_slow=policy)
    async with connect(shop.channels) as client:
        await shop.visit(client)
        for number in range(5):
            shop.say("added", 1)
            shop.channels.broadcast("shop:a", "picture", bytes([number]))
            shop.say("priced", 1)
        shop.read.set()
        assert [one.event for one in await frames(client, 2)] == ["phx_reply", "first"]
        came = await frames(client, 16)
        assert [one.payload for one in came if one.event == "picture"] == [bytes([number]) for number in range(5)]
        assert Counter(one.event for one in came) == {"added": 5, "picture": 5, "last": 1, "price": 5}
    assert shop.channels.statistics().counts == {}


async def test_what_the_join_itself_broadcasts_comes_back_and_what_it_broadcasts_from_does_not(shop: Shop) -> None:
    async with connect(shop.channels) as client, connect(shop.channels) as other:
        there = await other.join("shop:a", {"quick": True})
        await shop.visit(client)
        shop.sockets[-1].broadcast_from("entered", {"to": "others"})
        shop.sockets[-1].broadcast("entered", {"to": "all"})
        shop.read.set()
        assert [await there.receive("entered") for _ in range(2)] == [{"to": "others"}, {"to": "all"}]
        came = await frames(client, 4)
        assert [one.payload for one in came if one.event == "entered"] == [{"to": "all"}]


async def test_it_is_an_error_outside_of_a_join_handler() -> None:
    raised: list[str] = []

    async def attempt(socket: Socket) -> None:
        try:
            await socket.admit()
        except RuntimeError as error:
            raised.append(str(error))

    @channel("room:*")
    async def room(socket: Socket, payload: dict[str, Any]) -> None:
        socket.on_close(lambda: attempt(socket))
        if payload:
            raise JoinError("no")

    @room.on("event")
    async def event(socket: Socket, payload: Any) -> Reply:
        await attempt(socket)
        return Reply("ok")

    @room.info(str)
    async def info(socket: Socket, message: str) -> None:
        await attempt(socket)

    @room.terminate
    async def terminate(socket: Socket, reason: EndReason) -> None:
        await attempt(socket)

    async with connect(Channels([room])) as client:
        joined = await client.join("room:a")
        await joined.push("event")
        await joined.leave()
        await anyio.wait_all_tasks_blocked()
        assert len(raised) == 3
        with pytest.raises(JoinRefused):
            await client.join("room:a", {"refuse": True})
        await anyio.wait_all_tasks_blocked()
        assert len(raised) == 4
    assert all("await it in the join handler, the function under @channel" in text for text in raised)


async def test_it_is_an_error_in_another_event_loop() -> None:
    raised: list[str] = []

    def elsewhere(socket: Socket) -> None:
        with pytest.raises(RuntimeError, match="no join is going on") as caught:
            anyio.run(socket.admit, backend="asyncio")
        raised.append(str(caught.value))

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        await anyio.to_thread.run_sync(elsewhere, socket)

    async with connect(Channels([room])) as client:
        await client.join("room:a")
    assert len(raised) == 1


async def test_who_is_kicked_during_the_join_gets_nothing_that_is_broadcast_afterwards(shop: Shop) -> None:
    async with connect(shop.channels) as client:
        await shop.visit(client)
        shop.say("added", 1)
        shop.channels.kick("ann", "shop:a")
        await anyio.wait_all_tasks_blocked()
        shop.say("added", 2)
        shop.read.set()
        came = await frames(client, 5)
        assert [one.event for one in came] == ["phx_reply", "first", "added", "last", "phx_close"]
        assert [one.payload["n"] for one in came if one.event == "added"] == [1]
        assert await client.received_nothing()
        assert shop.channels.statistics().topics == 0


async def test_who_is_kicked_before_it_is_not_subscribed_by_it() -> None:
    gate = anyio.Event()
    busy = 0

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        nonlocal busy
        busy += 1
        await gate.wait()
        await socket.admit()
        channels.broadcast("room:a", "news", {})

    channels = Channels([room], socket_id=lambda _: "ann")
    async with connect(channels) as client:
        client.send("j", "j", "room:a", "phx_join", {})
        await until(lambda: busy == 1)
        channels.kick("ann", "room:a")
        await anyio.wait_all_tasks_blocked()
        gate.set()
        assert lines(await frames(client, 2)) == [("j", "j", "phx_reply"), ("j", "j", "phx_close")]
        assert await client.received_nothing()


async def test_a_second_join_during_the_first_gets_each_broadcast_once(shop: Shop) -> None:
    async with connect(shop.channels) as client:
        await shop.visit(client, "1")
        shop.say("added", 1)
        client.send("2", "2", "shop:a", "phx_join", {})
        await anyio.wait_all_tasks_blocked()
        shop.read.set()
        assert (await client.reply("1")).status == "ok"
        assert (await client.reply("2")).status == "ok"
        shop.say("added", 2)
        added = await client.receive(lambda one: one.event == "added")
        assert added.payload == {"n": 2}
        assert await client.received_nothing(lambda one: one.event == "added")
        assert shop.channels.statistics().topics == 1


async def test_a_disconnect_during_the_join_ends_it(shop: Shop) -> None:
    async with connect(shop.channels) as client:
        await shop.visit(client)
        shop.say("added", 1)
        shop.channels.disconnect("ann")
        assert await client.closed() == 1001
        shop.read.set()
    assert shop.channels.statistics().topics == 0


async def test_presence_may_be_tracked_before_it_or_after_it() -> None:
    presence = Presence()

    @channel("lobby:*")
    async def lobby(socket: Socket, payload: dict[str, Any]) -> None:
        if payload["early"]:
            presence.track(socket, payload["name"])
        await socket.admit()
        if not payload["early"]:
            presence.track(socket, payload["name"])
        presence.push_state(socket)
        await anyio.wait_all_tasks_blocked()
        if payload.get("refuse"):
            raise JoinError("no")

    channels = Channels([lobby], presence=presence)
    for early in (True, False):
        async with connect(channels) as client, connect(channels) as other:
            there = await client.join("lobby:a", {"name": "ann", "early": early})
            ann = await there.receive("presence_state")
            assert list(ann) == ["ann"]
            diff = await there.receive("presence_diff")
            assert (list(diff["joins"]), diff["leaves"]) == (["ann"], {})
            with pytest.raises(JoinRefused):
                await other.join("lobby:a", {"name": "ben", "early": early, "refuse": True})
            assert list((await there.receive("presence_diff"))["joins"]) == ["ben"]
            assert list((await there.receive("presence_diff"))["leaves"]) == ["ben"]
            assert await other.received_nothing()
        await until(lambda: presence.count("lobby:a") == 0)


async def test_a_long_poll_client_gets_the_held_broadcasts_behind_the_reply() -> None:
    shop = Shop(longpoll=True)
    poller = await Poller(shop.channels).open()
    assert await poller.post(["j", "j", "shop:a", "phx_join", {}]) == 200
    await until(lambda: shop.reading == 1)
    shop.say("added", 1)
    shop.read.set()
    came = (await poller.poll()).frames
    assert [frame[3] for frame in came] == ["phx_reply", "first", "added", "last"]


async def test_the_broadcasts_of_other_threads_are_held_as_well(shop: Shop) -> None:
    async with connect(shop.channels) as client:
        await shop.visit(client)
        await anyio.to_thread.run_sync(shop.say, "added", 1)
        await anyio.wait_all_tasks_blocked()
        shop.read.set()
        assert [one.event for one in await frames(client, 4)] == ["phx_reply", "first", "added", "last"]
