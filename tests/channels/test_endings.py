"""How a channel ends: what its client is told, in which order, and `terminate` exactly once."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from starlette_channels import Channels, EndReason, Limits, Reply, Socket, channel
from starlette_channels.testing import Received, connect
from tests.conftest import OK, error, frames, lines, until

pytestmark = pytest.mark.anyio


class Life:
    """Channels with every way to end, that note how they ended."""

    def __init__(self, limits: Limits | None = None, ending: Callable[[Socket], Any] = lambda socket: None) -> None:
        self.sockets: dict[str, Socket] = {}
        self.ends: list[EndReason] = []
        self.happened: list[str] = []
        self.gate = anyio.Event()

        @channel("life:*")
        async def life(socket: Socket, payload: Any) -> None:
            self.sockets[socket.subtopic] = socket

        @life.on("stop")
        async def stop(socket: Socket, payload: dict[str, Any]) -> dict[str, Any] | None:
            socket.stop()
            socket.stop()
            return payload or None

        @life.on("crash")
        async def crash(socket: Socket, payload: dict[str, Any]) -> None:
            socket.push("before", {})
            if payload.get("stop"):
                socket.stop()
            raise RuntimeError("secret")

        @life.on("wait")
        async def wait(socket: Socket, payload: Any) -> dict[str, Any]:
            self.happened.append("waiting")
            try:
                await self.gate.wait()
                self.happened.append("waited")
            except BaseException:
                self.happened.append("cancelled")
                raise
            return {}

        @life.on("echo")
        async def echo(socket: Socket, payload: Any) -> Any:
            await anyio.lowlevel.checkpoint()
            self.happened.append(f"echo {payload.get('n')}")
            return payload

        @life.terminate
        async def terminate(socket: Socket, reason: EndReason) -> None:
            self.ends.append(reason)
            self.happened.append("terminate")
            socket.push("bye", {})
            socket.broadcast("gone", {})
            result = ending(socket)
            if result is not None:
                await result

        self.channels = Channels([life], limits=limits)


async def test_a_leave_is_answered_then_closed_and_what_terminate_pushes_follows() -> None:
    life = Life()
    async with connect(life.channels) as client:
        await client.join("life:a")
        client.send("1", "2", "life:a", "phx_leave", {})
        assert await frames(client, 3) == [
            Received("1", "2", "life:a", "phx_reply", OK),
            Received("1", "1", "life:a", "phx_close", {}),
            Received("1", None, "life:a", "bye", {}),
        ]
        client.send("1", "3", "life:a", "echo", {})
        client.send("1", "4", "life:a", "phx_leave", {})
        assert await frames(client, 2) == [
            Received(None, "3", "life:a", "phx_reply", error("unmatched topic")),
            Received("1", "4", "life:a", "phx_reply", OK),
        ]
    assert life.ends == ["left"]


@pytest.mark.parametrize("reply", [{}, {"with": "reply"}])
async def test_a_stop_sends_the_reply_if_any_then_the_close_then_what_terminate_pushes(reply: dict[str, Any]) -> None:
    life = Life()
    async with connect(life.channels) as client:
        room = await client.join("life:a")
        ref = room.send("stop", reply)
        if reply:
            assert (await client.receive()).ref == ref
        assert lines(await frames(client, 2)) == [("1", "1", "phx_close"), ("1", None, "bye")]
        assert await client.received_nothing()
        assert life.channels.statistics().channels == 0
    assert life.ends == ["stopped"]


@pytest.mark.parametrize("payload", [{}, {"stop": True}])
async def test_a_handler_that_raises_ends_its_channel_with_phx_error_after_terminate(
    payload: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    life = Life()
    async with connect(life.channels) as client:
        room, other = await client.join("life:a"), await client.join("life:b")
        room.send("crash", payload)
        assert await frames(client, 3) == [
            Received("1", None, "life:a", "before", {}),
            Received("1", None, "life:a", "bye", {}),
            Received("1", "1", "life:a", "phx_error", {"reason": "channel_crash"}),
        ]
        assert await other.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
        again = await client.join("life:a")
        assert await again.push("echo", {"n": 2}) == Reply("ok", {"n": 2})
        assert life.ends == ["error"]
    assert life.channels.statistics().counts["channel_crashed"] == 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "secret"


@pytest.mark.parametrize("end", ["crash", "stop"])
async def test_messages_queued_behind_the_end_found_the_topic_unjoined(end: str) -> None:
    life = Life()
    async with connect(life.channels) as client:
        room = await client.join("life:a")
        room.send("wait")
        room.send(end)
        client.send("1", "event", "life:a", "echo", {})
        client.send("1", None, "life:a", "echo", {})
        client.send("1", "leave", "life:a", "phx_leave", {})
        await anyio.wait_all_tasks_blocked()
        life.sockets["a"].send_info("lost")
        life.gate.set()
        came = await frames(client, 6 if end == "stop" else 7)
        assert came[-3:] == [
            Received(None, "event", "life:a", "phx_reply", error("unmatched topic")),
            Received(None, None, "life:a", "phx_reply", error("unmatched topic")),
            Received("1", "leave", "life:a", "phx_reply", OK),
        ]
        assert await client.received_nothing()
    assert life.happened == ["waiting", "waited", "terminate"]


async def test_a_leave_lets_the_events_before_it_finish() -> None:
    life = Life()
    async with connect(life.channels) as client:
        room = await client.join("life:a")
        refs = [room.send("wait"), room.send("echo", {"n": 1}), room.send("phx_leave")]
        await client.heartbeat()
        life.gate.set()
        came = lines(await frames(client, 5))
        assert came == [*(("1", ref, "phx_reply") for ref in refs), ("1", "1", "phx_close"), ("1", None, "bye")]


async def test_what_a_client_sent_right_before_it_went_is_handled_before_the_end() -> None:
    life = Life()
    async with connect(life.channels) as client:
        rooms = [await client.join("life:a"), await client.join("life:b")]
        for n in range(5):
            rooms[n % 2].send("echo", {"n": n})
        client.disconnect()
    assert [one for one in life.happened if one in ("echo 0", "echo 2", "echo 4")] == ["echo 0", "echo 2", "echo 4"]
    assert [one for one in life.happened if one in ("echo 1", "echo 3")] == ["echo 1", "echo 3"]
    assert life.happened[-1] == "terminate"
    assert life.ends == ["closed", "closed"]


async def test_a_running_handler_finishes_when_its_connection_drops_and_then_terminate_runs() -> None:
    life = Life()
    async with connect(life.channels) as client, connect(life.channels) as stranger:
        room, there = await client.join("life:a"), await stranger.join("life:a")
        room.send("wait")
        room.send("echo", {"n": 1})
        await client.heartbeat()
        client.disconnect()
        await anyio.wait_all_tasks_blocked()
        assert life.happened == ["waiting"]
        life.gate.set()
        assert await there.receive("gone") == {}
        assert life.happened == ["waiting", "waited", "echo 1", "terminate"]
        assert life.ends == ["closed"]
        assert await client.received_nothing()
    assert life.channels.statistics().counts["pushed_after_end"] >= 2


async def test_hanging_handlers_have_a_bounded_time_together_and_terminate_still_runs(virtual_clock: object) -> None:
    life = Life(limits=Limits(shutdown_seconds=3))
    async with connect(life.channels) as client:
        for n in range(10):
            room = await client.join(f"life:{n}")
            room.send("wait")
            room.send("echo")
        await client.heartbeat()
        gone = anyio.current_time()
        client.disconnect()
    assert anyio.current_time() - gone == pytest.approx(3)  # pyright: ignore[reportUnknownMemberType]
    assert sorted(life.happened) == sorted([*["waiting", "cancelled", "terminate"] * 10])
    assert life.ends == ["closed"] * 10


def cancelling(channels: Any, cancels: list[Callable[[], object]]) -> Any:
    """Return a server that cancels what it runs for a connection, by a cancel scope."""

    async def server(*asgi: Any) -> None:
        with anyio.CancelScope() as scope:
            cancels.append(scope.cancel)
            await channels(*asgi)

    return server


def cancelling_tasks(channels: Channels[Any], cancels: list[Callable[[], object]]) -> Any:
    """Return a server that cancels what it runs for a connection, by `task.cancel()`."""

    async def server(*asgi: Any) -> None:
        task = asyncio.create_task(channels(*asgi))
        cancels.append(task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    return server


@pytest.mark.parametrize(
    ("anyio_backend", "server"),
    [
        ("asyncio", cancelling),
        ("asyncio", cancelling_tasks),
        ("uvloop", cancelling),
        ("uvloop", cancelling_tasks),
        ("trio", cancelling),
    ],
    indirect=["anyio_backend"],
)
async def test_a_server_that_cancels_a_connection_does_not_keep_terminate_from_running(server: Any) -> None:
    life = Life(ending=lambda _: anyio.sleep(0.01))
    cancels: list[Callable[[], object]] = []
    async with connect(server(life.channels, cancels)) as client, connect(life.channels) as stranger:
        await client.join("life:idle")
        busy, there = await client.join("life:busy"), await stranger.join("life:busy")
        busy.send("wait")
        await client.heartbeat()
        cancels[0]()
        await there.receive("gone")
        assert await client.closed() == 1006
        await until(lambda: life.channels.statistics().connections == 1)
        assert life.ends == ["shutdown", "shutdown"]
        assert sorted(life.happened) == ["cancelled", "terminate", "terminate", "waiting"]
        assert life.channels.statistics().topics == 1
        assert await there.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
    assert life.ends == ["shutdown", "shutdown", "closed"]


async def test_a_server_that_cancels_again_and_again_does_not_keep_terminate_from_its_end(
    virtual_clock: object,
) -> None:
    life = Life(limits=Limits(shutdown_seconds=3), ending=lambda _: anyio.sleep(2))
    cancels: list[Callable[[], object]] = []

    async with connect(cancelling(cancelling(life.channels, cancels), cancels)) as client:
        await client.join("life:a")
        cancels[1]()
        await anyio.sleep(1)
        cancels[0]()
        start = anyio.current_time()
    assert anyio.current_time() - start == pytest.approx(1)  # pyright: ignore[reportUnknownMemberType]
    assert life.ends == ["shutdown"]
    assert "end_failed" not in life.channels.statistics().counts


async def test_a_terminate_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fail(socket: Socket) -> None:
        raise RuntimeError("terminate failed")

    life = Life(ending=fail)
    async with connect(life.channels) as client:
        room = await client.join("life:a")
        await room.leave()
        room = await client.join("life:a")
        room.send("crash")
        assert await room.receive("phx_error") == {"reason": "channel_crash"}
        await client.join("life:a")
    assert life.ends == ["left", "error", "closed"]
    assert life.channels.statistics().counts["end_failed"] == 3
    assert caplog.text.count("RuntimeError: terminate failed") == 3


async def test_a_terminate_that_hangs_is_cut_short_and_holds_nobody_up(virtual_clock: object) -> None:
    life = Life(limits=Limits(shutdown_seconds=3), ending=lambda _: anyio.sleep_forever())
    async with connect(life.channels) as client:
        room, other = await client.join("life:a"), await client.join("life:b")
        start = anyio.current_time()
        await room.leave()
        again = await client.join("life:a")  # the topic is free already
        assert await other.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
        assert anyio.current_time() == start
        again.send("crash")
        await again.receive("phx_error")
        assert anyio.current_time() - start == pytest.approx(3)  # pyright: ignore[reportUnknownMemberType]
        client.disconnect()
    assert anyio.current_time() - start == pytest.approx(6)  # pyright: ignore[reportUnknownMemberType]
    assert life.ends == ["left", "error", "closed"]
    assert life.channels.statistics().counts["end_failed"] == 3


async def test_a_channel_can_be_stopped_from_outside_at_any_time() -> None:
    life = Life()
    async with connect(life.channels) as client:
        idle, busy = await client.join("life:idle"), await client.join("life:busy")
        life.sockets["idle"].stop()
        await idle.receive("phx_close")
        ref = busy.send("wait")
        await client.heartbeat()
        life.sockets["busy"].stop()
        assert await busy.received_nothing("phx_close")
        life.gate.set()
        assert await client.reply(ref) == Reply("ok", {})
        await busy.receive("phx_close")
    assert life.ends == ["stopped", "stopped"]


def test_an_event_loop_that_is_torn_down_lets_terminate_run() -> None:
    life = Life()

    async def talk() -> None:
        async with connect(life.channels) as client:
            room = await client.join("life:a")
            room.send("wait")
            await anyio.sleep_forever()

    async def main() -> None:
        task = asyncio.create_task(talk())
        await until(lambda: life.happened == ["waiting"])
        assert not task.done()

    asyncio.run(main())
    assert life.happened == ["waiting", "cancelled", "terminate"]
    assert life.ends == ["shutdown"]


def test_an_event_loop_that_is_torn_down_before_a_letter_is_handled_ends_the_channel() -> None:
    sockets: list[Any] = []
    ends: list[str] = []

    @channel("room")
    async def room(socket: Socket, payload: Any) -> None:
        sockets.append(socket)

    @room.info(str)
    async def info(socket: Socket, message: str) -> None: ...

    @room.terminate
    async def terminate(socket: Socket, reason: str) -> None:
        ends.append(reason)

    async def talk() -> None:
        async with connect(Channels([room], limits=Limits(shutdown_seconds=0.1))) as client:
            await client.join("room")
            await anyio.sleep_forever()

    async def main() -> None:
        task = asyncio.create_task(talk())
        await until(lambda: bool(sockets) and not sockets[0].is_busy)
        assert not task.done()
        # All tasks are cancelled before the one that would handle this has begun.
        asyncio.get_running_loop().call_soon(sockets[0].send_info, "news")

    asyncio.run(main())
    assert ends == ["shutdown"]
