"""Application code that ignores its cancellation: it burns no core, holds up no end, and is named in the log."""

import asyncio
import time
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from trio.testing import MockClock

from starlette_channels import Channels, Expiry, Handshake, Limits, Presence, Reply, Socket, channel
from starlette_channels.runtime.cancellation import PAUSES
from starlette_channels.testing import Client, HandshakeRefused, JoinRefused, connect
from tests.conftest import until

pytestmark = pytest.mark.anyio

GIVEN_UP = "ignores its cancellation: given up after"


MOST = 3 * len(PAUSES)
"""How often it is cancelled at most: each time once on asyncio, and up to three times on trio."""


class Stubborn:
    """A function that goes on whatever happens, until it is released, and counts how often it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.running = 0
        self.released = False

    async def __call__(self, *_: Any) -> Any:
        self.running += 1
        end = anyio.current_time() + 30  # trio waits for it when the test has failed
        while not self.released and anyio.current_time() < end:
            try:
                await anyio.sleep(0.5)
            except BaseException:  # noqa: BLE001 - this is the mistake that the tests are about
                self.cancelled += 1
        self.running -= 1
        return {}


LIMITS = Limits(shutdown_seconds=0.1, connect_seconds=0.5)


class House:
    """Channels in which each kind of function may be stubborn."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.stubborn = stubborn = Stubborn()
        self.happened: list[str] = []

        async def enter(conn: Handshake) -> dict[str, Any]:
            if "stubborn" in conn.query_params:
                await stubborn()
            return {}

        async def refresh(assigns: dict[str, Any], payload: Any) -> dict[str, Any]:
            await stubborn()
            return assigns

        @channel("room:*")
        async def room(socket: Socket, payload: Any) -> None:
            if payload == {"in": "join"}:
                await stubborn()

        @room.on_any
        async def anything(socket: Socket, event: str, payload: Any) -> dict[str, Any] | None:
            match event:
                case "event":
                    await stubborn()
                case "child":
                    socket.start_soon(stubborn)
                case "info":
                    socket.send_info(1)
                case "intercept":
                    socket.broadcast("news", {})
                case "on_close":
                    socket.on_close(stubborn)
                case _:
                    return {}
            return None

        @room.intercept("news")
        async def news(socket: Socket, payload: Any) -> None:
            await stubborn()

        @room.info(int)
        async def info(socket: Socket, message: int) -> None:
            await stubborn()

        @room.terminate
        async def terminate(socket: Socket, reason: str) -> None:
            self.happened.append(reason)
            if socket.subtopic == "terminate":
                await stubborn()

        self.channels = Channels(
            [room], connect=enter, limits=limits, expiry=Expiry(at=lambda _: None, refresh=refresh)
        )

    async def begin(self, where: str, client: Client) -> None:
        """Let something stubborn begin, and wait until it has."""
        match where:
            case "join":
                client.send("1", "1", "room:a", "phx_join", {"in": "join"})
            case "refresh":
                client.send(None, "1", "phoenix", "refresh", {})
            case "terminate":
                (await client.join("room:terminate")).send("phx_leave")
            case "on_close":
                room = await client.join("room:a")
                room.send("on_close")
                room.send("phx_leave")
            case _:
                (await client.join("room:a")).send(where)
        with anyio.fail_after(5):
            while not self.stubborn.running:
                await anyio.lowlevel.checkpoint()


WHERE = ["join", "event", "info", "intercept", "child", "refresh", "terminate", "on_close"]


