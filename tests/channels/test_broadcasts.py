"""Broadcasts: who gets them, on which wire, and what channels do with them on the way."""

import logging
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec import Raw, Struct

from starlette_channels import V1, V2, Channel, Channels, Limits, Reply, SerializerError, Socket, channel
from starlette_channels.testing import Client, Joined, Received, connect
from starlette_channels.wire.messages import Body, Frame
from tests.conftest import frames

pytestmark = pytest.mark.anyio


class Note(Struct):
    text: str


@dataclass
class Notice:
    text: str


def a_room() -> Channel[dict[str, Any]]:
    """A channel whose clients can make it broadcast."""

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        pass

    @room.on("say")
    async def say(socket: Socket, payload: Any) -> None:
        socket.broadcast("said", payload)

    @room.on("say to others")
    async def say_to_others(socket: Socket, payload: Any) -> None:
        socket.broadcast_from("said", payload)

    @room.on("say a list")
    async def say_a_list(socket: Socket, payload: Any) -> dict[str, Any]:
        socket.broadcast("said", Raw(b"[1]"))
        return {}

    return room


async def nothing_came(*clients: Client) -> bool:
    return all([await client.received_nothing() for client in clients])


async def test_a_broadcast_reaches_everyone_on_the_topic_the_sender_included_and_nobody_else() -> None:
    channels = Channels([a_room()])
    async with connect(channels) as one, connect(channels) as two, connect(channels) as three:
        ann, _, stranger = await one.join("room:a"), await two.join("room:a"), await three.join("room:b")
        ann.send("say", {"text": "hi"})
        expected = Received(None, None, "room:a", "said", {"text": "hi"})
        assert await one.receive() == expected
        assert await two.receive() == expected
        stranger.send("say", {"text": "elsewhere"})
        assert (await three.receive()).payload == {"text": "elsewhere"}
        assert await nothing_came(one, two, three)


async def test_broadcast_from_leaves_out_exactly_the_channel_that_calls_it() -> None:
    @channel("both:*")
    async def both(socket: Socket, payload: Any) -> None:
        socket.subscribe("room:a")

    channels = Channels([a_room(), both])
    async with connect(channels, user="ann") as one, connect(channels, user="ann") as again:
        ann, also_ann = await one.join("room:a"), await again.join("room:a")
        ann.send("say to others", {"n": 1})
        assert await also_ann.receive("said") == {"n": 1}
        also_ann.send("say to others", {"n": 2})
        assert await ann.receive("said") == {"n": 2}
        assert await nothing_came(one, again)


async def test_the_application_can_broadcast_to_a_topic() -> None:
    channels = Channels([a_room()])
    channels.broadcast("room:a", "news", {})  # nobody is there
    async with connect(channels) as client:
        room = await client.join("room:a")
        channels.broadcast("room:a", "news", {"n": 1})
        channels.broadcast("room:b", "news", {"n": 2})
        assert await client.receive() == Received(None, None, "room:a", "news", {"n": 1})
        await room.leave()
        channels.broadcast("room:a", "news", {"n": 3})
        assert await client.received_nothing()
        assert channels.statistics().topics == 0


@pytest.mark.parametrize(
    ("payload", "received"),
    [
        ({"text": "hi"}, {"text": "hi"}),
        (Note("hi"), {"text": "hi"}),
        (Notice("hi"), {"text": "hi"}),
        (Raw(b'\n {"text": "hi"}'), {"text": "hi"}),
        ({}, {}),
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"\x01"), b"\x01"),
        (b"", b""),
    ],
)
async def test_a_payload_is_an_object_or_bytes(payload: Any, received: Any) -> None:
    channels = Channels([a_room()])
    async with connect(channels) as client:
        await client.join("room:a")
        channels.broadcast("room:a", "news", payload)
        assert await client.receive() == Received(None, None, "room:a", "news", received)


@pytest.mark.parametrize("payload", [[1], "text", 7, None, Raw(b"[1]")])
async def test_a_payload_that_no_wire_can_express_raises_in_the_broadcaster(payload: Any) -> None:
    channels = Channels([a_room()])
    async with connect(channels) as client:
        await client.join("room:a")
        with pytest.raises(SerializerError, match="must be an object"):
            channels.broadcast("room:a", "news", payload)
        with pytest.raises(TypeError):
            channels.broadcast("room:a", "news", {"a": object()})
        with pytest.raises(SerializerError, match="255 bytes"):
            channels.broadcast("room:a", "e" * 256, b"data")
        assert await client.received_nothing()


