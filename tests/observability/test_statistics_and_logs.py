"""Each mishap has a stable code, a counter and a log line; and the numbers return to nothing."""

import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from starlette_channels import (
    SerializerError,
)
from starlette_channels.testing import Client, HandshakeRefused, Joined, connect
from tests.support.mishap_lab import Lab

pytestmark = pytest.mark.anyio

Mishap = Callable[[Lab, Client, Joined], Awaitable[object]]


def small_lab() -> Lab:
    """Limits that are soon reached."""
    return Lab(channels=3, message_bytes=1000, mailbox=5)


async def refused_handshake(lab: Lab, user: str) -> None:
    with pytest.raises(HandshakeRefused):
        async with connect(lab.channels, user=user):
            pass


async def join_too_many(client: Client) -> None:
    for topic in "bcd":
        client.send("x", topic, f"lab:{topic}", "phx_join", {})
    await client.reply("d")


async def overflow(lab: Lab, room: Joined) -> None:
    room.send("wait")
    await anyio.wait_all_tasks_blocked()
    for _ in range(6):
        lab.sockets[0].send_info("x")
    await room.receive("phx_error")


async def fail_at_the_end(client: Client) -> None:
    room = await client.join("lab:trap")
    await room.leave()
    await client.join("lab:b")


async def push_after_the_end(lab: Lab, room: Joined) -> None:
    await room.leave()
    lab.sockets[0].push("late", {})


async def send_info(lab: Lab) -> None:
    lab.sockets[0].send_info(5)


def tell(client: Client, event: str, payload: Any = None, *, topic: str = "lab:a", join_ref: Any = None) -> Any:
    """Send something and wait until it has been dealt with."""
    client.send(join_ref, "x", topic, event, {} if payload is None else payload)
    return client.heartbeat()


async def broadcast(lab: Lab, client: Client, event: str, payload: Any) -> None:
    with contextlib.suppress(SerializerError):
        lab.channels.broadcast("lab:a", event, payload)
    await client.heartbeat()


MISHAPS: dict[str, tuple[int | None, Mishap]] = {
    "connect_refused": (logging.WARNING, lambda lab, client, room: refused_handshake(lab, "refused")),
    "connect_crashed": (logging.ERROR, lambda lab, client, room: refused_handshake(lab, "crash")),
    "join_refused": (logging.INFO, lambda lab, client, room: tell(client, "phx_join", {"refuse": True}, topic="lab:b")),
    "join_crashed": (logging.ERROR, lambda lab, client, room: tell(client, "phx_join", {"crash": 1}, topic="lab:b")),
    "invalid_payload": (logging.WARNING, lambda lab, client, room: tell(client, "crash", [])),
    "unmatched_event": (logging.WARNING, lambda lab, client, room: tell(client, "nonsense")),
    "unmatched_topic": (logging.WARNING, lambda lab, client, room: tell(client, "crash", topic="lab:z")),
    "too_many_channels": (logging.WARNING, lambda lab, client, room: join_too_many(client)),
    "stale_message": (None, lambda lab, client, room: tell(client, "crash", join_ref="stale")),
    "channel_crashed": (logging.ERROR, lambda lab, client, room: tell(client, "crash")),
    "mailbox_overflow": (logging.ERROR, lambda lab, client, room: overflow(lab, room)),
    "end_failed": (logging.ERROR, lambda lab, client, room: fail_at_the_end(client)),
    "pushed_after_end": (None, lambda lab, client, room: push_after_the_end(lab, room)),
    "unmatched_info": (logging.WARNING, lambda lab, client, room: send_info(lab)),
    "inexpressible_broadcast": (logging.ERROR, lambda lab, client, room: broadcast(lab, client, "news", [1])),
    "delivery_failed": (logging.ERROR, lambda lab, client, room: broadcast(lab, client, "bug", {})),
}

FATAL: dict[str, tuple[int, str]] = {
    "message_too_big": (1009, "x" * 1001),
    "malformed_message": (1011, "{nope"),
}


