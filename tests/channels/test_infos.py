"""A channel's own messages, broadcasts of other topics, and tasks beside the handlers."""

import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec import Raw, Struct

from starlette_channels import Broadcast, Channel, Channels, Reply, Socket, channel
from starlette_channels.testing import Received, connect
from tests.conftest import frames, lines

pytestmark = pytest.mark.anyio


class Animal(Struct):
    name: str


class Dog(Animal):
    pass


class Stone(Struct):
    pass


class Hall:
    """A channel that keeps the sockets of its clients, and tells them what it hears."""

    def __init__(self) -> None:
        self.sockets: list[Socket] = []

        @channel("hall:*")
        async def hall(socket: Socket, payload: Any) -> None:
            self.sockets.append(socket)

        @hall.on("subscribe")
        async def subscribe(socket: Socket, topic: str) -> dict[str, Any]:
            socket.subscribe(topic)
            return {}

        @hall.on("unsubscribe")
        async def unsubscribe(socket: Socket, topic: str) -> dict[str, Any]:
            socket.unsubscribe(topic)
            return {}

        @hall.on("shout")
        async def shout(socket: Socket, payload: Any) -> dict[str, Any]:
            socket.broadcast_from("shout", payload)
            return {}

        @hall.info(Broadcast)
        async def heard(socket: Socket, message: Broadcast) -> None:
            payload = message.payload if isinstance(message.payload, bytes) else {"heard": message.payload}
            socket.push(f"{message.event} on {message.topic}", payload)

        self.hall = hall
        self.channels = Channels([hall])


def listening_to(hall: Channel[Any], *kinds: type) -> None:
    """Add an info handler for each class; it tells which one it is."""
    for kind in kinds:

        def handler(kind: type) -> Any:
            async def info(socket: Socket, message: Any) -> None:
                socket.push(kind.__name__, {"got": type(message).__name__})

            return info

        hall.info(kind)(handler(kind))


async def test_a_message_goes_to_the_handler_of_its_class_or_of_the_nearest_base() -> None:
    house = Hall()
    listening_to(house.hall, Animal, str, int)
    async with connect(house.channels) as client:
        await client.join("hall:a")
        for message, kind in [(Dog("rex"), "Animal"), (Animal("tom"), "Animal"), ("text", "str"), (True, "int")]:
            house.sockets[0].send_info(message)
            came = await client.receive()
            assert (came.join_ref, came.event, came.payload) == ("1", kind, {"got": type(message).__name__})
    listening_to(house.hall, Dog)
    async with connect(house.channels) as client:
        await client.join("hall:a")
        house.sockets[1].send_info(Dog("rex"))
        assert (await client.receive()).event == "Dog"


async def test_a_handler_for_object_takes_every_message() -> None:
    house = Hall()
    listening_to(house.hall, object)
    async with connect(house.channels) as client:
        await client.join("hall:a")
        for message in (Stone(), None, 7):
            house.sockets[0].send_info(message)
            assert (await client.receive()).payload == {"got": type(message).__name__}


async def test_a_message_that_nobody_handles_is_logged_and_counted_and_the_channel_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = Hall()
    async with connect(house.channels) as client:
        hall = await client.join("hall:a")
        house.sockets[0].send_info(Stone())
        assert await hall.push("subscribe", "other") == Reply("ok", {})
    assert house.channels.statistics().counts == {"unmatched_info": 1}
    (record,) = [record for record in caplog.records if "no info handler for Stone" in record.message]
    assert record.levelno == logging.WARNING


async def test_an_info_handler_that_raises_ends_its_channel() -> None:
    house = Hall()

    @house.hall.info(Stone)
    async def stone(socket: Socket, message: Stone) -> None:
        raise RuntimeError("a stone")

    async with connect(house.channels) as client:
        hall, other = await client.join("hall:a"), await client.join("hall:b")
        house.sockets[0].send_info(Stone())
        assert await hall.receive("phx_error") == {"reason": "channel_crash"}
        assert await other.push("subscribe", "x") == Reply("ok", {})


async def test_messages_queue_behind_the_events_that_wait_and_keep_their_order() -> None:
    house = Hall()
    gate = anyio.Event()
    listening_to(house.hall, str)

    @house.hall.on("wait")
    async def wait(socket: Socket, payload: Any) -> dict[str, Any]:
        await gate.wait()
        return {}

    async with connect(house.channels) as client:
        hall = await client.join("hall:a")
        refs = [hall.send("wait"), hall.send("wait")]
        await anyio.wait_all_tasks_blocked()
        house.sockets[0].send_info("one")
        refs.append(hall.send("wait"))
        await anyio.wait_all_tasks_blocked()
        house.sockets[0].send_info("two")
        gate.set()
        came = lines(await frames(client, 5))
    assert [ref or event for _, ref, event in came] == [refs[0], refs[1], "str", refs[2], "str"]


async def test_after_the_end_messages_pushes_and_children_go_nowhere() -> None:
    house = Hall()
    listening_to(house.hall, str)
    ran: list[str] = []

    async def child() -> None:
        ran.append("child")

    async with connect(house.channels) as client:
        hall = await client.join("hall:a")
        await hall.leave()
        (socket,) = house.sockets
        socket.send_info("late")
        socket.push("late", {})
        socket.start_soon(child)
        socket.subscribe("late")
        socket.stop()
        again = await client.join("hall:a")
        socket.broadcast("still", {"works": True})  # to others: the socket is no subscriber any more
        assert await again.receive("still") == {"works": True}
        assert await client.received_nothing()
        assert ran == []
        assert house.channels.statistics().topics == 1
        assert house.channels.statistics().counts == {"pushed_after_end": 1}


