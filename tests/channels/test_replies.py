"""Replies: what a handler returns, and answers that come later."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
import pytest
from msgspec import Raw, Struct

from starlette_channels import Channels, LaterReply, Limits, Reply, SerializerError, Socket, channel
from starlette_channels.testing import Received, connect
from tests.conftest import OK, error, frames, lines

pytestmark = pytest.mark.anyio


class Sum(Struct):
    total: int


@dataclass
class Total:
    total: int


class Alarm(BaseException):
    """As the time-outs of some libraries and the outcomes of pytest are."""


class Desk:
    """Channels whose event "ask" makes the answer that a function gives, and whose "promise" is answered later."""

    def __init__(self, give: Callable[[Socket], Any] = lambda socket: None) -> None:
        self.promises: list[LaterReply] = []
        self.sockets: list[Socket] = []

        @channel("desk:*")
        async def desk(socket: Socket, payload: Any) -> None:
            self.sockets.append(socket)

        @desk.on("ask")
        async def ask(socket: Socket, payload: Any) -> Any:
            return give(socket)

        @desk.on("promise")
        async def promise(socket: Socket, payload: Any) -> None:
            self.promises.append(socket.reply_later())

        @desk.on("stop")
        async def stop(socket: Socket, payload: Any) -> dict[str, Any]:
            socket.stop()
            return {"stopping": True}

        self.channels = Channels([desk], limits=Limits(shutdown_seconds=0.1))


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ({}, Reply("ok", {})),
        ({"total": 1}, Reply("ok", {"total": 1})),
        (Sum(1), Reply("ok", {"total": 1})),
        (Total(1), Reply("ok", {"total": 1})),
        (Raw(b' {"total": 1}'), Reply("ok", {"total": 1})),
        (b"\x00\xff", Reply("ok", b"\x00\xff")),
        (b"", Reply("ok", b"")),
        (Reply("ok"), Reply("ok", {})),
        (Reply("error"), Reply("error", {})),
        (Reply("error", {"reason": "full"}), Reply("error", {"reason": "full"})),
        (Reply("created", Sum(1)), Reply("created", {"total": 1})),
        (Reply("ok", [1, "two", None]), Reply("ok", [1, "two", None])),
        (Reply("ok", None), Reply("ok", None)),
        (Reply("ok", "text"), Reply("ok", "text")),
        (Reply("error", b"\x01"), Reply("error", b"\x01")),
        (Reply("ok", {"é": "\u2028😀"}), Reply("ok", {"é": "\u2028😀"})),
    ],
)
async def test_what_a_handler_returns_is_the_reply(answer: Any, reply: Reply) -> None:
    async with connect(Desk(lambda _: answer).channels) as client:
        desk = await client.join("desk:a")
        ref = desk.send("ask")
        came = await client.receive()
        assert (came.join_ref, came.ref, came.topic, came.event) == ("1", ref, "desk:a", "phx_reply")
        assert came.reply == reply


async def test_none_is_no_reply() -> None:
    async with connect(Desk().channels) as client:
        desk = await client.join("desk:a")
        desk.send("ask")
        await client.heartbeat()
        assert await client.received_nothing()


@pytest.mark.parametrize("answer", ["text", 7, True, [], (1, 2), {1}, object(), {"a": object()}, Reply("ok", object())])
async def test_a_handler_that_returns_what_is_no_reply_has_crashed(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    channels = Desk(lambda _: answer).channels
    async with connect(channels) as client:
        desk = await client.join("desk:a")
        desk.send("ask")
        assert await desk.receive("phx_error") == {"reason": "channel_crash"}
        assert await client.received_nothing()
    assert channels.statistics().counts == {"channel_crashed": 1}
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], TypeError)


async def test_what_a_handler_lets_through_ends_its_channel_only(anyio_backend_name: str) -> None:
    @channel("bad:*")
    async def bad(socket: Socket, payload: Any) -> None:
        pass

    @bad.on("group")
    async def group(socket: Socket, payload: Any) -> None:
        raise ExceptionGroup("several", [ValueError()])

    @bad.on("base")
    async def base(socket: Socket, payload: Any) -> None:
        raise Alarm

    @bad.on("cancelled")
    async def cancelled(socket: Socket, payload: Any) -> None:
        if anyio_backend_name == "trio":
            raise TimeoutError
        task = asyncio.create_task(asyncio.sleep(10))
        await asyncio.sleep(0)
        task.cancel()
        await task

    channels = Channels([bad])
    async with connect(channels) as client:
        other = await client.join("bad:other")
        for event in ("group", "base", "cancelled"):
            room = await client.join("bad:a")
            room.send(event)
            assert await room.receive("phx_error") == {"reason": "channel_crash"}
        assert (await other.push("nothing")).payload == {"reason": "unmatched event"}
    assert channels.statistics().counts["channel_crashed"] == 3


@pytest.mark.parametrize("ref", ["1", 1, 1.5, None, True, [1, "a"], {"a": None}, "x" * 1000])
async def test_the_ref_comes_back_as_it_was_whatever_its_type(ref: Any) -> None:
    async with connect(Desk(lambda _: {}).channels) as client:
        await client.join("desk:a")
        client.send("1", ref, "desk:a", "ask", {})
        came = await client.receive()
        assert came == Received("1", ref, "desk:a", "phx_reply", OK)
        assert type(came.ref) is type(ref)


@pytest.mark.parametrize(("ref", "text"), [("1", "1"), (5, "5"), (1.5, "1.5"), (None, "")])
async def test_a_binary_reply_has_its_ref_as_text(ref: Any, text: str) -> None:
    async with connect(Desk(lambda _: b"data").channels) as client:
        await client.join("desk:a")
        client.send("1", ref, "desk:a", "ask", {})
        assert await client.receive() == Received(
            "1", text, "desk:a", "phx_reply", {"status": "ok", "response": b"data"}
        )


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        (None, Reply("ok", {})),
        ({"n": 1}, Reply("ok", {"n": 1})),
        (Sum(1), Reply("ok", {"total": 1})),
        (b"\x01", Reply("ok", b"\x01")),
        (Reply("error", "late"), Reply("error", "late")),
    ],
)
async def test_an_answer_can_be_given_later(answer: Any, response: Reply) -> None:
    house = Desk()
    async with connect(house.channels) as client:
        desk = await client.join("desk:a")
        ref = desk.send("promise")
        await client.heartbeat()
        assert await client.received_nothing()
        house.promises[0](answer)
        came = await client.receive()
        assert (came.join_ref, came.ref) == ("1", ref)
        assert came.reply == response


async def test_later_answers_belong_to_their_own_messages() -> None:
    house = Desk(lambda _: {"now": True})
    async with connect(house.channels) as client:
        desk = await client.join("desk:a")
        refs = [desk.send("promise"), desk.send("promise"), desk.send("ask")]
        assert await client.reply(refs[2]) == Reply("ok", {"now": True})
        house.promises[1]({"n": 1})
        house.promises[0]({"n": 0})
        assert lines(await frames(client, 2)) == [("1", refs[1], "phx_reply"), ("1", refs[0], "phx_reply")]


async def test_an_answer_given_twice_is_sent_twice() -> None:
    house = Desk(lambda socket: socket.reply_later()({"first": True}) or {"second": True})
    async with connect(house.channels) as client:
        desk = await client.join("desk:a")
        ref = desk.send("ask")
        assert [(one.ref, one.reply.payload) for one in await frames(client, 2)] == [
            (ref, {"first": True}),
            (ref, {"second": True}),
        ]


async def test_a_later_answer_is_sent_even_after_the_channel_has_ended() -> None:
    house = Desk()
    async with connect(house.channels) as client:
        desk = await client.join("desk:a")
        ref = desk.send("promise")
        assert await desk.push("stop") == Reply("ok", {"stopping": True})
        await desk.receive("phx_close")
        house.promises[0]({"late": True})
        assert await client.reply(ref) == Reply("ok", {"late": True})


@pytest.mark.parametrize("how", ["client", "server", "failing send"])
async def test_a_later_answer_is_dropped_once_the_connection_is_gone(how: str) -> None:
    house = Desk()
    gone = False
    sent: list[str] = []

    async def breaking(scope: Any, receive: Any, send: Any) -> None:
        async def broken(message: Any) -> None:
            sent.append(str(message))
            if gone:
                raise OSError("broken pipe")
            await send(message)

        await house.channels(scope, receive, broken)

    async with connect(breaking) as client:
        desk = await client.join("desk:a")
        desk.send("promise")
        await client.heartbeat()
        if how == "client":
            client.disconnect()
        elif how == "server":
            async with house.channels.lifespan():
                pass
        else:
            gone = True
            house.channels.broadcast("desk:a", "x", {})
            await anyio.wait_all_tasks_blocked()
            house.promises[0]({"late": True})
    house.promises[0]({"late": True})
    await anyio.to_thread.run_sync(house.promises[0], {"late": True})
    await anyio.wait_all_tasks_blocked()
    assert any("phx_reply" in message for message in sent)
    assert not any("late" in message for message in sent)


async def test_a_later_answer_can_be_given_from_another_thread() -> None:
    house = Desk()
    async with connect(house.channels) as client:
        desk = await client.join("desk:a")
        ref = desk.send("promise")
        await client.heartbeat()
        await anyio.to_thread.run_sync(house.promises[0], {"thread": True})
        assert await client.reply(ref) == Reply("ok", {"thread": True})


def refused_promise(socket: Socket) -> dict[str, Any]:
    """Return why no answer can be promised here."""
    try:
        socket.reply_later()
    except RuntimeError as reason:
        return {"why": str(reason)}
    return {"why": ""}


async def test_a_message_without_ref_cannot_be_answered_later_but_directly() -> None:
    async with connect(Desk(refused_promise).channels) as client:
        await client.join("desk:a")
        client.send("1", None, "desk:a", "ask", {})
        assert "no ref" in (await client.reply(None)).payload["why"]


async def test_an_answer_cannot_be_promised_where_no_message_is_being_handled() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> dict[str, Any]:
        socket.send_info("info")
        return refused_promise(socket)

    @room.info(str)
    async def info(socket: Socket, message: str) -> None:
        socket.push("info", refused_promise(socket))
        socket.broadcast("seen", {})

    @room.intercept("seen")
    async def seen(socket: Socket, payload: Any) -> None:
        socket.push("intercept", refused_promise(socket))
        socket.stop()

    @room.terminate
    async def terminate(socket: Socket, reason: str) -> None:
        socket.push("terminate", refused_promise(socket))

    async with connect(Channels([room])) as client:
        joined = await client.join("room:a")
        reasons = [joined.reply.payload, *[await joined.receive(event) for event in ("info", "intercept", "terminate")]]
    assert all("no message is being handled" in reason["why"] for reason in reasons)


async def test_an_answer_that_cannot_be_sent_raises_where_it_is_given() -> None:
    house = Desk()
    async with connect(house.channels) as client:
        await client.join("desk:a")
        client.send("1", ["a list as a ref"], "desk:a", "promise", {})
        await client.heartbeat()
        (answer,) = house.promises
        with pytest.raises(TypeError):
            answer({"a": object()})
        with pytest.raises(TypeError, match="a handler returned"):
            answer("text")  # pyright: ignore[reportArgumentType]
        with pytest.raises(SerializerError):
            answer(b"binary")
        answer({"fine": True})
        assert (await client.reply(["a list as a ref"])).payload == {"fine": True}


async def test_the_reply_of_a_handler_that_stops_its_channel_precedes_the_close() -> None:
    async with connect(Desk().channels) as client:
        desk = await client.join("desk:a")
        ref = desk.send("stop")
        assert lines(await frames(client, 2)) == [("1", ref, "phx_reply"), ("1", "1", "phx_close")]
        assert (await desk.push("ask")) == Reply("error", error("unmatched topic")["response"])
