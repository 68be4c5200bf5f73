"""Sessions of long-poll clients: how long a poll waits, who gets what, and how a session ends."""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest
from trio.testing import MockClock

from starlette_channels import Channels, Handshake, Limits, LongPoll, Socket, channel, latest_by_key
from starlette_channels.transports.longpoll.sessions import Sessions
from tests.conftest import until
from tests.support.polling import BEAT, BEATEN, Exchange, Poller

pytestmark = pytest.mark.anyio


class House:
    """Channels of users with names, and a note of how their channels ended."""

    def __init__(self, longpoll: LongPoll | bool = True, **limits: Any) -> None:
        self.ends: list[str] = []
        self.ended = anyio.Event()
        self.waits = 0
        self.gate = anyio.Event()

        async def enter(conn: Handshake) -> dict[str, Any]:
            return dict(conn.params)

        def socket_id(assigns: dict[str, Any]) -> str:
            return f"user:{assigns.get('user')}"

        @channel("room:*")
        async def room(socket: Socket[dict[str, Any]], payload: Any) -> None:
            pass

        @room.on("flood")
        async def flood(socket: Socket[dict[str, Any]], payload: dict[str, int]) -> None:
            for n in range(payload["messages"]):
                socket.push("flood", {"n": n, "text": "x" * payload["size"]})

        @room.on("wait")
        async def wait(socket: Socket[dict[str, Any]], payload: Any) -> None:
            self.waits += 1
            await self.gate.wait()

        @room.terminate
        async def terminate(socket: Socket[dict[str, Any]], reason: str) -> None:
            self.ends.append(reason)
            self.ended.set()

        self.channels: Channels[Any] = Channels(
            [room], connect=enter, socket_id=socket_id, longpoll=longpoll, limits=Limits(**limits)
        )

    async def client(self, **params: str) -> Poller:
        """A client that has joined the room room:a."""
        client = await Poller(self.channels, **params).open()
        await client.join("room:a")
        return client

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.channels.statistics().counts)

    @property
    def connections(self) -> int:
        return self.channels.statistics().connections


def beat(number: int) -> list[Any]:
    return [None, str(number), "phoenix", "heartbeat", {}]


def refs(exchange: Exchange) -> list[str]:
    return [frame[1] for frame in exchange.frames]


def gone(exchange: Exchange) -> Exchange:
    """The same request, whose client goes now."""
    exchange.gone.set()
    return exchange


# How long.


async def test_a_poll_with_nothing_to_fetch_waits_for_a_window(virtual_clock: MockClock) -> None:
    client = await House(LongPoll(window_seconds=7.0)).client()
    start = anyio.current_time()
    assert (await client.poll()).json == {"status": 204, "token": client.token, "messages": []}
    assert anyio.current_time() - start == pytest.approx(7.0)


async def test_a_poll_is_answered_as_soon_as_something_comes(virtual_clock: MockClock) -> None:
    house = House()
    client = await house.client()
    start = anyio.current_time()
    polling = client.polling()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(polling)
        await anyio.sleep(3.0)
        house.channels.broadcast("room:a", "news", {})
    assert polling.frames == [[None, None, "room:a", "news", {}]]
    assert anyio.current_time() - start == pytest.approx(3.0)


async def test_a_session_ends_when_its_client_stays_away_and_posts_do_not_keep_it(virtual_clock: MockClock) -> None:
    house = House()
    client = await house.client()
    start = anyio.current_time()
    for _ in range(3):
        await anyio.sleep(5.0)
        assert await client.post(BEAT) == 200
    with anyio.fail_after(5.0):
        await house.ended.wait()
    await anyio.wait_all_tasks_blocked()
    assert 15.0 < anyio.current_time() - start < 30.0
    assert house.ends == ["closed"]
    assert house.counts == {"session_expired": 1}
    assert house.connections == 0
    assert await client.post(BEAT) == 410
    old = client.token
    await client.open()  # a poll with the old token opens a new session
    assert client.token != old


async def test_a_session_lives_as_long_as_its_client_polls(virtual_clock: MockClock) -> None:
    house = House()
    client = await house.client()
    for _ in range(5):
        assert (await client.poll()).json["status"] == 204
        await anyio.sleep(14.9)
    assert await client.post(BEAT) == 200
    assert (await client.poll()).frames == [BEATEN]
    assert not house.counts


async def test_a_session_whose_client_never_polls_ends_too(virtual_clock: MockClock) -> None:
    house = House()
    for _ in range(100):
        await Poller(house.channels).open()
    assert house.connections == 100
    await anyio.sleep(30.0)
    assert house.connections == 0
    assert house.counts == {"session_expired": 100}


async def test_a_session_costs_one_task_and_leaves_none(count_tasks: Callable[[], int]) -> None:
    house = House()
    before = count_tasks()
    clients = [await house.client() for _ in range(10)]
    assert count_tasks() == before + 10
    async with house.channels.lifespan():
        pass
    await until(lambda: count_tasks() == before)
    assert [await client.post(BEAT) for client in clients] == [410] * 10


# Who gets what.


async def test_of_two_polls_the_newer_one_gets_the_messages(virtual_clock: MockClock) -> None:
    house = House()
    client = await house.client()
    first, second = client.polling(), client.polling()
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await anyio.sleep(4.0)
        tasks.start_soon(second)
        await anyio.sleep(1.0)
        await client.post(beat(1))
        await anyio.wait_all_tasks_blocked()
        assert refs(second) == ["1"]
        await client.post(beat(2))  # the older one has been given up, by its client or a proxy: not for it
    assert first.json["status"] == 204
    assert anyio.current_time() - start == pytest.approx(10.0)
    assert refs(await client.poll()) == ["2"]


async def test_a_poller_that_has_gone_gives_its_messages_to_the_next_one() -> None:
    client = await House().client()
    polling = client.polling()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(polling)
        await anyio.wait_all_tasks_blocked()
        polling.gone.set()
        await client.post(beat(1))
    assert refs(await client.poll()) == ["1"]


async def test_so_does_one_whose_request_the_server_cancels() -> None:
    client = await House().client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.polling())
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    await client.post(beat(1))
    assert refs(await client.poll()) == ["1"]


async def test_a_poller_that_goes_is_let_go_at_once(virtual_clock: MockClock) -> None:
    client = await House().client()
    start = anyio.current_time()
    await gone(client.polling())()
    assert anyio.current_time() == start


async def test_messages_whose_answer_cannot_be_sent_come_with_the_next_one_in_order() -> None:
    client = await House().client()
    await client.post(beat(1), beat(2))
    polling = client.polling()
    polling.broken = OSError("the connection is gone")
    await polling()
    await client.post(beat(3))
    assert refs(await client.poll()) == ["1", "2", "3"]


async def test_an_answer_that_is_not_read_holds_the_next_one_back_and_comes_again(virtual_clock: MockClock) -> None:
    house = House()
    client = await house.client()
    await client.post(beat(1))
    stalled, following = client.polling(), client.polling()
    stalled.reading = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stalled)
        await anyio.sleep(5.0)
        await client.post(beat(2))
        tasks.start_soon(following)
        await anyio.sleep(4.9)
        assert not following.complete  # it would get the second message before the first one
    assert not stalled.complete
    assert refs(following) == ["1", "2"]
    assert house.connections == 1


async def test_an_answer_that_is_read_in_the_end_lets_the_next_one_go_on(virtual_clock: MockClock) -> None:
    client = await House().client()
    await client.post(beat(1))
    slow, following = client.polling(), client.polling()
    slow.reading = anyio.Event()
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slow)
        await anyio.wait_all_tasks_blocked()
        await client.post(beat(2))
        tasks.start_soon(following)
        await anyio.wait_all_tasks_blocked()
        slow.reading.set()
    assert anyio.current_time() == start
    assert (refs(slow), refs(following)) == (["1"], ["2"])


# How it ends.


async def test_a_poll_that_waits_is_woken_when_its_session_is_disconnected(virtual_clock: MockClock) -> None:
    house = House()
    client, other = await house.client(user="ann"), await house.client(user="bob")
    polls = [client.polling(), client.polling()]
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for polling in polls:
            tasks.start_soon(polling)
        await anyio.wait_all_tasks_blocked()
        house.channels.disconnect("user:ann")
    assert anyio.current_time() == start
    for polling in polls:
        assert polling.json == {"status": 410, "token": client.token, "messages": []}
    assert house.ends == ["closed"]
    assert await client.post(BEAT) == 410
    assert await other.post(BEAT) == 200


