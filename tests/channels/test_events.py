"""Events of a client: which handler gets them, in which order, and with what payload."""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from msgspec import Meta, Raw, Struct

from starlette_channels import Channel, Channels, Handshake, Reply, Socket, channel
from starlette_channels.channels.actor import NO_LETTER
from starlette_channels.testing import Received, connect
from tests.conftest import OK, error, frames, lines

pytestmark = pytest.mark.anyio

person: ContextVar[str] = ContextVar("person", default="nobody")


class Point(Struct):
    x: int
    y: int = 0


def a_room() -> Channel[dict[str, Any]]:
    """A channel that lets everybody in."""

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        pass

    return room


def a_room_with(handler: Callable[..., Any], event: str = "event") -> Channels[Any]:
    """Channels with one event handler."""
    room = a_room()
    room.on(event)(handler)
    return Channels([room])


def an_echo() -> Channels[Any]:
    async def echo(socket: Socket, payload: Any) -> Reply:
        return Reply("ok", payload)

    return a_room_with(echo, "echo")


async def test_events_of_a_channel_are_handled_one_at_a_time_in_order() -> None:
    running: list[int] = []
    handled: list[int] = []

    async def event(socket: Socket, payload: dict[str, int]) -> dict[str, int]:
        running.append(payload["n"])
        assert len(running) == 1
        for _ in range(5 - payload["n"] % 5):  # later ones would be faster
            await anyio.lowlevel.checkpoint()
        handled.append(running.pop())
        return payload

    async with connect(a_room_with(event)) as client:
        room = await client.join("room:a")
        refs = [room.send("event", {"n": n}) for n in range(20)]
        came = await frames(client, 20)
    assert [one.ref for one in came] == refs
    assert handled == list(range(20))


async def test_a_waiting_handler_holds_up_its_own_channel_only() -> None:
    release = anyio.Event()

    async def event(socket: Socket, payload: dict[str, Any]) -> dict[str, Any]:
        if payload.get("wait"):
            await release.wait()
        return {}

    channels = a_room_with(event)
    async with connect(channels) as client, connect(channels) as stranger:
        slow, quick = await client.join("room:slow"), await client.join("room:quick")
        other = await stranger.join("room:slow")
        first, second = slow.send("event", {"wait": True}), slow.send("event")
        assert await quick.push("event") == Reply("ok", {})
        assert await client.heartbeat() == Reply("ok", {})
        assert await other.push("event") == Reply("ok", {})
        channels.broadcast("room:slow", "news", {})  # overtakes what waits for the channel
        assert await slow.receive("news") == {}
        assert await client.received_nothing()
        release.set()
        assert [one.ref for one in await frames(client, 2)] == [first, second]


async def test_an_idle_channel_owns_no_task_and_no_queue(count_tasks: Callable[[], int]) -> None:
    sockets: list[Any] = []
    release = anyio.Event()

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        sockets.append(socket)

    @room.on("event")
    async def event(socket: Socket, payload: Any) -> dict[str, Any]:
        await release.wait()
        return {}

    async with connect(Channels([room])) as client:
        await client.heartbeat()
        await anyio.wait_all_tasks_blocked()
        idle = count_tasks()
        joined = [await client.join(f"room:{n}") for n in range(10)]
        await anyio.wait_all_tasks_blocked()
        assert count_tasks() == idle
        refs = [one.send("event") for one in joined for _ in range(3)]
        await anyio.wait_all_tasks_blocked()
        assert count_tasks() == idle + 10
        assert all(len(socket._mailbox) == 2 for socket in sockets)
        release.set()
        for ref in refs:
            await client.reply(ref)
        await anyio.wait_all_tasks_blocked()
        assert count_tasks() == idle
        for socket in sockets:
            assert not socket._busy
            assert socket._mailbox is socket._children is socket._run is socket._held is None
            assert socket._letter is NO_LETTER


async def test_an_event_without_handler_is_answered_and_the_channel_lives(caplog: pytest.LogCaptureFixture) -> None:
    channels = an_echo()
    async with connect(channels) as client:
        room = await client.join("room:a")
        client.send("1", "2", "room:a", "nonsense", {})
        assert await client.receive() == Received("1", "2", "room:a", "phx_reply", error("unmatched event"))
        for event in (7, None, ["echo"], {"a": 1}, "phx_reply", "phx_close", "phx_error", "heartbeat", "ECHO", ""):
            client.send("1", "3", "room:a", event, {})
            assert (await client.reply("3")).payload == {"reason": "unmatched event"}
        assert await room.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
    assert channels.statistics().counts == {"unmatched_event": 11}
    assert [record.levelno for record in caplog.records if "unmatched_event" in record.message] == [
        logging.WARNING
    ] * 11


