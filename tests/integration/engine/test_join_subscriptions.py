"""The ok of a join: what other processes broadcast on the topic from then on arrives, or is reported."""

import contextlib
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Generator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from starlette_channels import Broadcast, Broker, Channels, Gap, JoinError, Limits, Socket, channel
from starlette_channels.pubsub.confirmations import BATCH, TIMEOUT_CODE
from starlette_channels.pubsub.engines.redis import RedisEngine
from starlette_channels.pubsub.hub import Hub
from starlette_channels.testing import Joined, JoinRefused, connect
from tests.conftest import OK, error
from tests.support.engines import ENGINES, EngineServer, engine

pytestmark = pytest.mark.anyio

ROUNDS = 60
PATIENCE = 15.0


@pytest.fixture(scope="module", params=[*ENGINES, "peers"])
def url(request: pytest.FixtureRequest) -> Generator[str]:
    """The address of each engine; `zenoh://` needs no server."""
    if request.param == "peers":
        with tempfile.TemporaryDirectory(prefix="mesh-") as folder, pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", folder)
            yield "zenoh://"
        return
    with engine(request.param) as running:
        yield running.url


@pytest.fixture(scope="module")
def redis() -> Generator[EngineServer]:
    with engine("redis") as running:
        yield running


class House:
    """What one process has: rooms, and desks that also listen to a topic of their own, `news:...`."""

    def __init__(self, url: str, limits: Limits | None = None) -> None:
        self.during: Callable[[str], object] = lambda topic: None
        self.gaps: list[Gap] = []

        @channel("room:*", resync="resync")
        async def room(socket: Socket, payload: dict[str, Any]) -> dict[str, Any]:
            if payload.get("admit"):
                await socket.admit()
            self.during(socket.topic)
            if payload.get("refuse"):
                raise JoinError("no")
            return {}

        @channel("desk:*")
        async def desk(socket: Socket, payload: Any) -> None:
            socket.subscribe(f"news:{socket.subtopic}")

        @desk.info(Broadcast)
        async def heard(socket: Socket, message: Broadcast) -> None:
            socket.push("heard", message.payload)

        @desk.info(Gap)
        async def missed(socket: Socket, gap: Gap) -> None:
            self.gaps.append(gap)

        self.broker = Broker(url)
        self.channels = Channels([room, desk], broker=self.broker, limits=limits or Limits(join_rate=None))

    @property
    def timeouts(self) -> int:
        return self.channels.statistics().counts.get(TIMEOUT_CODE, 0)


@contextlib.asynccontextmanager
async def houses(url: str, number: int = 2, limits: Limits | None = None) -> AsyncGenerator[list[House]]:
    """Processes that know each other only over the engine, and are connected to it."""
    those = [House(url, limits) for _ in range(number)]
    async with contextlib.AsyncExitStack() as stack:
        for house in those:
            await stack.enter_async_context(house.channels.lifespan())
        await until(lambda: all(house.broker.is_connected for house in those))
        yield those


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in the thread of a relay."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is no event for it in this event loop
            await anyio.sleep(0.005)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_another_process_broadcasts_right_after_the_ok_arrives(url: str) -> None:
    async with houses(url) as (here, there), connect(here.channels, timeout=PATIENCE) as client:
        joined: list[Joined] = []
        for number in range(ROUNDS):
            joined.append(await client.join(f"room:{number}"))
            there.channels.broadcast(f"room:{number}", "news", {"n": number})
        for number, one in enumerate(joined):
            assert await one.receive("news") == {"n": number}
        assert here.timeouts == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_so_does_what_it_broadcasts_on_a_topic_that_the_join_has_subscribed_to(url: str) -> None:
    async with houses(url) as (here, there), connect(here.channels, timeout=PATIENCE) as client:
        joined: list[Joined] = []
        for number in range(ROUNDS):
            joined.append(await client.join(f"desk:{number}"))
            there.channels.broadcast(f"news:{number}", "news", {"n": number})
        for number, one in enumerate(joined):
            assert await one.receive("heard") == {"n": number}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_it_broadcasts_while_an_admitted_join_reads_follows_the_ok(url: str) -> None:
    async with houses(url) as (here, there), connect(here.channels, timeout=PATIENCE) as client:
        here.during = lambda topic: there.channels.broadcast(topic, "news", {"topic": topic})
        joined = [await client.join(f"room:{number}", {"admit": True}) for number in range(ROUNDS)]
        for one in joined:
            assert await one.receive("news") == {"topic": one.topic}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_clients_that_leave_and_come_back_at_any_time_miss_nothing_after_their_ok(url: str) -> None:
    async with houses(url) as (here, there), connect(here.channels, timeout=PATIENCE) as client:
        for pause in (0.0, 0.0, 1.99, 2.0, 2.01, 2.3):
            joined = await client.join("room:a")
            there.channels.broadcast("room:a", "news", {})
            assert await joined.receive("news") == {}
            await joined.leave()
            await anyio.sleep(pause)  # the engine is told that nobody is there after two seconds


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_refused_join_leaves_no_subscription_behind(url: str) -> None:
    async with houses(url, 1) as (here,), connect(here.channels, timeout=PATIENCE) as client:
        with pytest.raises(JoinRefused):
            await client.join("room:a", {"admit": True, "refuse": True})
        assert here.channels.statistics().topics == 0


