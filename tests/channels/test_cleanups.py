"""What a channel takes with it when it ends: its children, and what `on_close` was given."""

import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from starlette_channels import Channels, JoinError, Limits, Reply, Socket, channel
from starlette_channels.testing import JoinRefused, connect
from tests.conftest import frames, lines

pytestmark = pytest.mark.anyio


class House:
    """Channels whose join and whose event "do" call a function with the socket, and that note what happened."""

    def __init__(
        self,
        joining: Callable[[Socket], object] = lambda socket: None,
        doing: Callable[[Socket], object] = lambda socket: None,
        limits: Limits | None = None,
    ) -> None:
        self.happened: list[str] = []

        @channel("house:*")
        async def house(socket: Socket, payload: Any) -> None:
            joining(socket)

        @house.on("do")
        async def do(socket: Socket, payload: Any) -> dict[str, Any]:
            doing(socket)
            return {}

        @house.on("wait")
        async def wait(socket: Socket, payload: Any) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                self.happened.append("handler cancelled")

        @house.terminate
        async def terminate(socket: Socket, reason: str) -> None:
            self.happened.append(reason)

        self.channels = Channels([house], limits=limits)

    def note(self, what: str) -> Callable[[], None]:
        """Return a cleanup that is noted."""
        return lambda: self.happened.append(what)

    def note_later(self, what: str) -> Callable[[], Any]:
        """Return an async cleanup that is noted."""

        async def cleanup() -> None:
            await anyio.lowlevel.checkpoint()
            self.happened.append(what)

        return cleanup

    async def child(self) -> None:
        """Run until cancelled, and note that."""
        try:
            await anyio.sleep_forever()
        finally:
            self.happened.append("child cancelled")


END = ["leave", "stop", "crash", "rejoin", "disconnect", "close"]
REASON = dict(zip(END, ["left", "stopped", "error", "duplicate_join", "closed", "draining"], strict=True))


async def end(house: House, how: str) -> None:
    """Join, let something be done, and end in this way."""
    async with connect(house.channels) as client:
        room = await client.join("house:a")
        assert await room.push("do") == Reply("ok", {})
        match how:
            case "leave":
                await room.leave()
            case "stop" | "crash":
                pass  # `doing` has seen to it
            case "rejoin":
                await client.join("house:a")
                await client.heartbeat()
                client.disconnect()
            case "disconnect":
                client.disconnect()
            case _:
                async with house.channels.lifespan():
                    pass
        await anyio.wait_all_tasks_blocked()


async def fail() -> None:
    raise RuntimeError("the child failed")


def ending(how: str, doing: Callable[[Socket], object]) -> Callable[[Socket], object]:
    """Do something, and then stop or crash if that is how the channel ends."""

    def do(socket: Socket) -> None:
        doing(socket)
        if how == "stop":
            socket.stop()
        if how == "crash":
            socket.start_soon(fail)

    return do


@pytest.mark.parametrize("how", END)
async def test_cleanups_run_after_terminate_the_last_one_first_on_every_way_out(how: str) -> None:
    def joining(socket: Socket) -> None:
        if not house.happened:
            socket.on_close(house.note("first"))
            socket.on_close(house.note_later("second"))

    house = House(joining, ending(how, lambda socket: socket.on_close(house.note("third"))))
    await end(house, how)
    assert house.happened[:4] == [REASON[how], "third", "second", "first"]
    assert house.happened[4:] == (["closed"] if how == "rejoin" else [])


@pytest.mark.parametrize("error", [JoinError("no"), RuntimeError("crashed")])
async def test_cleanups_run_after_a_refused_join_too(error: Exception) -> None:
    def joining(socket: Socket) -> None:
        socket.on_close(house.note("first"))
        socket.on_close(house.note_later("second"))
        raise error

    house = House(joining)
    async with connect(house.channels) as client:
        with pytest.raises(JoinRefused):
            await client.join("house:a")
    assert house.happened == ["second", "first"]


async def test_a_cleanup_that_raises_does_not_keep_the_others_from_running(caplog: pytest.LogCaptureFixture) -> None:
    async def fail_later() -> None:
        raise OSError("async cleanup failed")

    def fail_at_once() -> None:
        raise IndexError("cleanup failed")

    def joining(socket: Socket) -> None:
        socket.on_close(house.note("first"))
        socket.on_close(fail_at_once)
        socket.on_close(fail_later)
        socket.on_close(house.note("last"))

    house = House(joining)
    await end(house, "leave")
    assert house.happened == ["left", "last", "first"]
    assert house.channels.statistics().counts == {"end_failed": 2}
    assert [one.exc_info[0] for one in caplog.records if one.exc_info] == [OSError, IndexError]


