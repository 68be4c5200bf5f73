"""Joining a topic: who is let in, what they are told, and what happens to frames meanwhile."""

import logging
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from msgspec import Raw, Struct

from starlette_channels import Channel, Channels, JoinError, Reply, Socket, channel
from starlette_channels.testing import Client, JoinRefused, Received, connect
from tests.conftest import OK, error, frames, lines

pytestmark = pytest.mark.anyio


class Welcome(Struct):
    text: str


@dataclass
class Greeting:
    text: str


def answering(answer: Any) -> Channels[Any]:
    """Channels whose join handler returns this."""

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> Any:
        return answer

    return Channels([room])


def refusing(exception: BaseException) -> Channels[Any]:
    """Channels whose join handler raises this."""

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.push("never", {})
        raise exception

    return Channels([room])


async def refusal(client: Client, topic: str, payload: Any = None) -> Reply:
    with pytest.raises(JoinRefused) as caught:
        await client.join(topic, payload)
    return caught.value.reply


async def test_a_join_is_answered_ok() -> None:
    async with connect(answering(None)) as client:
        client.send("7", "8", "room:a", "phx_join", {})
        assert await client.receive() == Received("7", "8", "room:a", "phx_reply", OK)


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ({"text": "hi"}, {"text": "hi"}),
        (Welcome("hi"), {"text": "hi"}),
        (Greeting("hi"), {"text": "hi"}),
        (Raw(b'{"text":"hi"}'), {"text": "hi"}),
        (b"\x00\xff", b"\x00\xff"),
        (Reply("ok", [1, None]), [1, None]),
        (Reply("ok", "hi"), "hi"),
    ],
)
async def test_what_the_join_handler_returns_is_the_reply(answer: Any, response: Any) -> None:
    async with connect(answering(answer)) as client:
        room = await client.join("room:a")
        assert room.reply == Reply("ok", response)


@pytest.mark.parametrize(
    ("error", "response"),
    [
        (JoinError("unauthorized"), {"reason": "unauthorized"}),
        (JoinError(), {"reason": "refused"}),
        (JoinError({"code": 7}), {"code": 7}),
        (JoinError(Welcome("no")), {"text": "no"}),
        (JoinError(payload="bare"), "bare"),
        (JoinError(payload=None), None),
        (JoinError(payload=[1, 2]), [1, 2]),
        (JoinError(payload=b"\x01"), b"\x01"),
    ],
)
async def test_a_refusal_carries_what_the_handler_gave(error: JoinError, response: Any) -> None:
    async with connect(refusing(error)) as client:
        assert await refusal(client, "room:a") == Reply("error", response)


async def test_a_refused_join_drops_its_pushes_and_ends_without_another_frame() -> None:
    channels = refusing(JoinError("no"))
    async with connect(channels) as client:
        client.send("1", "1", "room:a", "phx_join", {})
        client.send("1", "2", "room:a", "hello", {})
        client.send(None, "3", "phoenix", "heartbeat", {})
        came = await frames(client, 3)
        assert {one.ref for one in came} == {"1", "2", "3"}
        unmatched = Received(
            None, "2", "room:a", "phx_reply", {"status": "error", "response": {"reason": "unmatched topic"}}
        )
        assert unmatched in came
        assert await client.received_nothing()
        assert channels.statistics().channels == 0
        assert channels.statistics().topics == 0
        assert channels.statistics().counts["join_refused"] == 1