async def test_a_handler_that_broadcasts_a_list_crashes_its_own_channel_only() -> None:
    channels = Channels([a_room()])
    async with connect(channels) as one, connect(channels) as two:
        ann, bob = await one.join("room:a"), await two.join("room:a")
        ann.send("say a list")
        assert await ann.receive("phx_error") == {"reason": "channel_crash"}
        bob.send("say", {"still": "here"})
        assert await bob.receive("said") == {"still": "here"}
        assert await nothing_came(one, two)


async def test_a_payload_is_encoded_at_once_so_later_changes_do_not_reach_anyone() -> None:
    channels = Channels([a_room()])
    async with connect(channels) as client:
        await client.join("room:a")
        payload = {"n": 1}
        channels.broadcast("room:a", "news", payload)
        payload["n"] = 2
        assert (await client.receive()).payload == {"n": 1}


async def test_broadcasts_of_one_broadcaster_arrive_in_order_on_every_topic() -> None:
    channels = Channels([a_room()])
    async with connect(channels) as one, connect(channels) as two:
        for client in (one, two):
            await client.join("room:a")
            await client.join("room:b")
        for n in range(50):
            channels.broadcast(f"room:{'ab'[n % 2]}", "news", {"n": n})
            await anyio.lowlevel.checkpoint()
        for client in (one, two):
            assert [came.payload["n"] for came in await frames(client, 50)] == list(range(50))


async def test_any_event_that_is_not_reserved_can_be_broadcast() -> None:
    channels = Channels([a_room()])
    async with connect(channels) as client:
        await client.join("room:a")
        for event in ("phx", "Phx_close", " phx_close", "presence", "disconnect", "", "é" * 300):
            channels.broadcast("room:a", event, {})
            assert await client.receive() == Received(None, None, "room:a", event, {})
        assert channels.statistics().channels == 1


class CountingV2(V2):
    """Version 2, counting what it encodes, and failing when told so."""

    encoded = 0
    broken = False

    def broadcast(self, topic: str, event: str, body: Body) -> Frame:
        self.encoded += 1
        if self.broken:
            raise RuntimeError("broken")
        return super().broadcast(topic, event, body)


async def test_a_broadcast_is_encoded_once_for_all_clients_of_a_wire() -> None:
    serializer = CountingV2()
    channels = Channels([a_room()], serializers=(serializer,))
    async with connect(channels) as one, connect(channels) as two, connect(channels) as three:
        for client in (one, two, three):
            await client.join("room:a")
        channels.broadcast("room:a", "news", {})
        channels.broadcast("room:a", "news", b"")
        for client in (one, two, three):
            await frames(client, 2)
    assert serializer.encoded == 2


async def test_a_subscriber_that_fails_does_not_concern_the_others(caplog: pytest.LogCaptureFixture) -> None:
    serializer = CountingV2()
    channels = Channels([a_room()], serializers=(serializer, V1()))
    async with connect(channels) as broken, connect(channels, vsn="1.0.0") as fine:
        await broken.join("room:a")
        await fine.join("room:a")
        serializer.broken = True
        channels.broadcast("room:a", "news", {})
        assert (await fine.receive()).event == "news"
        assert await broken.received_nothing()
    assert channels.statistics().counts == {"delivery_failed": 1}
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


async def test_clients_of_both_versions_share_a_topic() -> None:
    channels = Channels([a_room()])
    async with connect(channels, vsn="1.0.0") as old, connect(channels) as new:
        ann, bob = await old.join("room:a"), await new.join("room:a")
        for speaker in (ann, bob):
            speaker.send("say", {"text": "hé"})
            for client in (old, new):
                assert await client.receive() == Received(None, None, "room:a", "said", {"text": "hé"})
        assert await nothing_came(old, new)


async def test_bytes_skip_clients_of_version_1_and_lists_those_of_version_2(caplog: pytest.LogCaptureFixture) -> None:
    channels = Channels([a_room()])
    async with connect(channels, vsn="1.0.0") as old, connect(channels) as new:
        await old.join("room:a")
        bob = await new.join("room:a")
        channels.broadcast("room:a", "bytes", b"\x00")
        assert (await new.receive()).payload == b"\x00"
        assert channels.statistics().counts == {"inexpressible_broadcast": 1}
        assert await bob.push("say a list") == Reply("ok", {})  # somebody got it: no mistake of the broadcaster
        assert await old.receive() == Received(None, None, "room:a", "said", [1])
        assert channels.statistics().counts == {"inexpressible_broadcast": 2}
        assert await nothing_came(old, new)
    assert "version 1 of the protocol has no binary payloads" in caplog.text


async def test_bytes_for_clients_of_version_1_alone_raise_and_a_list_is_fine() -> None:
    channels = Channels([a_room()])
    async with connect(channels, vsn="1.0.0") as old:
        await old.join("room:a")
        with pytest.raises(SerializerError, match="no binary payloads"):
            channels.broadcast("room:a", "news", b"\x00")
        channels.broadcast("room:a", "news", Raw(b"[1]"))
        assert (await old.receive()).payload == [1]


class Censor:
    """A channel that intercepts "said": it hides, changes, stops, fails, or waits, as the text says."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.room = a_room()
        self.gate = anyio.Event()

        @self.room.intercept("said")
        async def said(socket: Socket, note: Note) -> None:
            match note.text:
                case "hide":
                    return
                case "stop":
                    socket.push("before", {})
                    socket.stop()
                    socket.push("after", {})
                case "fail":
                    raise RuntimeError("failed")
                case "wait":
                    await self.gate.wait()
                case _:
                    pass
            socket.push("said", {"text": note.text.upper(), "to": socket.subtopic})

        self.channels = Channels([self.room], limits=limits)


async def say(speaker: Joined, text: str) -> None:
    speaker.send("say", {"text": text})


async def test_an_intercepted_broadcast_reaches_the_client_only_as_the_handler_pushes_it() -> None:
    channels = Censor().channels
    async with connect(channels) as one, connect(channels) as two:
        ann, bob = await one.join("room:a"), await two.join("room:a")
        await say(ann, "hide")
        await say(ann, "hi")
        for client, joined in ((one, ann), (two, bob)):
            expected = Received(joined.join_ref, None, "room:a", "said", {"text": "HI", "to": "a"})
            assert await client.receive() == expected
        channels.broadcast("room:a", "said", Note("from outside"))
        channels.broadcast("room:a", "other", {"not": "intercepted"})
        assert [came.event for came in await frames(one, 2)] == ["other", "said"]
        ann.send("say to others", {"text": "psst"})
        assert [came.payload["text"] for came in await frames(two, 3) if came.event == "said"] == [
            "FROM OUTSIDE",
            "PSST",
        ]
        assert await nothing_came(one, two)


async def test_an_intercept_handler_can_stop_its_channel_and_a_failing_one_ends_it() -> None:
    censor = Censor()
    async with connect(censor.channels) as one, connect(censor.channels) as two:
        ann, bob = await one.join("room:a"), await two.join("room:a")
        await say(ann, "stop")
        for client in (one, two):
            assert [came.event for came in await frames(client, 4)] == ["before", "after", "said", "phx_close"]
        ann, bob = await one.join("room:a"), await two.join("room:a")
        await say(ann, "fail")
        for joined in (ann, bob):
            assert await joined.receive("phx_error") == {"reason": "channel_crash"}
        assert await nothing_came(one, two)


@pytest.mark.parametrize("payload", [{"text": 7}, {}, b"binary"])
async def test_a_broadcast_that_does_not_fit_the_intercept_handler_is_counted_and_the_channel_lives(
    payload: Any, caplog: pytest.LogCaptureFixture
) -> None:
    channels = Censor().channels
    async with connect(channels) as client:
        joined = await client.join("room:a")
        channels.broadcast("room:a", "said", payload)
        await say(joined, "fine")
        assert (await client.receive()).payload["text"] == "FINE"
    assert channels.statistics().counts == {"inexpressible_broadcast": 1}
    assert "does not fit its intercept handler" in caplog.text


async def test_what_is_intercepted_waits_its_turn_and_what_is_not_overtakes_it() -> None:
    censor = Censor()
    async with connect(censor.channels) as client:
        joined = await client.join("room:a")
        await say(joined, "wait")
        await say(joined, "second")
        censor.channels.broadcast("room:a", "direct", {})
        assert (await joined.receive("direct")) == {}
        assert await client.received_nothing()
        censor.gate.set()
        assert [came.payload["text"] for came in await frames(client, 2)] == ["WAIT", "SECOND"]