async def test_mistakes_without_ref_get_no_answer_but_are_counted() -> None:
    async def event(socket: Socket, payload: Point) -> None:
        pass

    channels = a_room_with(event)
    async with connect(channels) as client:
        await client.join("room:a")
        client.send("1", None, "room:a", "nonsense", {})
        client.send("1", None, "room:a", "event", {"x": "no"})
        assert await client.heartbeat() == Reply("ok", {})
        assert await client.received_nothing()
    assert channels.statistics().counts == {"unmatched_event": 1, "invalid_payload": 1}


async def test_on_any_gets_every_event_without_a_handler_of_its_own() -> None:
    room = a_room()

    @room.on("known")
    async def known(socket: Socket, payload: Any) -> dict[str, Any]:
        return {"by": "known"}

    @room.on_any
    async def anything(socket: Socket, event: str, payload: dict[str, Any]) -> dict[str, Any]:
        return {"by": "any", "event": event, "payload": payload}

    async with connect(Channels([room])) as client:
        joined = await client.join("room:a")
        assert (await joined.push("known")).payload == {"by": "known"}
        assert (await joined.push("other", {"n": 1})).payload == {"by": "any", "event": "other", "payload": {"n": 1}}
        for event, text in [(7, "7"), (None, "null"), ({"a": ["é"]}, '{"a":["é"]}'), (["phx_close"], '["phx_close"]')]:
            client.send("1", "x", "room:a", event, {})
            assert (await client.reply("x")).payload["event"] == text
        assert (await joined.push("other", [])).payload["reason"] == "invalid payload"


@pytest.mark.parametrize(
    ("annotation", "payload", "decoded"),
    [
        (Point, {"x": 1}, Point(1, 0)),
        (Point, {"x": 1, "y": 2, "z": 3}, Point(1, 2)),
        (dict, {"x": [1]}, {"x": [1]}),
        (str | None, Raw(b"null"), None),
        (bytes, b"\x00\x01", b"\x00\x01"),
        (Point | bytes, {"x": 1}, Point(1)),
        (Point | bytes, b"\x01", b"\x01"),
        (Raw, {"x": 1}, Raw(b'{"x":1}')),
        (Any, {"x": 1}, {"x": 1}),
        (Any, b"\x01", b"\x01"),
    ],
)
async def test_a_payload_is_decoded_to_the_annotation(annotation: Any, payload: Any, decoded: Any) -> None:
    got: list[Any] = []

    async def event(socket: Socket, payload: Any) -> dict[str, Any]:
        got.append(payload)
        return {}

    event.__annotations__["payload"] = annotation
    async with connect(a_room_with(event)) as client:
        room = await client.join("room:a")
        assert await room.push("event", payload) == Reply("ok", {})
    assert got == [decoded]


@pytest.mark.parametrize(
    ("annotation", "payload", "detail"),
    [
        (Point, {"x": "1"}, "Expected `int`, got `str` - at `$.x`"),
        (Point, {}, "Object missing required field `x`"),
        (dict, [], "Expected `object`, got `array`"),
        (Annotated[int, Meta(ge=1)], 0, "Expected `int` >= 1"),
        (Point, b'{"x": 1}', "Expected JSON, got a binary frame"),
        (Raw, b"\x01", "Expected JSON, got a binary frame"),
        (bytes, {"x": 1}, "Expected a binary frame, got JSON"),
    ],
)
async def test_a_payload_that_does_not_fit_is_answered_and_the_channel_lives(
    annotation: Any, payload: Any, detail: str
) -> None:
    async def event(socket: Socket, payload: Any) -> dict[str, Any]:
        return {"n": payload.get("n", 0)}

    async def strict(socket: Socket, payload: Any) -> None:
        raise AssertionError(payload)

    strict.__annotations__["payload"] = annotation
    room = a_room()
    room.on("fine")(event)
    room.on("strict")(strict)
    channels = Channels([room])
    async with connect(channels) as client:
        joined = await client.join("room:a")
        reply = await joined.push("strict", payload)
        assert reply == Reply("error", {"reason": "invalid payload", "detail": detail})
        assert await joined.push("fine", {"n": 1}) == Reply("ok", {"n": 1})
    assert channels.statistics().counts == {"invalid_payload": 1}