@pytest.mark.parametrize("error", [RuntimeError("secret"), TimeoutError("secret"), BaseException("secret")])
async def test_a_join_that_raises_is_answered_join_crashed_and_nothing_more(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    channels = refusing(error)
    async with connect(channels) as client:
        assert await refusal(client, "room:a") == Reply("error", {"reason": "join crashed"})
        assert await client.heartbeat() == Reply("ok", {})
        assert await client.received_nothing()
    assert channels.statistics().counts == {"join_crashed": 1}
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("answer", ["text", 7, [1], {"a": object()}, Reply("ok", {1, object()})])
async def test_a_join_whose_answer_cannot_be_sent_has_crashed(answer: Any) -> None:
    async with connect(answering(answer)) as client:
        assert await refusal(client, "room:a") == Reply("error", {"reason": "join crashed"})


async def test_a_join_whose_refusal_cannot_be_encoded_has_crashed() -> None:
    async with connect(refusing(JoinError({"user": object()}))) as client:
        assert await refusal(client, "room:a") == Reply("error", {"reason": "join crashed"})


async def test_a_join_that_pushes_what_cannot_be_encoded_has_crashed() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.push("number", 7)  # pyright: ignore[reportArgumentType]

    async with connect(Channels([room])) as client:
        assert await refusal(client, "room:a") == Reply("error", {"reason": "join crashed"})


async def test_a_join_payload_that_does_not_fit_never_reaches_the_handler() -> None:
    asked: list[str] = []

    @channel("room:*")
    async def room(socket: Socket, payload: Welcome) -> None:
        asked.append(payload.text)

    channels = Channels([room])
    async with connect(channels) as client:
        reply = await refusal(client, "room:a", {"text": 7})
        assert reply.status == "error"
        assert reply.payload == {"reason": "invalid payload", "detail": "Expected `str`, got `int` - at `$.text`"}
        assert (await refusal(client, "room:a", b"text")).payload["reason"] == "invalid payload"
        await client.join("room:a", {"text": "hi"})
    assert asked == ["hi"]
    assert channels.statistics().counts["invalid_payload"] == 2


@pytest.mark.parametrize("payload", [{}, [], "text", 7, 1.5, True, None, {"a": [{"b": None}]}, b"\x00"])
async def test_a_join_payload_may_be_any_value(payload: Any) -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> Reply:
        return Reply("ok", payload)

    async with connect(Channels([room])) as client:
        body = Raw(b"null") if payload is None else payload
        assert (await client.join("room:a", body)).reply == Reply("ok", payload)


@pytest.mark.parametrize("topic", ["other", "room", "Room:a", "", 7, None, ["room:a"], {"room": "a"}])
async def test_a_topic_that_no_channel_fits_is_unmatched_and_its_join_ref_is_not_echoed(topic: Any) -> None:
    channels = answering(None)
    async with connect(channels) as client:
        client.send("1", "2", topic, "phx_join", {})
        assert await client.receive() == Received(None, "2", topic, "phx_reply", error("unmatched topic"))
    assert channels.statistics().counts == {"unmatched_topic": 1}


@pytest.mark.parametrize("join_ref", ["1", "", 5, 1.5, [1], {"a": 1}, True])
async def test_a_join_ref_comes_back_as_it_was_whatever_its_type(join_ref: Any) -> None:
    async with connect(answering(None)) as client:
        client.send(join_ref, 9, "room:a", "phx_join", {})
        received = await client.receive()
        assert (received.join_ref, received.ref) == (join_ref, 9)
        assert type(received.join_ref) is type(join_ref)


async def test_a_join_without_join_ref_is_known_by_its_ref_to_the_client_but_by_null_to_the_connection() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.push("welcome", {})

    @room.on("echo")
    async def echoed(socket: Socket, payload: Any) -> Any:
        return payload

    async with connect(Channels([room])) as client:
        client.send(None, "3", "room:a", "phx_join", {})
        client.send(None, "4", "room:a", "echo", {})
        client.send("3", "5", "room:a", "echo", {})  # stale: the connection remembers null
        client.send(None, "6", "room:a", "phx_leave", {})
        came = await frames(client, 5)
    assert lines(came) == [
        (None, "3", "phx_reply"),
        ("3", None, "welcome"),
        ("3", "4", "phx_reply"),
        ("3", "6", "phx_reply"),
        (None, None, "phx_close"),
    ]


async def test_named_segments_are_handed_to_the_join_handler_and_kept() -> None:
    @channel("shop:{shop}:order:{number}")
    async def order(socket: Socket, payload: Any, number: str, shop: str) -> dict[str, Any]:
        return {"number": number, "shop": shop, "params": dict(socket.topic_params), "subtopic": socket.subtopic}

    async with connect(Channels([order])) as client:
        joined = await client.join("shop:café 1:order:7")
        expected = {"number": "7", "shop": "café 1"}
        assert joined.reply.payload == {**expected, "params": expected, "subtopic": "café 1:order:7"}
        for topic in ("shop:a:order:", "shop:a:order:7:x", "shop::order:7", "shop:a:b:order:7"):
            assert (await refusal(client, topic)).payload == {"reason": "unmatched topic"}


async def test_a_channel_may_serve_several_patterns_and_the_first_channel_that_fits_wins() -> None:
    def named(name: str, *patterns: str) -> Channel[dict[str, Any]]:
        @channel(*patterns)
        async def one(socket: Socket, payload: Any) -> dict[str, Any]:
            return {"name": name, "subtopic": socket.subtopic}

        return one

    channels = Channels(
        [named("lobby", "room:lobby", "hall"), named("rooms", "room:*", "chat*"), named("late", "room:z")]
    )
    async with connect(channels) as client:
        for topic, name, subtopic in [
            ("room:lobby", "lobby", ""),
            ("hall", "lobby", ""),
            ("room:lobby2", "rooms", "lobby2"),
            ("room:", "rooms", ""),
            ("room:z", "rooms", "z"),
            ("chat", "rooms", ""),
            ("chatty:*", "rooms", "ty:*"),
        ]:
            assert (await client.join(topic)).reply.payload == {"name": name, "subtopic": subtopic}


async def test_each_join_has_its_own_copy_of_the_assigns() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> dict[str, Any]:
        before = dict(socket.assigns)
        socket.assigns["room"] = socket.subtopic
        return before

    @room.on("assigns")
    async def assigns(socket: Socket, payload: Any) -> dict[str, Any]:
        return socket.assigns

    async with connect(Channels([room])) as client:
        one, two = await client.join("room:one"), await client.join("room:two")
        assert one.reply.payload == two.reply.payload == {}
        assert (await one.push("assigns")).payload == {"room": "one"}
        assert (await two.push("assigns")).payload == {"room": "two"}
        await one.leave()
        assert (await client.join("room:one")).reply.payload == {}


async def test_pushes_and_messages_made_in_a_join_follow_its_reply() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> dict[str, Any]:
        socket.push("first", {})
        socket.send_info("after join")
        await anyio.lowlevel.checkpoint()
        socket.push("second", {})
        return {"joined": True}

    @room.info(str)
    async def info(socket: Socket, message: str) -> None:
        socket.push(message, {})

    async with connect(Channels([room])) as client:
        await client.join("room:a")
        assert lines(await frames(client, 3)) == [
            ("1", None, "first"),
            ("1", None, "second"),
            ("1", None, "after join"),
        ]


async def test_a_broadcast_made_in_a_join_reaches_the_others_but_not_the_joining_client() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.broadcast("entered", {"who": payload["who"]})

    channels = Channels([room])
    async with connect(channels) as first, connect(channels) as second:
        there = await first.join("room:a", {"who": 1})
        joined = await second.join("room:a", {"who": 2})
        assert await there.receive("entered") == {"who": 2}
        assert await joined.received_nothing("entered")
        assert await there.received_nothing("entered")


async def test_a_refused_join_runs_no_terminate_and_cancels_its_children() -> None:
    happened: list[str] = []

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        async def child() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                happened.append("child cancelled")

        socket.start_soon(child)
        await anyio.wait_all_tasks_blocked()
        raise JoinError("no")

    @room.terminate
    async def terminate(socket: Socket, reason: str) -> None:
        happened.append(reason)

    async with connect(Channels([room])) as client:
        await refusal(client, "room:a")
        await anyio.wait_all_tasks_blocked()
        assert happened == ["child cancelled"]