async def test_a_cleanup_that_is_given_after_the_end_is_called_at_once() -> None:
    def fail_at_once() -> None:
        raise IndexError("cleanup failed")

    sockets: list[Socket] = []
    house = House(sockets.append)
    await end(house, "leave")
    (socket,) = sockets
    socket.on_close(house.note("first"))
    socket.on_close(house.note_later("second"))
    socket.on_close(fail_at_once)
    socket.on_close(house.note("last"))
    await anyio.wait_all_tasks_blocked()
    assert sorted(house.happened) == ["first", "last", "left", "second"]
    assert house.channels.statistics().counts == {"end_failed": 1}


async def test_a_cleanup_may_give_another() -> None:
    house = House(lambda socket: socket.on_close(lambda: socket.on_close(house.note("second"))))
    await end(house, "leave")
    assert house.happened == ["left", "second"]


async def test_a_cleanup_that_hangs_is_cut_short(virtual_clock: object) -> None:
    def joining(socket: Socket) -> None:
        socket.on_close(house.note("first"))
        socket.on_close(anyio.sleep_forever)

    house = House(joining, limits=Limits(shutdown_seconds=3))
    async with connect(house.channels) as client:
        room = await client.join("house:a")
        await room.leave()
        await client.join("house:b")
        left = anyio.current_time()
        client.disconnect()
    assert anyio.current_time() - left == pytest.approx(3)  # pyright: ignore[reportUnknownMemberType]
    assert sorted(house.happened) == ["closed", "first", "first", "left"]
    assert house.channels.statistics().counts == {"end_failed": 2}


@pytest.mark.parametrize("how", END)
async def test_children_are_cancelled_when_their_channel_ends(how: str, count_tasks: Callable[[], int]) -> None:
    def joining(socket: Socket) -> None:
        if not house.happened:
            socket.start_soon(house.child)

    house = House(joining, ending(how, lambda socket: socket.start_soon(house.child)))
    before = count_tasks()
    await end(house, how)
    assert house.happened.count("child cancelled") == 2
    assert house.happened.count(REASON[how]) == 1 + (how == "rejoin" and REASON[how] == "closed")
    await anyio.wait_all_tasks_blocked()
    assert count_tasks() == before


async def test_a_child_that_raises_ends_its_channel_and_cancels_the_running_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = anyio.Event()

    async def fail_later() -> None:
        await gate.wait()
        raise RuntimeError("the child failed")

    house = House(doing=lambda socket: socket.start_soon(fail_later))
    async with connect(house.channels) as client:
        room, other = await client.join("house:a"), await client.join("house:b")
        await room.push("do")
        room.send("wait")
        room.send("do")
        await client.heartbeat()
        gate.set()
        await room.receive("phx_error")
        assert (await client.receive()).payload["response"] == {"reason": "unmatched topic"}
        assert house.happened == ["handler cancelled", "error"]
        assert await other.push("do") == Reply("ok", {})
        await other.receive("phx_error")
    (one, _) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "fail_later" in one.message
    assert one.exc_info is not None


async def test_an_idle_channel_whose_child_raises_ends() -> None:
    house = House(doing=lambda socket: socket.start_soon(fail))
    async with connect(house.channels) as client:
        room = await client.join("house:a")
        ref = room.send("do")
        assert lines(await frames(client, 2)) == [("1", ref, "phx_reply"), ("1", "1", "phx_error")]
    assert house.happened == ["error"]
    assert house.channels.statistics().counts == {"channel_crashed": 1}


async def test_a_child_may_stop_its_channel_and_pushes_nothing_after_its_end() -> None:
    async def child(socket: Socket) -> None:
        socket.push("one", {})
        socket.stop()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            socket.push("never", {})

    house = House(doing=lambda socket: socket.start_soon(child, socket))
    async with connect(house.channels) as client:
        room = await client.join("house:a")
        await room.push("do")
        assert [one.event for one in await frames(client, 2)] == ["one", "phx_close"]
        assert await client.received_nothing()
    assert house.happened == ["stopped"]
    assert house.channels.statistics().counts == {"pushed_after_end": 1}


async def test_a_child_that_ends_leaves_its_channel_as_it_was() -> None:
    async def child(number: int) -> None:
        house.happened.append(f"child {number}")

    house = House(doing=lambda socket: [socket.start_soon(child, number) for number in range(3)])
    async with connect(house.channels) as client:
        room = await client.join("house:a")
        await room.push("do")
        await client.heartbeat()
        assert await room.push("do") == Reply("ok", {})
    assert sorted(house.happened[:-1]) == sorted([f"child {n}" for n in range(3)] * 2)
    assert house.happened[-1] == "closed"


async def test_a_child_that_does_not_stop_when_cancelled_does_not_hold_up_the_end(virtual_clock: object) -> None:
    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1000)

    house = House(joining=lambda socket: socket.start_soon(stubborn), limits=Limits(shutdown_seconds=3))
    async with connect(house.channels) as client:
        await client.join("house:a")
        client.disconnect()
        gone = anyio.current_time()
    assert anyio.current_time() - gone <= 10
    assert house.happened == ["closed"]
    await anyio.sleep(1000)
