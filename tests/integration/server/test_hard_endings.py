"""Ends of channels that go wrong, or that somebody is in a hurry with: they come to an end all the same."""

import asyncio
from typing import Any

import anyio
import httpx
import pytest

from starlette_channels import Channels, Limits, Socket, channel
from starlette_channels.testing import connect
from tests.fuzzing.wire import Address, opened, text
from tests.support.servers import FAST_LANE, Kind, serve

pytestmark = pytest.mark.anyio


async def test_a_cancellation_that_terminate_lets_through_is_its_failure_and_not_the_end_of_the_end() -> None:
    happened: list[str] = []

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.on_close(lambda: happened.append("cleaned up"))

    @room.terminate
    async def terminate(socket: Socket, reason: str) -> None:
        raise asyncio.CancelledError  # as from awaiting a task that was cancelled

    channels = Channels([room])
    async with connect(channels) as client:
        await (await client.join("room:a")).leave()
        await client.join("room:a")
    assert happened == ["cleaned up"] * 2
    assert channels.statistics().counts == {"end_failed": 2}


async def test_a_cleanup_that_lets_a_cancellation_through_does_not_keep_the_others_from_running() -> None:
    happened: list[str] = []

    def cancelled() -> None:
        raise asyncio.CancelledError

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.on_close(lambda: happened.append("cleaned up"))
        socket.on_close(cancelled)

    channels = Channels([room])
    async with connect(channels) as client:
        await client.join("room:a")
    assert happened == ["cleaned up"]


@pytest.mark.parametrize("message", [None, 0, "text"])
async def test_a_handler_is_cancelled_whatever_it_handles(virtual_clock: object, message: object) -> None:
    happened: list[str] = []

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.send_info(message)

    @room.info(object)
    async def hang(socket: Socket, message: object) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            happened.append("cancelled")

    async with connect(Channels([room], limits=Limits(shutdown_seconds=0.5))) as client:
        await client.join("room:a")
        await anyio.wait_all_tasks_blocked()
    assert happened == ["cancelled"]


async def test_a_channel_that_is_full_says_so_once_and_answers_what_it_turns_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None: ...

    @room.on("work")
    async def work(socket: Socket, payload: Any) -> dict[str, Any]:
        for number in range(10):
            socket.send_info(number)
        await anyio.lowlevel.checkpoint()
        return {}

    channels = Channels([room], limits=Limits(mailbox=3))
    async with connect(channels) as client:
        joined = await client.join("room:a")
        refs = [joined.send("work") for _ in range(3)]
        await joined.receive("phx_error")
        assert [(await client.reply(ref)).status for ref in refs[1:]] == ["error", "error"]
    assert channels.statistics().counts["mailbox_overflow"] == 1
    assert len([record for record in caplog.records if "letters wait" in record.getMessage()]) == 1


HASTY = Kind("fast-lane-hasty", f"{FAST_LANE.command} --timeout-graceful-shutdown 1")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_server_that_has_no_patience_left_cancels_handlers_and_terminate_still_runs() -> None:
    with serve("tests.support.lane_app:app", HASTY, environment={"UNDRAINED": "yes"}) as server:
        async with opened(Address(server.port), "/socket/websocket?vsn=2.0.0") as wire:
            await wire.join("room:a")
            wire.send(text("1", "2", "room:a", "hang"))
            await until_hanging(server.http)
            stopping = asyncio.create_task(asyncio.to_thread(server.stop, grace=10.0))
            assert (await wire.closed()).code == 1012
            await wire.discard()
            assert await stopping
        log = server.log.read_text()
        assert "handler cancelled" in log
        assert "terminate: shutdown" in log


async def until_hanging(base: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        while not (await http.get(f"{base}/figures")).json()["hanging"]:
            await anyio.lowlevel.checkpoint()
