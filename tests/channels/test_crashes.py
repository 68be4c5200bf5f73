"""Any exception of application code is a crash of what it ran for, and of nothing else, wherever it is raised."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from starlette_channels import Channels, Expiry, Handshake, Presence, Reply, Socket, channel
from starlette_channels.testing import Client, HandshakeRefused, JoinRefused, connect

pytestmark = pytest.mark.anyio


class Unusual(BaseException):
    """An exception that no `except Exception` catches."""


def raised(error: BaseException | type[BaseException]) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


async def cancelled_elsewhere() -> None:
    """Await what somebody else has cancelled, as a future of a library may be."""
    raise asyncio.CancelledError


def trio_cancelled() -> None:
    """Raise trio's `Cancelled` although nobody cancels, as by a scope that was entered and left by hand."""
    raise trio.Cancelled._create()  # pyright: ignore


ERRORS: dict[str, Callable[[], None]] = {
    "RuntimeError": raised(RuntimeError("secret")),
    "GeneratorExit": raised(GeneratorExit),
    "StopIteration": raised(StopIteration),
    "StopAsyncIteration": raised(StopAsyncIteration),
    "SystemExit": raised(SystemExit(3)),
    "BaseException": raised(Unusual()),
    "ExceptionGroup": raised(ExceptionGroup("some", [ValueError()])),
    "BaseExceptionGroup": raised(BaseExceptionGroup("some", [Unusual(), GeneratorExit()])),
    "group of cancellations": raised(BaseExceptionGroup("some", [asyncio.CancelledError()])),
    "CancelledError": raised(asyncio.CancelledError),
    "TimeoutError": raised(TimeoutError),
    "RecursionError": raised(RecursionError),
}


@pytest.fixture(params=ERRORS)
def fail(request: pytest.FixtureRequest) -> Callable[[], None]:
    return ERRORS[request.param]


class House:
    """Channels in which each kind of handler may fail, after a wait or at once."""

    def __init__(self, fail: Callable[[], None], *, waits: bool) -> None:
        self.ended: list[str] = []

        async def failing(*_: Any) -> None:
            if waits:
                await anyio.lowlevel.checkpoint()
            fail()

        @channel("room:*")
        async def room(socket: Socket, payload: Any) -> None:
            if payload == {"in": "join"}:
                await failing()

        @room.on("event")
        async def event(socket: Socket, payload: Any) -> None:
            await failing()

        @room.on_any
        async def anything(socket: Socket, event: str, payload: Any) -> dict[str, Any] | None:
            match event:
                case "any":
                    await failing()
                case "child":
                    socket.start_soon(failing)
                case "info":
                    socket.send_info(1)
                case "intercept":
                    socket.broadcast("news", {})
                case "echo":
                    return {}
                case "on_close":
                    socket.on_close(failing if waits else fail)
                    socket.on_close(lambda: self.ended.append("another"))
                    socket.stop()
                case _:
                    socket.stop()
            return None

        @room.intercept("news")
        async def news(socket: Socket, payload: Any) -> None:
            await failing()

        @room.info(int)
        async def info(socket: Socket, message: int) -> None:
            await failing()

        @room.on_refresh
        async def refreshed(socket: Socket, assigns: Any) -> None:
            await failing()

        @room.terminate
        async def terminate(socket: Socket, reason: str) -> None:
            self.ended.append(reason)
            if socket.subtopic == "terminate":
                await failing()

        async def refresh(assigns: dict[str, Any], payload: Any) -> dict[str, Any]:
            if payload == {"fail": True}:
                await failing()
            return assigns

        async def enter(conn: Handshake) -> dict[str, Any]:
            if "fail" in conn.query_params:
                await failing()
            return {}

        self.channels = Channels([room], connect=enter, expiry=Expiry(at=lambda _: None, refresh=refresh))

    def counts(self) -> dict[str, int]:
        return dict(self.channels.statistics().counts)


async def refresh(client: Client, payload: Any = None) -> Reply:
    ref = client.ref()
    client.send(None, ref, "phoenix", "refresh", payload or {})
    return await client.reply(ref)


WAITS = pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])


@WAITS
async def test_what_a_handler_raises_ends_its_channel_with_phx_error_and_nothing_else(
    fail: Callable[[], None], waits: bool
) -> None:
    house = House(fail, waits=waits)
    async with connect(house.channels) as client:
        other = await client.join("room:b")
        for number, where in enumerate(["event", "any", "child", "info", "intercept"], 1):
            room = await client.join("room:a")
            assert await room.push("echo") == Reply("ok"), where
            room.send(where)
            assert await room.receive("phx_error") == {"reason": "channel_crash"}, where
            assert await other.push("echo") == Reply("ok"), where
            assert house.ended == ["error"] * number, where
            assert house.counts() == {"channel_crashed": number}, where
        assert (await refresh(client)).status == "ok"
        assert await other.receive("phx_error") == {"reason": "channel_crash"}
        assert await (await client.join("room:a")).push("echo") == Reply("ok")
        assert house.counts() == {"channel_crashed": 6}
    assert house.ended == [*["error"] * 6, "closed"]