@pytest.mark.parametrize("where", WHERE)
async def test_it_is_cancelled_a_bounded_number_of_times_and_named_and_the_connection_ends(
    where: str, virtual_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(Limits(shutdown_seconds=2))
    async with connect(house.channels, timeout=60) as client:
        await house.begin(where, client)
        gone = anyio.current_time()
    assert anyio.current_time() - gone < 3 * (2 + sum(PAUSES))
    await anyio.sleep(100)
    assert 1 <= house.stubborn.cancelled <= MOST
    assert house.channels.statistics().counts["cancellation_ignored"] == 1
    (line,) = [record.getMessage() for record in caplog.records if GIVEN_UP in record.getMessage()]
    assert "tests.runtime.test_cancellation." in line
    assert house.channels.statistics().connections == 0
    assert house.channels.statistics().topics == 0
    if where not in ("join", "refresh"):
        assert len(house.happened) == 1
    house.stubborn.released = True


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio has the virtual clock
async def test_it_burns_no_core_and_the_connection_ends() -> None:
    houses = {where: House() for where in ("join", "event", "child", "terminate")}

    async def come_and_go(where: str, house: House) -> None:
        async with connect(house.channels, timeout=30) as client:
            await house.begin(where, client)

    async with anyio.create_task_group() as tasks:
        for where, house in houses.items():
            tasks.start_soon(come_and_go, where, house)
    before = time.process_time()
    await anyio.sleep(0.5)
    assert time.process_time() - before < 0.25
    for where, house in houses.items():
        assert 1 <= house.stubborn.cancelled <= MOST, where
        assert house.channels.statistics().connections == 0, where
        house.stubborn.released = True


async def test_a_handler_that_takes_too_long_and_cannot_be_cancelled_ends_its_channel_all_the_same(
    virtual_clock: MockClock,
) -> None:
    house = House(Limits(handler_seconds=1))
    async with connect(house.channels, timeout=60) as client:
        await house.begin("event", client)
        await client.receive(lambda one: one.event == "phx_error")
        room = await client.join("room:a")
        assert await room.push("echo") == Reply("ok")
        house.stubborn.released = True
        await anyio.sleep(10)  # it returns now: its answer comes too late, and harms nobody
        assert await room.push("echo") == Reply("ok")
    assert house.happened == ["error", "closed"]
    counts = house.channels.statistics().counts
    assert (counts["handler_timeout"], counts["cancellation_ignored"]) == (1, 1)


async def test_a_join_that_cannot_be_cancelled_is_refused_all_the_same(virtual_clock: MockClock) -> None:
    house = House(Limits(handler_seconds=1))
    async with connect(house.channels, timeout=60) as client:
        with pytest.raises(JoinRefused, match="join timed out"):
            await client.join("room:a", {"in": "join"})
        await client.join("room:a")
        house.stubborn.released = True
        await anyio.sleep(10)
        assert house.channels.statistics().topics == 1


async def test_a_join_that_returns_after_its_connection_has_ended_subscribes_to_nothing(
    virtual_clock: MockClock,
) -> None:
    house = House(Limits(shutdown_seconds=1))
    async with connect(house.channels, timeout=60) as client:
        await house.begin("join", client)
    house.stubborn.released = True
    await anyio.sleep(10)
    assert house.stubborn.running == 0
    assert house.channels.statistics().topics == 0
    assert house.happened == []


async def test_a_connect_that_cannot_be_cancelled_is_answered_503_all_the_same(
    virtual_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    house = House()
    with pytest.raises(HandshakeRefused) as refused:
        async with connect(house.channels, timeout=60, stubborn=1):
            pass
    assert refused.value.status == 503
    counts = house.channels.statistics().counts
    assert (counts["connect_timeout"], counts["cancellation_ignored"]) == (1, 1)
    house.stubborn.released = True
    assert any(
        "House.__init__.<locals>.enter" in r.getMessage() or "Stubborn" in r.getMessage() for r in caplog.records
    )


async def test_a_fetch_that_cannot_be_cancelled_costs_its_fields_and_nothing_else(virtual_clock: MockClock) -> None:
    stubborn = Stubborn()
    presence = Presence(fetch=stubborn, fetch_seconds=1)

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        presence.track(socket, "ann")
        presence.push_state(socket)

    channels = Channels([room], presence=presence)
    async with connect(channels, timeout=60) as client:
        joined = await client.join("room:a")
        assert set(await joined.receive("presence_state")) == {"ann"}
    counts = channels.statistics().counts
    assert counts["fetch_failed"] == counts["cancellation_ignored"] >= 1
    stubborn.released = True


async def test_what_overhears_a_cancellation_once_is_cancelled_again_and_ends_as_any_other(
    virtual_clock: MockClock,
) -> None:
    happened: list[str] = []

    async def deaf_once() -> None:
        try:
            await anyio.sleep_forever()
        except BaseException:  # noqa: BLE001 - as before
            happened.append("overheard")
        try:
            await anyio.sleep_forever()
        finally:
            happened.append("cancelled")

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.start_soon(deaf_once)

    channels = Channels([room])
    async with connect(channels) as client:
        await client.join("room:a")
        await anyio.wait_all_tasks_blocked()
    await anyio.sleep(10)
    assert happened == ["overheard", "cancelled"]
    assert channels.statistics().counts == {}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # on trio, what is cancelled cannot wait, by convention
async def test_a_child_that_is_cancelled_has_time_to_clean_up() -> None:
    happened: list[str] = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await anyio.sleep(0.05)
            happened.append("cleaned up")

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        socket.start_soon(child)

    async with connect(Channels([room])) as client:
        await client.join("room:a")
        await anyio.wait_all_tasks_blocked()
    await until(lambda: bool(happened))


async def test_context_variables_that_connect_sets_reach_the_handlers() -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")

    async def enter(conn: Handshake) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        user.set(conn.query_params["user"])
        return {}

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> dict[str, str]:
        return {"user": user.get()}

    async with connect(Channels([room], connect=enter), user="ann") as client:
        assert (await client.join("room:a")).reply == Reply("ok", {"user": "ann"})
    assert user.get() == "nobody"


@pytest.mark.parametrize("kind", ["anyio", "asyncio"])
def test_tasks_of_a_handlers_own_task_group_that_ignore_it_burn_no_core_and_the_event_loop_ends(kind: str) -> None:
    stubborn = Stubborn()

    @channel("room")
    async def room(socket: Socket, payload: Any) -> None: ...

    @room.on("anyio")
    async def group(socket: Socket, payload: Any) -> None:
        async with anyio.create_task_group() as outer:
            outer.start_soon(stubborn)
            async with anyio.create_task_group() as inner:
                inner.start_soon(stubborn)
                await anyio.sleep_forever()

    @room.on("asyncio")
    async def group_of_asyncio(socket: Socket, payload: Any) -> None:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(stubborn())
            async with asyncio.TaskGroup() as inner:
                inner.create_task(stubborn())
                await anyio.sleep_forever()

    async def main() -> tuple[int, int]:
        async with connect(Channels([room], limits=Limits(shutdown_seconds=0.1)), timeout=30) as client:
            (await client.join("room")).send(kind)
            while stubborn.running < 2:
                await anyio.lowlevel.checkpoint()
        before = stubborn.cancelled
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        return before, stubborn.cancelled

    before, after = asyncio.run(main())  # which would wait for all tasks
    assert before == after
    assert stubborn.running == 2
    stubborn.released = True
