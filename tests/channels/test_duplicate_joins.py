"""Joining a topic that is joined already: the old channel goes, the new one comes."""

import gc
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from starlette_channels import Channels, EndReason, JoinError, Limits, Reply, Socket, channel
from starlette_channels.channels.joined import JoinedChannel
from starlette_channels.testing import Client, Received, connect
from tests.conftest import OK, error, frames, lines, until

pytestmark = pytest.mark.anyio


class Again:
    """Channels whose joins do what their payload says, and that note what happened."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.happened: list[str] = []
        self.sockets: list[Socket] = []
        self.gate = anyio.Event()
        self.joins = anyio.Event()

        @channel("topic")
        async def topic(socket: Socket, payload: dict[str, Any]) -> None:
            name = payload.get("name", "?")
            self.happened.append(f"join {name}")
            self.sockets.append(socket)
            socket.assigns["name"] = name
            if payload.get("push"):
                socket.push("welcome", {"name": name})
            if payload.get("broadcast"):
                socket.broadcast("entered", {"name": name})
            if payload.get("wait"):
                await self.joins.wait()
            if payload.get("refuse"):
                raise JoinError("no")

        @topic.on("wait")
        async def wait(socket: Socket, payload: Any) -> dict[str, Any]:
            try:
                await self.gate.wait()
            except BaseException:
                self.happened.append(f"{socket.assigns['name']} abandoned")
                socket.push("never", {})
                raise
            return {}

        @topic.on("echo")
        async def echo(socket: Socket, payload: Any) -> Any:
            self.happened.append(f"echo {socket.assigns['name']}")
            return payload

        @topic.terminate
        async def terminate(socket: Socket, reason: EndReason) -> None:
            self.happened.append(f"{socket.assigns['name']} {reason}")
            socket.push("never", {})

        self.channels = Channels([topic], limits=limits)


def join(client: Client, ref: str, **payload: Any) -> None:
    client.send(ref, ref, "topic", "phx_join", {"name": ref, **payload})


async def test_the_new_reply_comes_first_then_the_close_of_the_old_channel_then_what_the_new_one_pushes() -> None:
    again = Again()
    async with connect(again.channels) as client:
        join(client, "1")
        assert (await client.receive()).ref == "1"
        join(client, "2", push=True)
        assert await frames(client, 3) == [
            Received("2", "2", "topic", "phx_reply", OK),
            Received("1", "1", "topic", "phx_close", {}),
            Received("2", None, "topic", "welcome", {"name": "2"}),
        ]
        client.send("1", "3", "topic", "echo", {})  # stale
        client.send("2", "4", "topic", "echo", {})
        client.send(None, "5", "topic", "echo", {})
        assert lines(await frames(client, 2)) == [("2", "4", "phx_reply"), ("2", "5", "phx_reply")]
        assert await client.received_nothing()
        assert again.channels.statistics().channels == 1
    assert again.happened == ["join 1", "1 duplicate_join", "join 2", "echo 2", "echo 2", "2 closed"]


async def test_the_running_handler_and_what_waits_behind_it_are_abandoned() -> None:
    again = Again()
    async with connect(again.channels) as client:
        join(client, "1")
        for event in ("wait", "echo", "phx_leave"):
            client.send("1", event, "topic", event, {})
        await anyio.wait_all_tasks_blocked()
        again.sockets[0].send_info("never")
        join(client, "2")
        assert lines(await frames(client, 3)) == [
            ("1", "1", "phx_reply"),
            ("2", "2", "phx_reply"),
            ("1", "1", "phx_close"),
        ]
        assert await client.received_nothing()
        assert again.happened == ["join 1", "1 abandoned", "1 duplicate_join", "join 2"]
        assert again.channels.statistics().counts == {"pushed_after_end": 2}


async def test_the_same_join_ref_can_be_used_again() -> None:
    again = Again()
    async with connect(again.channels) as client:
        join(client, "1")
        join(client, "1")
        client.send("1", "2", "topic", "echo", {})
        came = lines(await frames(client, 4))
        assert came == [("1", "1", "phx_reply")] * 2 + [("1", "1", "phx_close"), ("1", "2", "phx_reply")]


async def test_a_second_join_that_is_refused_ends_the_first_channel_all_the_same() -> None:
    again = Again()
    async with connect(again.channels) as client:
        join(client, "1")
        await client.receive()
        join(client, "2", refuse=True, push=True)
        assert await frames(client, 2) == [
            Received("2", "2", "topic", "phx_reply", error("no")),
            Received("1", "1", "topic", "phx_close", {}),
        ]
        client.send("1", "3", "topic", "echo", {})
        assert await client.receive() == Received(None, "3", "topic", "phx_reply", error("unmatched topic"))
        assert await client.received_nothing()
        assert again.channels.statistics().channels == again.channels.statistics().topics == 0
    assert again.happened == ["join 1", "1 duplicate_join", "join 2"]


async def test_a_second_join_waits_for_the_answer_to_a_pending_one() -> None:
    again = Again()
    async with connect(again.channels) as client:
        join(client, "1", wait=True, push=True)
        client.send("1", "never", "topic", "echo", {})
        await until(lambda: again.happened == ["join 1"])
        join(client, "2")
        client.send("2", "3", "topic", "echo", {})
        await client.heartbeat()
        assert await client.received_nothing()
        assert again.happened == ["join 1"]
        again.joins.set()
        came = lines(await frames(client, 4))
        assert came[:2] == [("1", "1", "phx_reply"), ("2", "2", "phx_reply")]
        assert came[2:] == [("1", "1", "phx_close"), ("2", "3", "phx_reply")]
        assert await client.received_nothing()
        assert again.happened == ["join 1", "1 duplicate_join", "join 2", "echo 2"]


async def test_a_second_join_behind_one_that_is_refused_leaves_no_close() -> None:
    again = Again()
    async with connect(again.channels) as client:
        join(client, "1", wait=True, refuse=True)
        client.send("1", "event", "topic", "echo", {})
        await until(lambda: again.happened == ["join 1"])
        join(client, "2")
        again.joins.set()
        assert await frames(client, 3) == [
            Received("1", "1", "topic", "phx_reply", error("no")),
            Received(None, "event", "topic", "phx_reply", error("unmatched topic")),
            Received("2", "2", "topic", "phx_reply", OK),
        ]
        assert await client.received_nothing()
        assert again.channels.statistics().channels == 1
    assert again.happened == ["join 1", "join 2", "2 closed"]


async def test_many_joins_in_one_burst_are_all_answered_in_order_and_all_but_the_last_are_closed() -> None:
    again = Again()
    refs = [str(n) for n in range(10)]
    async with connect(again.channels) as client:
        for ref in refs:
            join(client, ref)
        client.send("9", "last", "topic", "echo", {})
        came = await frames(client, 20)
        assert [one.ref for one in came if one.event == "phx_reply"] == [*refs, "last"]
        assert [one.ref for one in came if one.event == "phx_close"] == refs[:-1]
        for ref in refs[:-1]:
            events = [one.event for one in came if one.ref == ref]
            assert events == ["phx_reply", "phx_close"]
        assert await client.received_nothing()
        assert again.channels.statistics().channels == again.channels.statistics().topics == 1
    assert [one for one in again.happened if "join " in one] == [f"join {ref}" for ref in refs]
    assert [one for one in again.happened if "duplicate" in one] == [f"{ref} duplicate_join" for ref in refs[:-1]]


async def test_a_leave_and_a_join_in_one_burst_leave_the_topic_joined() -> None:
    again = Again()
    async with connect(again.channels) as client:
        join(client, "1")
        await client.receive()
        client.send("1", "leave", "topic", "phx_leave", {})
        join(client, "2")
        client.send("2", "3", "topic", "echo", {})
        assert await client.reply("2") == Reply("ok", {})
        assert await client.reply("3") == Reply("ok", {})
        await client.heartbeat()
        assert again.happened[0] == "join 1"
        left = next(one for one in again.happened if one in ("1 left", "1 duplicate_join"))
        if left == "1 duplicate_join":
            assert again.happened[1] == left
        # After a leave the topic is free at once, and a join waits for no `terminate`: see test_endings.
        again.happened.remove(left)
        assert again.happened == ["join 1", "join 2", "echo 2"]


async def test_a_broadcast_right_after_the_second_reply_arrives_once() -> None:
    again = Again()
    async with connect(again.channels) as client, connect(again.channels) as other:
        there = await other.join("topic")
        for n in range(20):
            join(client, str(n), broadcast=True)
            assert (await client.reply(str(n))).status == "ok"
            again.channels.broadcast("topic", "news", {"n": n})
        await client.heartbeat()
        news = [one.payload["n"] for one in client._unread if one.event == "news"]  # pyright: ignore[reportPrivateUsage]
        assert news == list(range(20))
        assert await client.received_nothing(lambda one: one.event == "entered")  # that of its own joins
        for n in range(20):
            assert await there.receive("entered") == {"name": str(n)}
            assert await there.receive("news") == {"n": n}


async def test_other_topics_and_other_clients_do_not_notice() -> None:
    again = Again()
    async with connect(again.channels) as client, connect(again.channels) as stranger:
        join(stranger, "1")
        stranger.send("1", "wait", "topic", "wait", {})
        join(client, "1")
        join(client, "2")
        assert (await client.reply("2")).status == "ok"
        again.gate.set()
        assert lines(await frames(stranger, 2)) == [("1", "1", "phx_reply"), ("1", "wait", "phx_reply")]
        assert await stranger.received_nothing()


async def test_an_old_channel_that_takes_its_time_to_end_delays_the_new_one_but_not_for_ever(
    virtual_clock: object,
) -> None:
    joined: list[float] = []

    @channel("topic")
    async def topic(socket: Socket, payload: Any) -> None:
        joined.append(anyio.current_time())

    @topic.terminate
    async def terminate(socket: Socket, reason: EndReason) -> None:
        await anyio.sleep_forever()

    @topic.on("stubborn")
    async def stubborn(socket: Socket, payload: Any) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)

    channels = Channels([topic], limits=Limits(shutdown_seconds=3, idle_seconds=1000))
    async with connect(channels, timeout=20) as client:
        join(client, "1")
        join(client, "2")
        await client.reply("2")
        assert joined[1] - joined[0] == pytest.approx(3)  # pyright: ignore[reportUnknownMemberType]
        client.send("2", "3", "topic", "stubborn", {})
        await client.heartbeat()
        join(client, "4")
        await client.reply("4")
        assert joined[2] - joined[1] == pytest.approx(6)  # pyright: ignore[reportUnknownMemberType]


async def test_a_client_that_goes_while_its_second_join_waits_for_the_first_lets_both_end() -> None:
    again = Again()
    async with connect(again.channels) as client:
        join(client, "1", wait=True)
        await until(lambda: again.happened == ["join 1"])
        join(client, "2")
        await client.heartbeat()
        client.disconnect()
        await anyio.wait_all_tasks_blocked()
        again.joins.set()
    assert again.happened == ["join 1", "1 duplicate_join", "join 2", "2 closed"]
    assert again.channels.statistics().channels == again.channels.statistics().topics == 0


async def test_joins_that_wait_for_each_other_end_in_bounded_time_with_their_client(virtual_clock: object) -> None:
    again = Again(limits=Limits(shutdown_seconds=3))
    async with connect(again.channels) as client:
        for ref in ("1", "2", "3"):
            join(client, ref, wait=True)
        await client.heartbeat()
        client.disconnect()
        gone = anyio.current_time()
    assert anyio.current_time() - gone < 10
    assert set(again.happened) <= {"join 1", "join 2"}  # nobody was let in, so nothing is to be terminated
    assert again.channels.statistics().channels == again.channels.statistics().connections == 0


async def test_a_join_while_a_crashed_channel_terminates_waits_for_it_and_leaves_no_close() -> None:
    gate = anyio.Event()

    @channel("topic")
    async def topic(socket: Socket, payload: Any) -> None:
        pass

    @topic.on("crash")
    async def crash(socket: Socket, payload: Any) -> None:
        raise RuntimeError

    @topic.terminate
    async def terminate(socket: Socket, reason: EndReason) -> None:
        await gate.wait()

    channels = Channels([topic])
    async with connect(channels) as client:
        join(client, "1")
        client.send("1", "2", "topic", "crash", {})
        assert (await client.receive()).ref == "1"
        await anyio.wait_all_tasks_blocked()
        join(client, "3")
        assert await client.received_nothing()
        gate.set()
        assert lines(await frames(client, 2)) == [("1", "1", "phx_error"), ("3", "3", "phx_reply")]
        assert await client.received_nothing()
        assert channels.statistics().channels == channels.statistics().topics == 1


async def test_hundreds_of_second_joins_leave_nothing_behind(count_tasks: Callable[[], int]) -> None:
    again = Again()
    async with connect(again.channels) as client:
        await client.heartbeat()
        await anyio.wait_all_tasks_blocked()
        before, members_before = count_tasks(), len(living_members())
        for n in range(200):
            join(client, str(n))
            if n % 2:
                await client.reply(str(n))
        await client.heartbeat()
        await anyio.wait_all_tasks_blocked()
        assert count_tasks() == before
        assert again.channels.statistics().channels == again.channels.statistics().topics == 1
        again.sockets.clear()
        assert len(living_members()) == members_before + 1
        client.disconnect()
    assert again.channels.statistics().channels == again.channels.statistics().topics == 0
    assert sum("duplicate_join" in one for one in again.happened) == 199


def living_members() -> list[JoinedChannel]:
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is JoinedChannel]


async def test_the_end_of_a_connection_waits_for_channels_that_were_left_before() -> None:
    happened: list[str] = []
    going_on, go_on = anyio.Event(), anyio.Event()

    @channel("topic")
    async def topic(socket: Socket[Any], payload: Any) -> None: ...

    @topic.terminate
    async def terminate(socket: Socket[Any], reason: EndReason) -> None:
        going_on.set()
        await go_on.wait()
        await anyio.wait_all_tasks_blocked()
        happened.append(reason)

    async with connect(Channels([topic])) as client:
        join(client, "1")
        assert await client.reply("1") == Reply("ok", {})
        client.send("1", "leave", "topic", "phx_leave", {})
        await going_on.wait()
        go_on.set()
    assert happened == ["left"]