async def test_it_is_so_on_every_event_loop_and_in_several_at_once(redis: EngineServer) -> None:
    async with houses(redis.url) as (here, there), connect(here.channels, timeout=PATIENCE) as client:
        heard: list[Any] = []

        async def elsewhere() -> None:
            async with connect(here.channels, timeout=PATIENCE) as other:
                for number in range(20):
                    joined = await other.join(f"room:{number}")
                    there.channels.broadcast(f"room:{number}", "elsewhere", {"n": number})
                    heard.append(await joined.receive("elsewhere"))

        thread = threading.Thread(target=anyio.run, args=(elsewhere,))
        thread.start()
        for number in range(20):
            joined = await client.join(f"room:{number}")
            there.channels.broadcast(f"room:{number}", "here", {"n": number})
            assert await joined.receive("here") == {"n": number}
        await anyio.to_thread.run_sync(thread.join)
        assert heard == [{"n": number} for number in range(20)]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_an_engine_that_hangs_holds_up_new_topics_for_two_seconds_and_others_not_at_all(
    redis: EngineServer,
) -> None:
    async with (
        houses(redis.url) as (here, there),
        connect(here.channels, timeout=PATIENCE) as client,
        connect(here.channels, timeout=PATIENCE) as other,
    ):
        warm = await client.join("room:warm")
        with redis.paused():
            with anyio.fail_after(1):
                await other.join("room:warm", {"admit": True})
            assert here.timeouts == 0
            began = time.monotonic()
            cold = await client.join("room:cold")
            assert 1.9 < time.monotonic() - began < 4
            assert here.timeouts == 1
            here.channels.broadcast("room:cold", "local", {})
            assert await cold.receive("local") == {}
        assert await cold.receive("resync") == {"lost": 0}
        there.channels.broadcast("room:cold", "news", {})
        assert await cold.receive("news") == {}
        assert await warm.received_nothing("resync")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("seconds", [0.3, 1.3])
async def test_joins_that_wait_for_a_slow_engine_are_all_answered_and_hold_up_nobody_else(
    seconds: float, redis: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowEngine(RedisEngine):
        async def subscribe(self, channels: Collection[str]) -> None:
            await anyio.sleep(seconds)
            await super().subscribe(channels)

    monkeypatch.setattr("starlette_channels.pubsub.engines.redis.RedisEngine", SlowEngine)
    topics = [f"room:{number}" for number in range(20)]
    async with (
        houses(redis.url) as (here, there),
        connect(here.channels, timeout=PATIENCE) as client,
        connect(here.channels, timeout=PATIENCE) as other,
    ):
        warm = await other.join("room:warm")
        there.channels.broadcast("room:warm", "news", {})
        assert await warm.receive("news") == {}
        answered: list[str] = []

        async def join_all() -> None:
            for topic in topics:
                client.send(topic, topic, topic, "phx_join", {"admit": True})
            while len(answered) < len(topics):
                came = await client.receive(lambda one: one.event == "phx_reply")
                assert came.payload == OK
                answered.append(came.topic)

        meanwhile = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(join_all)
            while not answered:
                await other.heartbeat()
                here.channels.broadcast("room:warm", "local", {"n": meanwhile})
                assert await warm.receive("local") == {"n": meanwhile}
                meanwhile += 1
        assert sorted(answered) == sorted(topics)
        assert meanwhile > 0
        # If a join was answered before its topic was in force, the client is told that it has lost something.
        heard: list[tuple[str, Any]] = [("news", {}), ("resync", {"lost": 1})]
        for topic in topics:
            there.channels.broadcast(topic, "news", {})
            await client.receive(lambda one, topic=topic: one.topic == topic and (one.event, one.payload) in heard)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_joins_while_the_engine_is_away_are_answered_counted_and_told_of_a_gap_when_it_is_back() -> None:
    with engine("redis") as server:
        async with (
            houses(server.url) as (here, there),
            connect(here.channels, timeout=PATIENCE) as client,
            connect(here.channels, timeout=PATIENCE) as other,
            connect(here.channels, timeout=PATIENCE) as visitor,
        ):
            before = await client.join("room:a")
            server.kill()
            await until(lambda: not here.broker.is_connected)
            async with anyio.create_task_group() as tasks:  # a known topic is not in force either
                for join in (partial(other.join, "room:a", {"admit": True}), partial(client.join, "desk:a")):
                    tasks.start_soon(join)
                with pytest.raises(JoinRefused):
                    await visitor.join("room:a", {"admit": True, "refuse": True})
            assert here.timeouts == 4  # the desk has two topics
            server.start()
            resync = await other.receive(lambda one: one.event == "resync")
            assert (resync.topic, resync.payload) == ("room:a", {"lost": 0})
            await until(lambda: len(here.gaps) == 2)
            assert sorted(here.gaps, key=lambda gap: gap.topic) == [Gap("desk:a", 0, ""), Gap("news:a", 0, "")]
            there.channels.broadcast("room:a", "news", {})
            assert await before.receive("news") == {}
            joined = await other.join("room:b")
            there.channels.broadcast("room:b", "news", {})
            assert await joined.receive("news") == {}
            assert here.timeouts == 4
            assert await visitor.received_nothing()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_join_that_waits_for_the_engine_holds_what_is_broadcast_meanwhile_and_gives_up_before_its_time_is_over(
    redis: EngineServer,
) -> None:
    limits = Limits(handler_seconds=1.0, outbox_bytes=1_000)
    async with houses(redis.url, 1, limits) as (here,), connect(here.channels, timeout=PATIENCE) as client:
        with redis.paused():
            client.send("1", "1", "room:a", "phx_join", {"admit": True})
            await until(lambda: here.channels.statistics().topics == 1)
            here.channels.broadcast("room:a", "local", {"n": 1})
            assert (await client.receive()).event == "phx_reply"
            assert (await client.receive()).payload == {"n": 1}
            client.send("2", "2", "room:b", "phx_join", {})
            await until(lambda: here.channels.statistics().topics == 2)
            for _ in range(100):
                here.channels.broadcast("room:b", "local", {"filler": "x" * 50})
            assert (await client.receive()).payload == error("join overflow")
            assert here.channels.statistics().topics == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_ten_thousand_new_topics_at_once_are_a_few_batches(
    redis: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 10_000
    async with houses(redis.url) as (here, there):
        hub, calls = here.broker.hub(), 0
        run_later = Hub.run_later

        def counted(self: Hub, function: Callable[..., Any], *args: Any) -> bool:
            nonlocal calls
            calls += self is hub
            return run_later(self, function, *args)

        class Member:
            def __init__(self) -> None:
                self.heard = 0

            def deliver(self, publication: Any) -> None:
                self.heard += 1

            def miss(self, gap: Gap) -> None:
                raise AssertionError(gap)

        members = {f"room:{number}": Member() for number in range(number)}
        monkeypatch.setattr(Hub, "run_later", counted)

        async def join(topic: str) -> None:
            assert hub.confirmations is not None
            hub.subscribe(topic, members[topic])
            await hub.confirmations.wait([topic], members[topic], PATIENCE)
            assert hub.hears(topic)

        async with anyio.create_task_group() as tasks:
            for topic in members:
                tasks.start_soon(join, topic)
        assert calls < 4 * number / BATCH
        for topic in members:
            there.channels.broadcast(topic, "news", {})
        await until(lambda: all(member.heard for member in members.values()))


async def test_with_memory_there_is_nothing_to_wait_for() -> None:
    house = House("memory://")
    async with house.channels.lifespan(), connect(house.channels) as client:
        joined = await client.join("desk:a")
        house.channels.broadcast("news:a", "news", {"n": 1})
        assert await joined.receive("heard") == {"n": 1}
        assert house.broker.hub().confirmations is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_application_whose_broker_was_closed_connects_again(redis: EngineServer) -> None:
    house = House(redis.url)
    for _ in range(2):
        async with (
            houses(redis.url, 1) as (there,),
            house.channels.lifespan(),
            connect(house.channels, timeout=PATIENCE) as client,
        ):
            joined = await client.join("room:a")
            there.channels.broadcast("room:a", "news", {})
            assert await joined.receive("news") == {}
    assert house.timeouts == 0