@pytest.mark.parametrize("code", MISHAPS)
async def test_a_mishap_is_counted_by_its_code_and_logged(code: str, caplog: pytest.LogCaptureFixture) -> None:
    level, mishap = MISHAPS[code]
    caplog.set_level(logging.INFO, "starlette_channels")
    lab = small_lab()
    async with connect(lab.channels) as client:
        room = await client.join("lab:a")
        assert lab.channels.statistics().counts == {}
        caplog.clear()
        await mishap(lab, client, room)
        await anyio.wait_all_tasks_blocked()
        assert lab.channels.statistics().counts[code] == 1
        assert lab.channels.statistics().counts.keys() <= {code, "pushed_after_end"}
        loud = logging.WARNING if level is None else min(level, logging.WARNING)
        logged = [one for one in caplog.records if one.levelno >= loud and not one.message.startswith("Connected")]
        assert [record.levelno for record in logged] == ([] if level is None else [level])
        assert all(record.name.startswith("starlette_channels.") for record in logged)
        assert all((record.exc_info is not None) == code.endswith(("_crashed", "_failed")) for record in logged)


@pytest.mark.parametrize("code", FATAL)
async def test_a_mishap_that_closes_the_connection_is_counted_and_logged_too(
    code: str, caplog: pytest.LogCaptureFixture
) -> None:
    close_code, frame = FATAL[code]
    lab = small_lab()
    async with connect(lab.channels) as client:
        await client.join("lab:a")
        client.send_frame(frame)
        assert await client.closed() == close_code
    assert lab.channels.statistics().counts == {code: 1}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_a_bug_in_a_serializer_closes_with_1011_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    lab = small_lab()
    async with connect(lab.channels) as client:
        client.send_frame("bug")
        assert await client.closed() == 1011
    assert "ZeroDivisionError: in the serializer" in caplog.text


async def test_a_receive_that_fails_closes_with_1011_and_the_channels_end(caplog: pytest.LogCaptureFixture) -> None:
    lab = small_lab()
    broken = anyio.Event()

    async def server(scope: Any, receive: Any, send: Any) -> None:
        async def take() -> Any:
            message = await receive()
            if broken.is_set():
                raise ZeroDivisionError("a bug in the server")
            return message

        await lab.channels(scope, take, send)

    async with connect(server) as client:
        await client.join("lab:a")
        broken.set()
        client.send(None, "1", "phoenix", "heartbeat", {})
        assert await client.closed() == 1011
    assert lab.channels.statistics().counts == {"transport_failed": 1}
    assert lab.channels.statistics().channels == 0
    assert "ZeroDivisionError: a bug in the server" in caplog.text


async def test_what_a_client_says_cannot_forge_log_lines_or_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    lab = small_lab()
    evil = "x\nWARNING forged: all is lost\r\x1b[31m"
    async with connect(lab.channels) as client:
        await tell(client, evil, topic=evil)
        await tell(client, "x" * 300, topic="y" * 300)
        room = await client.join("lab:" + "z" * 300)
        room.send(evil, {})
        room.send(evil + "x" * 300, {})
        await client.heartbeat()
        await anyio.wait_all_tasks_blocked()
    lines = caplog.text.splitlines()
    assert len(lines) == len(caplog.records) == 4
    for line in lines:
        assert not re.search(r"[\x00-\x1f]", line)
        assert len(line) < 600


async def test_nothing_secret_of_a_clients_payload_or_query_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "starlette_channels")
    lab = small_lab()
    async with connect(lab.channels, token="hunter2") as client:
        room = await client.join("lab:a", {"password": "hunter2"})
        await client.heartbeat()
        await room.push("nonsense", {"password": "hunter2"})
        room.send("crash", {"password": "hunter2"})
        await room.receive("phx_error")
        await tell(client, "phx_join", {"refuse": True, "token": "hunter2"})
    assert caplog.records
    assert "hunter2" not in caplog.text


async def test_the_numbers_follow_the_clients_and_return_to_nothing() -> None:
    lab = small_lab()

    def numbers() -> tuple[int, int, int]:
        now = lab.channels.statistics()
        return now.connections, now.channels, now.topics

    assert numbers() == (0, 0, 0)
    async with connect(lab.channels) as one:
        assert numbers() == (1, 0, 0)
        a = await one.join("lab:a")
        await one.join("lab:b")
        async with connect(lab.channels) as two:
            await two.join("lab:a")
            assert numbers() == (2, 3, 2)
            lab.sockets[0].subscribe("elsewhere")
            assert numbers() == (2, 3, 3)
        assert numbers() == (1, 2, 3)
        await a.leave()
        assert numbers() == (1, 1, 1)
    assert numbers() == (0, 0, 0)
    assert lab.channels.statistics().counts == {}