@WAITS
async def test_what_a_join_handler_raises_refuses_the_join(fail: Callable[[], None], waits: bool) -> None:
    house = House(fail, waits=waits)
    async with connect(house.channels) as client:
        with pytest.raises(JoinRefused) as refused:
            await client.join("room:a", {"in": "join"})
        assert refused.value.reply == Reply("error", {"reason": "join crashed"})
        assert await (await client.join("room:a")).push("echo") == Reply("ok")
    assert house.counts() == {"join_crashed": 1}


@WAITS
@pytest.mark.parametrize(("topic", "event"), [("room:terminate", "stop"), ("room:a", "on_close")])
async def test_what_is_raised_at_the_end_is_counted_and_the_end_goes_on(
    topic: str, event: str, fail: Callable[[], None], waits: bool
) -> None:
    house = House(fail, waits=waits)
    async with connect(house.channels) as client:
        room = await client.join(topic)
        room.send(event)
        await room.receive("phx_close")
        assert await (await client.join("room:b")).push("echo") == Reply("ok")
    assert house.counts() == {"end_failed": 1}
    assert house.ended[:2] == (["stopped", "another"] if event == "on_close" else ["stopped", "closed"])


@WAITS
async def test_what_connect_raises_is_answered_500(fail: Callable[[], None], waits: bool) -> None:
    house = House(fail, waits=waits)
    with pytest.raises(HandshakeRefused) as refused:
        async with connect(house.channels, fail=1):
            pass
    assert refused.value.status == 500
    assert house.counts() == {"connect_crashed": 1}
    async with connect(house.channels) as client:
        await client.heartbeat()


@WAITS
async def test_what_a_refresh_raises_is_answered_and_the_client_stays(fail: Callable[[], None], waits: bool) -> None:
    house = House(fail, waits=waits)
    async with connect(house.channels) as client:
        assert await refresh(client, {"fail": True}) == Reply("error", {"reason": "refresh crashed"})
        assert (await refresh(client)).status == "ok"
    assert house.counts() == {"refresh_crashed": 1}


@WAITS
async def test_what_fetch_and_observers_of_presence_raise_is_counted_and_clients_have_their_diffs(
    fail: Callable[[], None], waits: bool
) -> None:
    async def failing(*_: Any) -> Any:
        if waits:
            await anyio.lowlevel.checkpoint()
        fail()

    presence = Presence(fetch=failing)
    presence.on_diff(failing)

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        presence.track(socket, "ann")
        presence.push_state(socket)

    channels = Channels([room], presence=presence)
    async with connect(channels) as client:
        joined = await client.join("room:a")
        assert set(await joined.receive("presence_state")) == {"ann"}
        assert set((await joined.receive("presence_diff"))["joins"]) == {"ann"}
        await anyio.wait_all_tasks_blocked()
    await anyio.wait_all_tasks_blocked()
    assert channels.statistics().counts["fetch_failed"] >= 2
    assert channels.statistics().counts["observer_failed"] >= 1
    assert "channel_crashed" not in channels.statistics().counts


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_cancelled_of_trio_that_nobody_sent_is_a_crash() -> None:
    house = House(trio_cancelled, waits=False)
    async with connect(house.channels) as client:
        room = await client.join("room:a")
        room.send("event")
        await room.receive("phx_error")
    assert house.counts() == {"channel_crashed": 1}


async def test_a_log_line_names_what_was_handled_and_the_function(caplog: pytest.LogCaptureFixture) -> None:
    house = House(raised(RuntimeError()), waits=False)
    expected = {
        "event": "event 'event', tests.channels.test_crashes.House.__init__.<locals>.event, raised",
        "any": "event 'any', tests.channels.test_crashes.House.__init__.<locals>.anything, raised",
        "info": "info int, tests.channels.test_crashes.House.__init__.<locals>.info, raised",
        "intercept": "intercept 'news', tests.channels.test_crashes.House.__init__.<locals>.news, raised",
        "child": "start_soon(tests.channels.test_crashes.House.__init__.<locals>.failing) raised",
    }
    async with connect(house.channels) as client:
        for where, text in expected.items():
            room = await client.join("room:a")
            room.send(where)
            await room.receive("phx_error")
            assert caplog.records[-1].getMessage() == f"<JoinedChannel 'room:a'> ended: {text}"


def test_a_keyboard_interrupt_in_a_handler_ends_the_process_after_the_channel() -> None:
    program = """
        import asyncio
        from starlette_channels import Channels, Socket, channel
        from starlette_channels.testing import connect

        @channel("room")
        async def room(socket, payload): ...

        @room.on("stop")
        async def stop(socket, payload):
            await asyncio.sleep(0)
            raise KeyboardInterrupt

        @room.terminate
        async def terminate(socket, reason):
            await asyncio.sleep(0.01)
            print("terminate:", reason, flush=True)

        async def main():
            async with connect(Channels([room])) as client:
                (await client.join("room")).send("stop")
                await asyncio.sleep(10)

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.splitlines()[0] == "terminate: error"
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr
