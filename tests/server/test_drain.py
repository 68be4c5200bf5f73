"""Clients are sent away before the server stops: in batches, with their answers, and told when to come back."""

from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import TaskGroup
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from trio.testing import MockClock

from starlette_channels import Channels, Drain, Handshake, LaterReply, Limits, Reply, Socket, channel
from starlette_channels.testing import Client, ConnectionClosed, HandshakeRefused, JoinRefused, connect
from tests.conftest import until
from tests.support.polling import BEAT, Poller

pytestmark = pytest.mark.anyio

AT_ONCE = "restart retry_after=0.00"


class House:
    """Channels whose handlers wait for gates, and a note of how they ended."""

    def __init__(self, drain: Drain | bool = True, **options: Any) -> None:
        self.ends: list[str] = []
        self.gone: list[str] = []
        self.gate = anyio.Event()
        self.door = anyio.Event()
        self.promised: list[LaterReply] = []
        self.busy = 0

        async def enter(conn: Handshake) -> dict[str, Any]:
            if "wait" in conn.params:
                self.busy += 1
                await self.door.wait()
            return {"name": conn.params.get("name", "")}

        @channel("room:*")
        async def room(socket: Socket, payload: Any) -> None: ...

        @room.on("echo")
        async def echo(socket: Socket, payload: Any) -> Reply:
            return Reply("ok", payload)

        @room.on("work")
        async def work(socket: Socket, payload: Any) -> Reply:
            self.busy += 1
            await self.gate.wait()
            return Reply("ok", payload)

        @room.on("promise")
        async def promise(socket: Socket, payload: Any) -> None:
            self.promised.append(socket.reply_later())

        @room.terminate
        async def terminate(socket: Socket, reason: str) -> None:
            self.ends.append(reason)
            self.gone.append(socket.assigns["name"])

        self.channels = Channels(
            [room], connect=enter, limits=Limits(shutdown_seconds=2.0), drain=drain, longpoll=True, **options
        )


async def goodbye(client: Client) -> str:
    """How the server closes a client."""
    try:
        while True:
            await client.receive()
    except ConnectionClosed as closed:
        return str(closed)


@pytest.fixture
async def house() -> House:
    return House()


# ---- batches


class Crowd:
    """Clients of a house, and when and how each was closed."""

    def __init__(self, house: House, clock: MockClock) -> None:
        self.goodbyes: list[tuple[float, str]] = []
        self._house = house
        self._clock = clock
        self._began = clock.current_time()

    async def come(self, tasks: TaskGroup, number: int) -> None:
        """Let so many connect, and stay."""
        for _ in range(number):
            tasks.start_soon(self._stay)
        await anyio.wait_all_tasks_blocked()

    async def _stay(self) -> None:
        async with connect(self._house.channels, timeout=1_000.0) as client:
            await client.join("room:a")
            said = await goodbye(client)
            self.goodbyes.append((round(self._clock.current_time() - self._began, 6), said))


async def test_clients_are_closed_in_batches_and_asked_to_come_back_in_turn(virtual_clock: MockClock) -> None:
    house = House(Drain(batch_size=2, interval_seconds=3.0))
    them = Crowd(house, virtual_clock)
    async with anyio.create_task_group() as tasks:
        await them.come(tasks, 5)
        await house.channels.drain()
        assert virtual_clock.current_time() >= 6.0
    said = [(at, f"1012 restart retry_after={wait}") for at in (0.0, 3.0, 6.0) for wait in ("0.00", "1.50")]
    assert sorted(them.goodbyes) == said[:5]
    assert house.ends == ["draining"] * 5


async def test_a_crowd_that_is_too_large_for_the_pace_leaves_in_time_all_the_same(virtual_clock: MockClock) -> None:
    house = House(Drain(batch_size=1, interval_seconds=1.0, timeout_seconds=3.0))
    them = Crowd(house, virtual_clock)
    async with anyio.create_task_group() as tasks:
        await them.come(tasks, 30)
        await house.channels.drain()
    assert [round(at) for at, _ in them.goodbyes] == [0] * 10 + [1] * 10 + [2] * 10


async def test_an_event_loop_that_was_busy_catches_up(virtual_clock: MockClock) -> None:
    house = House(Drain(batch_size=1, interval_seconds=1.0))
    them = Crowd(house, virtual_clock)
    async with anyio.create_task_group() as tasks:
        await them.come(tasks, 4)
        tasks.start_soon(house.channels.drain)
        await until(lambda: len(them.goodbyes) == 1)
        virtual_clock.jump(60.0)
    assert [at for at, _ in them.goodbyes] == [0.0, 60.0, 60.0, 60.0]


async def test_a_server_without_another_one_closes_all_at_once_and_says_when_it_will_be_back() -> None:
    house = House(Drain(batch_size=1, interval_seconds=2.0, restart_seconds=7.0))
    async with connect(house.channels) as ann, connect(house.channels) as bob:
        await house.channels.drain()
        assert {await goodbye(ann), await goodbye(bob)} == {
            "1012 restart retry_after=7.00",
            "1012 restart retry_after=9.00",
        }


# ---- what was promised


async def test_a_handler_that_is_at_work_answers_before_its_client_is_closed(house: House) -> None:
    async with connect(house.channels) as client, anyio.create_task_group() as tasks:
        room = await client.join("room:a")
        idle = await client.join("room:b")
        refs = [room.send("work", {"number": number}) for number in range(3)]
        await until(lambda: house.busy == 1)
        tasks.start_soon(house.channels.drain)
        assert await client.received_nothing()
        house.gate.set()
        assert [await client.reply(ref) for ref in refs] == [Reply("ok", {"number": number}) for number in range(3)]
        assert await goodbye(client) == f"1012 {AT_ONCE}"
        assert idle.topic == "room:b"
    assert house.ends == ["draining", "draining"]


async def test_a_reply_that_was_promised_is_waited_for(house: House) -> None:
    async with connect(house.channels) as client, anyio.create_task_group() as tasks:
        room = await client.join("room:a")
        refs = [room.send("promise") for _ in range(3)]
        await until(lambda: len(house.promised) == 3)
        house.promised.pop(0)({"number": 0})
        assert await client.reply(refs.pop(0)) == Reply("ok", {"number": 0})
        tasks.start_soon(house.channels.drain)
        assert await client.received_nothing()
        for number, reply in enumerate(house.promised):
            reply({"number": number})
        assert [await client.reply(ref) for ref in refs] == [Reply("ok", {"number": number}) for number in range(2)]
        assert await goodbye(client) == f"1012 {AT_ONCE}"


async def test_a_promise_that_nobody_can_keep_is_not_waited_for(house: House) -> None:
    async with connect(house.channels) as client:
        room = await client.join("room:a")
        room.send("promise")
        await until(lambda: len(house.promised) == 1)
        house.promised.clear()
        await house.channels.drain()
        assert await goodbye(client) == f"1012 {AT_ONCE}"


async def test_a_handler_that_hangs_is_cancelled_in_the_end(house: House, virtual_clock: MockClock) -> None:
    async with connect(house.channels) as client:
        room = await client.join("room:a")
        room.send("work")
        await until(lambda: house.busy == 1)
        began = virtual_clock.current_time()
        await house.channels.drain()
        assert virtual_clock.current_time() - began == pytest.approx(2.0)
        assert await goodbye(client) == f"1012 {AT_ONCE}"
    assert house.ends == ["draining"]


async def test_a_promise_that_is_not_kept_is_waited_for_as_long_as_a_handler(
    house: House, virtual_clock: MockClock
) -> None:
    async with connect(house.channels) as client:
        room = await client.join("room:a")
        room.send("promise")
        await until(lambda: len(house.promised) == 1)
        began = virtual_clock.current_time()
        await house.channels.drain()
        assert virtual_clock.current_time() - began == pytest.approx(2.0)
        house.promised[0]({})  # too late, and no error


async def test_terminate_that_hangs_does_not_hold_up_the_end_for_ever(
    virtual_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None: ...

    @room.terminate
    async def terminate(socket: Socket, reason: str) -> None:
        await anyio.sleep_forever()

    channels = Channels([room], limits=Limits(shutdown_seconds=2.0))
    async with connect(channels) as client:
        await client.join("room:a")
        began = virtual_clock.current_time()
        await channels.drain()
        assert virtual_clock.current_time() - began == pytest.approx(2.0)
    assert channels.statistics().counts == {"end_failed": 1}


async def test_a_client_that_leaves_takes_its_promises_with_it(house: House, virtual_clock: MockClock) -> None:
    began = virtual_clock.current_time()
    async with anyio.create_task_group() as tasks, connect(house.channels) as client:
        room = await client.join("room:a")
        room.send("promise")
        await until(lambda: len(house.promised) == 1)
        tasks.start_soon(house.channels.drain)
        await anyio.wait_all_tasks_blocked()
        client.disconnect()
    assert virtual_clock.current_time() == began


async def test_a_client_that_leaves_meanwhile_is_no_trouble(house: House) -> None:
    async with anyio.create_task_group() as tasks, connect(house.channels) as client:
        room = await client.join("room:a")
        room.send("work")
        await until(lambda: house.busy == 1)
        tasks.start_soon(house.channels.drain)
        await anyio.wait_all_tasks_blocked()
        client.disconnect()
        house.gate.set()
    assert house.ends == ["draining"]


# ---- nobody new


async def test_those_who_are_still_connected_are_served_but_cannot_join_anything_more(
    virtual_clock: MockClock,
) -> None:
    house = House(Drain(batch_size=1, interval_seconds=30.0, timeout_seconds=600.0))
    async with (
        anyio.create_task_group() as tasks,
        connect(house.channels, timeout=100.0, name="ann") as ann,
        connect(house.channels, timeout=100.0, name="bob") as bob,
    ):
        for client in (ann, bob):
            await client.join("room:a")
        tasks.start_soon(house.channels.drain)
        await until(lambda: len(house.ends) == 1)
        last = bob if house.gone == ["ann"] else ann
        last.send("1", "8", "room:a", "echo", {"body": "hi"})
        assert await last.reply("8") == Reply("ok", {"body": "hi"})
        with pytest.raises(JoinRefused) as refused:
            await last.join("room:b")
        assert refused.value.reply == Reply("error", {"reason": "restarting"})
        assert house.channels.statistics().counts == {"join_while_draining": 1}
        assert await goodbye(last) == f"1012 {AT_ONCE}"


async def test_new_clients_are_refused_until_the_lifespan_begins_anew(house: House) -> None:
    async with house.channels.lifespan():
        await house.channels.drain()
        with pytest.raises(HandshakeRefused) as refused:
            async with connect(house.channels):
                pass
        assert refused.value.status == 503
    async with house.channels.lifespan(), connect(house.channels) as client:
        assert await client.heartbeat() == Reply("ok", {})


async def test_a_client_that_connect_is_still_thinking_about_is_refused(house: House) -> None:
    async with anyio.create_task_group() as tasks:

        async def come() -> None:
            with pytest.raises(HandshakeRefused) as refused:
                async with connect(house.channels, wait="yes"):
                    pass
            assert refused.value.status == 503

        tasks.start_soon(come)
        await until(lambda: house.busy == 1)
        await house.channels.drain()
        house.door.set()


async def test_the_second_to_ask_waits_for_the_end_as_well(house: House) -> None:
    done: list[str] = []

    async def drain() -> None:
        await house.channels.drain()
        done.append("drained")

    async with connect(house.channels) as client, anyio.create_task_group() as tasks:
        room = await client.join("room:a")
        room.send("work")
        await until(lambda: house.busy == 1)
        for _ in range(2):
            tasks.start_soon(drain)
        await anyio.wait_all_tasks_blocked()
        assert not done
        house.gate.set()
    assert done == ["drained"] * 2


async def test_without_clients_it_takes_no_time(house: House, virtual_clock: MockClock) -> None:
    began = virtual_clock.current_time()
    await house.channels.drain()
    assert virtual_clock.current_time() == began


async def test_a_lifespan_that_ends_in_the_middle_of_it_lets_the_rest_go_at_once(virtual_clock: MockClock) -> None:
    house = House(Drain(batch_size=1, interval_seconds=60.0, timeout_seconds=600.0))
    them = Crowd(house, virtual_clock)
    async with anyio.create_task_group() as tasks, house.channels.lifespan():
        await them.come(tasks, 3)
        tasks.start_soon(house.channels.drain)
        await until(lambda: len(them.goodbyes) == 1)
    assert them.goodbyes == [(0.0, f"1012 {AT_ONCE}")] * 3


# ---- load balancers


async def test_readiness_turns_to_503(house: House) -> None:
    site = Starlette(routes=[Route("/ready", house.channels.ready), Mount("/socket", app=house.channels)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(site), base_url="http://testserver") as http:
        answer = await http.get("/ready")
        assert (answer.status_code, answer.text) == (200, "ready")
        await house.channels.drain()
        answer = await http.get("/ready")
        assert (answer.status_code, answer.text) == (503, "draining")
        assert (answer.headers["retry-after"], answer.headers["cache-control"]) == ("1", "no-store")


# ---- long-polling


async def test_a_poll_that_waits_is_answered_at_once_and_then_nobody_is_let_in(
    house: House, virtual_clock: MockClock
) -> None:
    poller = await Poller(house.channels).open()
    await poller.join("room:a")
    async with anyio.create_task_group() as tasks:
        waiting = poller.polling()
        tasks.start_soon(waiting)
        await anyio.wait_all_tasks_blocked()
        began = virtual_clock.current_time()
        await house.channels.drain()
        await until(lambda: waiting.complete)
        assert waiting.json["status"] == 410
        assert virtual_clock.current_time() == began
    refused = await poller.poll()
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert await poller.post(BEAT) == 410
    assert house.ends == ["draining"]


async def test_a_session_whose_client_has_not_fetched_its_answer_waits_for_that_a_moment(house: House) -> None:
    poller = await Poller(house.channels).open()
    await poller.join("room:a")
    async with anyio.create_task_group() as tasks:
        assert await poller.post(["1", "2", "room:a", "work", {"number": 1}]) == 200
        await until(lambda: house.busy == 1)
        tasks.start_soon(house.channels.drain)
        house.gate.set()
        await anyio.wait_all_tasks_blocked()
        (reply,) = (await poller.poll()).frames
        assert reply[4] == {"status": "ok", "response": {"number": 1}}


async def test_a_session_whose_client_does_not_come_ends_all_the_same(house: House, virtual_clock: MockClock) -> None:
    poller = await Poller(house.channels).open()
    assert await poller.post(["1", "1", "room:a", "phx_join", {}]) == 200
    began = virtual_clock.current_time()
    await house.channels.drain()
    assert virtual_clock.current_time() - began == pytest.approx(1.0)
    assert house.ends == ["draining"]