async def test_what_was_sent_before_the_end_is_fetched_by_the_poll_that_waits() -> None:
    house = House()
    client = await house.client(user="ann")
    polling = client.polling()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(polling)
        await anyio.wait_all_tasks_blocked()
        house.channels.broadcast("room:a", "goodbye", {})
        house.channels.disconnect("user:ann")
    assert [frame[3] for frame in polling.frames] == ["goodbye"]
    await client.open()


async def test_the_end_of_the_application_ends_sessions() -> None:
    house = House()
    client = await house.client()
    polling = client.polling()
    async with anyio.create_task_group() as tasks, house.channels.lifespan():
        tasks.start_soon(polling)
        await anyio.wait_all_tasks_blocked()
    assert polling.json["status"] == 410
    assert house.ends == ["draining"]
    assert await client.post(BEAT) == 410


def test_an_event_loop_that_ends_takes_its_sessions_along(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for backend in ("asyncio", "trio"):
        ends: list[str] = []

        @channel("room:*")
        async def room(socket: Socket[Any], payload: Any) -> None:
            pass

        @room.terminate
        async def terminate(socket: Socket[Any], reason: str, ends: list[str] = ends) -> None:
            ends.append(reason)

        channels = Channels([room], longpoll=True, drain=False)

        async def main(channels: Channels[Any] = channels) -> Poller:
            client = await Poller(channels).open()
            await client.join("room:a")
            return client

        client = anyio.run(main, backend=backend)
        assert ends in (["closed"], ["shutdown"])
        assert channels.statistics().connections == 0
        assert anyio.run(client.post, BEAT, backend=backend) == 410
    assert not caplog.records


# Bounds.


async def test_the_session_of_a_client_that_does_not_come_for_what_waits_ends(virtual_clock: MockClock) -> None:
    house = House(outbox_bytes=10_000)
    client = await house.client()
    start = anyio.current_time()
    await client.post(["1", None, "room:a", "flood", {"messages": 20, "size": 1_000}])
    with anyio.fail_after(5.0):
        await house.ended.wait()
    await anyio.wait_all_tasks_blocked()
    assert anyio.current_time() - start == pytest.approx(1.0, abs=0.1)
    assert house.counts == {"slow_client": 1}
    assert house.connections == 0
    assert await client.post(BEAT) == 410


async def test_a_burst_is_no_harm_to_a_client_that_comes_for_it(virtual_clock: MockClock) -> None:
    house = House(outbox_bytes=10_000)
    client = await house.client()
    for _ in range(3):
        await client.post(["1", None, "room:a", "flood", {"messages": 20, "size": 1_000}])
        await anyio.sleep(0.9)
        assert len((await client.poll()).frames) == 20
    await anyio.sleep(5.0)
    assert not house.counts
    assert house.connections == 1


async def test_what_a_channel_lets_drop_is_dropped_for_a_client_that_does_not_come(virtual_clock: MockClock) -> None:
    @channel("ticker", when_slow="drop_oldest")
    async def ticker(socket: Socket[Any], payload: Any) -> None:
        pass

    channels = Channels([ticker], longpoll=True, limits=Limits(outbox_bytes=100_000))
    client = await Poller(channels).open()
    await client.join("ticker")
    for n in range(300):
        channels.broadcast("ticker", "tick", {"n": n, "text": "x" * 1_000})
    await anyio.sleep(5.0)
    numbers = [frame[4]["n"] for frame in (await client.poll()).frames]
    dropped = channels.statistics().counts["dropped_oldest"]
    assert (len(numbers), numbers[-1]) == (300 - dropped, 299)
    assert numbers == sorted(numbers)
    assert "slow_client" not in channels.statistics().counts
    channels.broadcast("ticker", "tick", {"n": 300})
    assert len((await client.poll()).frames) == 1


async def test_only_for_a_client_that_is_behind_the_newest_is_enough(virtual_clock: MockClock) -> None:
    @channel("price", when_slow=latest_by_key("of"))
    async def price(socket: Socket[Any], payload: Any) -> None:
        pass

    channels = Channels([price], longpoll=True)
    client = await Poller(channels).open()
    await client.join("price")
    for size in (100_000, 1, 1, 1):
        channels.broadcast("price", "now", {"of": "tea", "text": "x" * size})
    assert len((await client.poll()).frames) == 2  # the one that made it fall behind, and the newest
    for _ in range(3):
        channels.broadcast("price", "now", {"of": "tea"})
    assert len((await client.poll()).frames) == 3


async def test_an_answer_on_its_way_counts_as_waiting(virtual_clock: MockClock) -> None:
    house = House(outbox_bytes=10_000)
    client = await house.client()
    await client.post(["1", None, "room:a", "flood", {"messages": 9, "size": 1_000}])
    stalled = client.polling()
    stalled.reading = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stalled)
        await anyio.wait_all_tasks_blocked()
        await client.post(["1", None, "room:a", "flood", {"messages": 3, "size": 1_000}])
        await anyio.sleep(2.0)
        assert house.counts == {"slow_client": 1}
        stalled.reading.set()
    assert len(stalled.frames) == 9  # it was on its way
    assert await client.post(BEAT) == 410