async def test_frames_of_an_earlier_join_are_dropped_without_an_answer() -> None:
    channels = an_echo()
    async with connect(channels) as client:
        await client.join("room:a")
        for join_ref in ("0", 1, "", 1.0, ["1"], True):
            client.send(join_ref, "x", "room:a", "echo", {})
            client.send(join_ref, "x", "room:a", "phx_leave", {})
        client.send(None, "y", "room:a", "echo", {})
        assert lines(await frames(client, 1)) == [("1", "y", "phx_reply")]
        assert await client.received_nothing()
    assert channels.statistics().counts == {"stale_message": 12}


async def test_events_on_a_topic_that_is_not_joined_are_unmatched_and_a_leave_is_ok() -> None:
    channels = an_echo()
    async with connect(channels) as client:
        topics: list[Any] = ["room:a", "phoenix", 7, {"a": 1}]
        for topic in topics:
            client.send("1", "2", topic, "echo", {})
            assert await client.receive() == Received(None, "2", topic, "phx_reply", error("unmatched topic"))
            client.send("1", "3", topic, "phx_leave", {})
            assert await client.receive() == Received("1", "3", topic, "phx_reply", OK)
    assert channels.statistics().counts == {"unmatched_topic": 4}


async def test_a_heartbeat_is_answered_without_join_ref_and_its_ref_comes_back_as_it_was() -> None:
    async with connect(an_echo()) as client:
        for ref in ("1", 1, None, [1], 1.5):
            client.send("9", ref, "phoenix", "heartbeat", {"ignored": True})
            assert await client.receive() == Received(None, ref, "phoenix", "phx_reply", OK)


async def test_within_a_handler_pushes_and_broadcasts_precede_the_reply_and_what_is_intercepted_follows_it() -> None:
    room = a_room()

    @room.on("event")
    async def event(socket: Socket, payload: Any) -> dict[str, Any]:
        socket.push("p1", {})
        socket.broadcast("b1", {})
        socket.broadcast("intercepted", {})
        socket.send_info("info")
        socket.broadcast_from("not for me", {})
        await anyio.lowlevel.checkpoint()
        socket.push("p2", {})
        return {"done": True}

    @room.intercept("intercepted")
    async def intercepted(socket: Socket, payload: Any) -> None:
        socket.push("intercepted", payload)

    @room.info(str)
    async def info(socket: Socket, message: str) -> None:
        socket.push(message, {})

    async with connect(Channels([room])) as client:
        joined = await client.join("room:a")
        ref = joined.send("event")
        assert lines(await frames(client, 6)) == [
            ("1", None, "p1"),
            (None, None, "b1"),
            ("1", None, "p2"),
            ("1", ref, "phx_reply"),
            ("1", None, "intercepted"),
            ("1", None, "info"),
        ]
        assert await client.received_nothing()


async def test_handlers_run_in_the_context_of_their_connection_not_in_that_of_the_sender() -> None:
    room = a_room()
    sockets: list[Socket] = []

    async def enter(conn: Handshake) -> dict[str, Any]:
        person.set(conn.params["user"])
        return {}

    @room.on("talk")
    async def talk(socket: Socket, payload: Any) -> dict[str, Any]:
        socket.broadcast("intercepted", {})
        socket.broadcast("heard", {})
        sockets[-1].send_info("info")
        return {"who": person.get()}

    @room.on("listen")
    async def listen(socket: Socket, payload: Any) -> None:
        socket.subscribe(socket.topic)
        sockets.append(socket)

    @room.intercept("intercepted")
    async def intercepted(socket: Socket, payload: Any) -> None:
        socket.push("intercepted by", {"who": person.get()})

    @room.info(object)
    async def info(socket: Socket, message: object) -> None:
        socket.push("info for", {"who": person.get()})

    channels = Channels([room], connect=enter)
    async with connect(channels, user="ann") as one, connect(channels, user="bob") as two:
        ann, bob = await one.join("room:a"), await two.join("room:a")
        bob.send("listen")
        await two.heartbeat()
        assert (await ann.push("talk")).payload == {"who": "ann"}
        person.set("the test")
        sockets[0].send_info("from outside")
        for event in ("intercepted by", "info for", "info for", "info for"):
            assert await bob.receive(event) == {"who": "bob"}
        assert await ann.receive("intercepted by") == {"who": "ann"}
        assert (await ann.push("talk")).payload == {"who": "ann"}
