"""Refusing is raising: what handlers raise becomes the reply, and the channel goes on."""

import logging
from collections.abc import Callable
from typing import Any

import anyio
import fastapi
import pytest
from starlette.exceptions import HTTPException, WebSocketException

from starlette_channels import (
    Channels,
    ConnectError,
    EventError,
    ExpiredToken,
    Expiry,
    InvalidPayload,
    JoinError,
    Reply,
    Socket,
    channel,
)
from starlette_channels.testing import ChannelCrashed, HandshakeRefused, Joined, JoinRefused, connect

pytestmark = pytest.mark.anyio

REFUSALS: dict[str, tuple[Callable[[], Exception], Any]] = {
    "EventError": (lambda: EventError("full"), {"reason": "full"}),
    "EventError of a payload": (lambda: EventError({"code": 7}), {"code": 7}),
    "EventError of a bare text": (lambda: EventError(payload="text"), "text"),
    "JoinError": (lambda: JoinError("not yours"), {"reason": "not yours"}),
    "HTTPException": (lambda: HTTPException(403, "not a member"), {"reason": "not a member"}),
    "HTTPException without detail": (lambda: HTTPException(403), {"reason": "Forbidden"}),
    "HTTPException with headers": (lambda: HTTPException(401, "who?", {"www-authenticate": "x"}), {"reason": "who?"}),
    "FastAPI's": (
        lambda: fastapi.HTTPException(422, [{"loc": ["body"], "msg": "no"}]),
        [{"loc": ["body"], "msg": "no"}],
    ),
    "FastAPI's object": (lambda: fastapi.HTTPException(409, {"code": "taken"}), {"code": "taken"}),
    "WebSocketException": (lambda: WebSocketException(1008, "policy"), {"reason": "policy"}),
    "WebSocketException without reason": (lambda: WebSocketException(1008), {"reason": "refused"}),
    "ConnectError": (lambda: ConnectError("banned"), {"reason": "banned"}),
    "a group of one": (lambda: ExceptionGroup("tasks", [HTTPException(403, "no")]), {"reason": "no"}),
    "a group in a group": (
        lambda: ExceptionGroup("tasks", [ExceptionGroup("inner", [EventError({"code": 7})])]),
        {"code": 7},
    ),
    "ExpiredToken": (lambda: ExpiredToken("expired token"), {"reason": "expired token"}),
}