async def test_a_client_that_sends_faster_than_its_handlers_work_is_told_408(virtual_clock: MockClock) -> None:
    house = House(backlog=4)
    client = await house.client()
    wait: list[Any] = ["1", None, "room:a", "wait", {}]
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.poll)  # which keeps the session
        assert await client.post(*[wait] * 10) == 408
    assert anyio.current_time() - start == pytest.approx(10.0)
    assert house.counts == {"handlers_behind": 1}
    house.gate.set()
    assert await client.post(*[wait] * 10) == 200


async def test_a_batch_that_waits_is_taken_when_the_handlers_have_caught_up(virtual_clock: MockClock) -> None:
    house = House(backlog=4)
    client = await house.client()
    wait: list[Any] = ["1", None, "room:a", "wait", {}]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.poll)
        tasks.start_soon(client.post, *[wait] * 10, BEAT)
        await anyio.sleep(5.0)
        house.gate.set()
    assert not house.counts


async def test_a_batch_that_waits_when_its_session_ends_is_told_410(virtual_clock: MockClock) -> None:
    house = House(backlog=4)
    client = await house.client(user="ann")
    posted: list[int] = []

    async def post() -> None:
        posted.append(await client.post(*[["1", None, "room:a", "wait", {}]] * 10))

    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(post)
        await anyio.wait_all_tasks_blocked()
        house.channels.disconnect("user:ann")
        house.gate.set()
        await house.ended.wait()
    assert posted == [410]
    assert 0 < house.waits < 10  # what had not been taken is not
    assert anyio.current_time() == start


async def test_a_body_that_does_not_come_is_given_up(virtual_clock: MockClock) -> None:
    house = House(idle_seconds=20.0)
    client = await house.client()
    request = client.request("POST", b"[null")
    request.unfinished = True
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(request)
        for _ in range(3):
            await client.poll()
    assert anyio.current_time() - start == pytest.approx(30.0)
    assert (request.status, json.loads(request.body)["reason"]) == (408, "the body has not come within 20 seconds")
    assert house.counts == {"body_timeout": 1}


# Several processes.


async def test_the_log_says_what_is_wrong_when_tokens_of_other_processes_come_and_is_not_filled_by_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, other = House(), House()
    client = await other.client()
    stray = Poller(one.channels)
    for _ in range(100):
        stray.token = client.token
        assert await stray.post(BEAT) == 410
    assert one.counts == {"foreign_session": 100}
    assert 1 <= caplog.text.count("several processes need sticky sessions") <= 20
    assert (client.token or "-") not in caplog.text


def test_only_a_process_that_runs_at_the_same_time_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    before = Sessions[object]().issue()
    now += 1.0
    here, beside = Sessions[object](), Sessions[object]()
    assert not here.is_foreign(before)  # it is of the server that ran before this one
    assert here.is_foreign(beside.issue())
    assert not here.is_foreign(here.issue())


@pytest.mark.parametrize("junk", [None, 5, "", "lp1", "lp1.x.y.z", f"lp1.{'0' * 16}.{'9' * 16}.{'x' * 43}", ["lp1"]])
def test_junk_is_no_token_of_another_process(junk: object) -> None:
    assert not Sessions[object]().is_foreign(junk)


async def test_a_session_of_another_event_loop_is_one_of_another_process() -> None:
    house = House()
    client = await house.client()

    def elsewhere() -> int:
        return anyio.run(client.post, BEAT)

    assert await anyio.to_thread.run_sync(elsewhere) == 410
    assert house.counts == {"foreign_session": 1}
    assert await client.post(BEAT) == 200