async def test_broadcasts_of_a_topic_that_a_handler_subscribed_to_come_as_messages_not_to_the_client() -> None:
    house = Hall()
    async with connect(house.channels) as client:
        hall = await client.join("hall:a")
        await hall.push("subscribe", "elsewhere")
        house.channels.broadcast("elsewhere", "news", {"n": 1})
        house.channels.broadcast("elsewhere", "bytes", b"\x00")
        house.channels.broadcast("hall:a", "direct", {})
        came = await frames(client, 3)
        assert Received(None, None, "hall:a", "direct", {}) in came
        assert Received("1", None, "hall:a", "news on elsewhere", {"heard": {"n": 1}}) in came
        assert Received("1", None, "hall:a", "bytes on elsewhere", b"\x00") in came


async def test_two_subscriptions_deliver_twice_and_one_unsubscribe_ends_both() -> None:
    house = Hall()
    async with connect(house.channels) as client:
        hall = await client.join("hall:a")
        for _ in range(2):
            await hall.push("subscribe", "elsewhere")
        house.channels.broadcast("elsewhere", "news", {"n": 1})
        assert [one.payload for one in await frames(client, 2)] == [{"heard": {"n": 1}}] * 2
        await hall.push("unsubscribe", "elsewhere")
        await hall.push("unsubscribe", "never subscribed")
        house.channels.broadcast("elsewhere", "news", {"n": 2})
        assert await client.received_nothing()
        assert house.channels.statistics().topics == 1


async def test_a_subscription_to_the_own_topic_comes_beside_the_broadcast_itself() -> None:
    house = Hall()
    async with connect(house.channels) as client:
        hall = await client.join("hall:a")
        await hall.push("subscribe", "hall:a")
        house.channels.broadcast("hall:a", "news", {"n": 1})
        assert [one.event for one in await frames(client, 2)] == ["news", "news on hall:a"]
        await hall.push("unsubscribe", "hall:a")
        house.channels.broadcast("hall:a", "news", {"n": 2})
        assert [one.event for one in await frames(client, 1)] == ["news"]
        assert await client.received_nothing()


async def test_a_subscription_to_the_own_topic_gets_what_is_intercepted_through_that_handler_too() -> None:
    house = Hall()

    @house.hall.intercept("secret")
    async def secret(socket: Socket, payload: Any) -> None:
        socket.push("intercepted", {})

    async with connect(house.channels) as client:
        hall = await client.join("hall:a")
        await hall.push("subscribe", "hall:a")
        house.channels.broadcast("hall:a", "secret", {})
        assert [one.event for one in await frames(client, 2)] == ["intercepted", "intercepted"]
        assert await client.received_nothing()


async def test_what_a_channel_sends_from_itself_reaches_none_of_its_own_subscriptions() -> None:
    house = Hall()
    async with connect(house.channels) as one, connect(house.channels) as two:
        ann, bob = await one.join("hall:a"), await two.join("hall:b")
        await ann.push("subscribe", "hall:a")
        await bob.push("subscribe", "hall:a")
        await ann.push("shout", {"n": 1})
        assert await bob.receive("shout on hall:a") == {"heard": {"n": 1}}
        assert await one.received_nothing()


@pytest.mark.parametrize("how", ["leave", "crash", "rejoin", "disconnect"])
async def test_subscriptions_end_with_their_channel(how: str) -> None:
    house = Hall()
    async with connect(house.channels) as client:
        hall = await client.join("hall:a")
        await hall.push("subscribe", "elsewhere")
        assert house.channels.statistics().topics == 2
        if how == "leave":
            await hall.leave()
        elif how == "crash":
            house.sockets[0].start_soon(anyio.sleep, "no number")  # pyright: ignore[reportArgumentType]
            await hall.receive("phx_error")
        elif how == "rejoin":
            await client.join("hall:a")
        else:
            client.disconnect()
            await anyio.wait_all_tasks_blocked()
        house.channels.broadcast("elsewhere", "news", {})
        assert await client.received_nothing(lambda one: one.event.startswith("news"))
        assert house.channels.statistics().topics == (1 if how == "rejoin" else 0)


async def test_a_subscription_made_in_a_join_begins_at_once_and_is_heard_after_the_reply() -> None:
    house = Hall()
    channels = house.channels

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.subscribe("elsewhere")
        channels.broadcast("elsewhere", "news", {"n": 1})

    room.info(Broadcast)(house.hall.infos[Broadcast])
    channels = Channels([room])
    async with connect(channels) as client:
        await client.join("room:a")
        assert (await client.receive()).event == "news on elsewhere"


async def test_a_broadcast_that_nobody_decodes_is_an_unmatched_message() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.subscribe("elsewhere")

    channels = Channels([room])
    async with connect(channels) as client:
        await client.join("room:a")
        channels.broadcast("elsewhere", "news", Raw(b"{}"))
        await client.heartbeat()
        await client.join("room:a")
    assert channels.statistics().counts == {"unmatched_info": 1}


async def test_a_child_runs_beside_the_handlers_and_may_push_until_it_returns() -> None:
    house = Hall()
    gate = anyio.Event()

    @house.hall.on("count")
    async def count(socket: Socket, payload: Any) -> dict[str, Any]:
        async def child(start: int, end: int) -> None:
            for n in range(start, end):
                socket.push("n", {"n": n})
                await anyio.lowlevel.checkpoint()
            await gate.wait()
            socket.push("done", {})

        socket.start_soon(child, 1, 4)
        return {}

    async with connect(house.channels) as client:
        hall = await client.join("hall:a")
        assert await hall.push("count") == Reply("ok", {})
        assert [one.payload["n"] for one in await frames(client, 3)] == [1, 2, 3]
        assert await hall.push("subscribe", "x") == Reply("ok", {})  # the child holds nothing up
        gate.set()
        assert await hall.receive("done") == {}
        await hall.leave()