def refusing(raised: Callable[[], BaseException]) -> Channels[dict[str, Any]]:
    """Channels that refuse in the join if the payload says so, in an event, in any event, and in an intercept."""

    @channel("room:*")
    async def room(socket: Socket, payload: dict[str, Any]) -> None:
        if payload:
            socket.push("never", {})
            raise raised()

    @room.on("refuse")
    async def refuse(socket: Socket, payload: Any) -> None:
        await anyio.lowlevel.checkpoint()
        socket.push("before", {})
        raise raised()

    @room.on("echo")
    async def echo(socket: Socket, payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    @room.on_any
    async def anything(socket: Socket, event: str, payload: Any) -> None:
        raise raised()

    @room.intercept("news")
    async def news(socket: Socket, payload: Any) -> None:
        raise raised()

    return Channels([room])


@pytest.mark.parametrize("name", REFUSALS)
async def test_what_a_join_handler_raises_refuses_the_join(name: str, caplog: pytest.LogCaptureFixture) -> None:
    raised, payload = REFUSALS[name]
    channels = refusing(raised)
    async with connect(channels) as client:
        with pytest.raises(JoinRefused) as refused:
            await client.join("room:a", {"refuse": 1})
        assert refused.value.reply == Reply("error", payload)
        assert await client.received_nothing()
        await client.join("room:a")
    assert channels.statistics().counts == {"join_refused": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("event", ["refuse", "something else"])
@pytest.mark.parametrize("name", REFUSALS)
async def test_what_an_event_handler_raises_is_the_reply_and_the_channel_lives(
    name: str, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    raised, payload = REFUSALS[name]
    channels = refusing(raised)
    async with connect(channels) as client:
        joined = await client.join("room:a")
        assert await joined.push(event) == Reply("error", payload)
        assert await joined.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
    assert channels.statistics().counts == {"event_refused": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_refusal_inside_of_a_task_group_is_the_reply_but_not_if_another_task_has_crashed_as_well() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: dict[str, Any]) -> None: ...

    @room.on("work")
    async def work(socket: Socket, payload: dict[str, Any]) -> None:
        async def check() -> None:
            raise EventError("not yours")

        async def crash() -> None:
            raise ValueError(payload)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(check)
            if payload:
                tasks.start_soon(crash)

    async with connect(Channels([room])) as client:
        joined = await client.join("room:a")
        assert await joined.push("work") == Reply("error", {"reason": "not yours"})
        with pytest.raises(ChannelCrashed):
            await joined.push("work", {"crash": True})


async def test_an_event_error_has_any_status() -> None:
    async with connect(refusing(lambda: EventError("later", status="busy"))) as client:
        assert await (await client.join("room:a")).push("refuse") == Reply("busy", {"reason": "later"})


@pytest.mark.parametrize("status", ["", None, 400])
def test_a_status_is_a_text(status: Any) -> None:
    with pytest.raises(TypeError, match=r"EventError\(status=.*it is the status of a reply"):
        EventError("no", status=status)


async def test_an_event_error_refuses_a_join_whatever_its_status() -> None:
    async with connect(refusing(lambda: EventError("no", status="ok"))) as client:
        with pytest.raises(JoinRefused):
            await client.join("room:a", {"refuse": 1})


async def test_a_message_without_ref_gets_no_reply_and_is_counted() -> None:
    channels = refusing(lambda: EventError("no"))
    async with connect(channels) as client:
        joined = await client.join("room:a")
        client.send(joined.join_ref, None, "room:a", "refuse", {})
        await joined.receive("before")
        assert await client.received_nothing()
        assert await joined.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
    assert channels.statistics().counts == {"event_refused": 1}


async def test_a_refusing_intercept_keeps_the_broadcast_from_this_client_and_the_channel_lives() -> None:
    channels = refusing(lambda: HTTPException(403))
    async with connect(channels) as client:
        joined = await client.join("room:a")
        channels.broadcast("room:a", "news", {})
        assert await joined.received_nothing()
        assert await joined.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
    assert channels.statistics().counts == {"event_refused": 1}


async def test_a_payload_that_the_handler_finds_invalid_is_answered_like_one_that_we_do() -> None:
    channels = refusing(lambda: InvalidPayload("$.end is before $.begin"))
    async with connect(channels) as client:
        joined = await client.join("room:a")
        reply = await joined.push("refuse")
        assert reply == Reply("error", {"reason": "invalid payload", "detail": "$.end is before $.begin"})
    assert channels.statistics().counts == {"invalid_payload": 1}


async def test_a_reason_that_cannot_be_sent_is_a_crash_of_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    channels = refusing(lambda: EventError(payload=object()))
    async with connect(channels) as client:
        with pytest.raises(JoinRefused, match="join crashed"):
            await client.join("room:a", {"refuse": 1})
        joined = await client.join("room:a")
        joined.send("refuse")
        await joined.receive("phx_error")
    assert channels.statistics().counts == {"join_refused": 1, "channel_crashed": 1}


async def test_a_refusal_where_nobody_asked_is_an_exception_like_any_other() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.send_info("hello")

    @room.info(str)
    async def info(socket: Socket, message: str) -> None:
        raise EventError("no")

    channels = Channels([room])
    async with connect(channels) as client:
        await (await client.join("room:a")).receive("phx_error")
    assert channels.statistics().counts == {"channel_crashed": 1}


async def test_pushes_that_wait_behind_a_crash_are_answered_and_the_one_that_crashed_is_covered_by_phx_error() -> None:
    gate = anyio.Event()

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None: ...

    @room.on("crash")
    async def crash(socket: Socket, payload: Any) -> None:
        await gate.wait()
        raise RuntimeError

    @room.terminate
    async def terminate(socket: Socket, reason: str) -> None:
        await anyio.wait_all_tasks_blocked()

    async with connect(Channels([room])) as client:
        joined: Joined = await client.join("room:a")
        joined.send("crash")
        behind = [joined.send("crash") for _ in range(3)]
        await client.heartbeat()
        gate.set()
        assert await joined.receive("phx_error") == {"reason": "channel_crash"}
        assert [(await client.reply(ref)).payload for ref in behind] == [{"reason": "unmatched topic"}] * 3


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (lambda: fastapi.HTTPException(409, {"code": "taken"}), 409, '{"code":"taken"}'),
        (lambda: WebSocketException(1008, "policy"), 403, "policy"),
    ],
)
async def test_connect_refuses_by_them_as_well(error: Callable[[], Exception], status: int, body: str) -> None:
    async def enter(conn: object) -> dict[str, Any]:
        raise error()

    with pytest.raises(HandshakeRefused) as refused:
        async with connect(Channels([], connect=enter)):
            pass
    assert (refused.value.status, refused.value.body) == (status, body)


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refresh_refuses_by_them_as_well(name: str) -> None:
    raised, payload = REFUSALS[name]

    async def refresh(assigns: dict[str, Any], payload: Any) -> dict[str, Any]:
        raise raised()

    channels = Channels([], expiry=Expiry(at=lambda _: None, refresh=refresh))
    async with connect(channels) as client:
        client.send(None, "1", "phoenix", "refresh", {})
        assert await client.reply("1") == Reply("error", payload)
    assert channels.statistics().counts == {"refresh_refused": 1}
