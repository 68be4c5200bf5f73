"""`channels.ready` is 503 until the engine is connected and Presence has heard from the other processes."""

import contextlib
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from starlette_channels import Broker, Channels, Presence, PresenceTiming
from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Meta
from starlette_channels.presence.tracker import Outgoing, Replica
from starlette_channels.server.readiness import CODE, START_SECONDS, Readiness
from starlette_channels.testing import connect
from tests.support.engines import EngineServer, engine
from tests.support.ports import HOST, free_port
from tests.support.presence_lobby import Lobby

pytestmark = pytest.mark.anyio

QUICK = PresenceTiming(news_seconds=0.2, heartbeat_seconds=60.0, down_seconds=1000.0)
PATIENCE = 15.0


class Worker:
    """One process: its lobby, and what its load balancer asks."""

    def __init__(self, url: str, timing: PresenceTiming = QUICK) -> None:
        self.lobby = Lobby(Presence(timing=timing), Broker(url))
        self.lobby.channels = Channels([self.lobby.lobby], broker=self.lobby.broker, presence=self.lobby.presence)
        self.site = Starlette(
            routes=[Route("/ready", self.lobby.channels.ready), Mount("/socket", app=self.lobby.channels)],
            lifespan=self.lobby.channels.lifespan,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator["Worker"]:
        async with self.lobby.channels.lifespan():
            yield self

    async def ready(self) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.site), base_url="http://test") as http:
            return await http.get("/ready")

    async def until_ready(self) -> None:
        with anyio.fail_after(PATIENCE):
            while (answer := await self.ready()).status_code != 200:
                assert (answer.status_code, answer.text, answer.headers["retry-after"]) == (503, "starting", "1")
                await anyio.sleep(0.01)

    @property
    def counts(self) -> Mapping[str, int]:
        return self.lobby.channels.statistics().counts


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in the thread of a relay."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is no event for it in this event loop
            await anyio.sleep(0.01)


async def test_with_memory_a_process_is_ready_at_once_with_and_without_a_lifespan() -> None:
    worker = Worker("memory://")
    assert (await worker.ready()).status_code == 200
    async with worker.running():
        assert (await worker.ready()).text == "ready"
        await worker.lobby.channels.drain()
        assert (await worker.ready()).text == "draining"


async def test_a_process_that_is_ready_knows_who_is_on_the_topics_of_the_others(engine_server: EngineServer) -> None:
    old, older = Worker(engine_server.url), Worker(engine_server.url)
    async with (
        old.running(),
        older.running(),
        connect(old.site, "/socket") as ann,
        connect(older.site, "/socket") as ben,
    ):
        await ann.join("lobby:1", {"name": "ann"})
        await ben.join("lobby:1", {"name": "ben"})
        await old.until_ready()
        await older.until_ready()
        for _ in range(2):
            worker = Worker(engine_server.url)
            async with worker.running():
                assert (await worker.ready()).status_code == 503
                await worker.until_ready()
                assert worker.lobby.presence.count("lobby:1") == 2
                assert worker.counts.get(CODE, 0) == 0
                async with worker.running():  # as in a second event loop
                    assert (await worker.ready()).status_code == 200
            async with worker.running():  # its broker was closed meanwhile
                assert (await worker.ready()).status_code == 503


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_waits_for_an_engine_that_comes_later_and_not_for_one_that_goes_later() -> None:
    with engine("redis") as server:
        server.kill()
        worker = Worker(server.url)
        async with worker.running():
            assert (await worker.ready()).status_code == 503
            assert not worker.lobby.broker.is_connected
            server.start()
            await worker.until_ready()
            server.kill()
            await until(lambda: not worker.lobby.broker.is_connected)
            assert (await worker.ready()).status_code == 200


@pytest.fixture
def no_engine() -> str:
    """The address of an engine that never comes."""
    return f"redis://{HOST}:{free_port()}"


class Hands:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_it_waits_ten_seconds_for_an_engine_and_then_says_what_is_missing(
    no_engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker, counts, clock = Broker(no_engine), Counter[str](), Hands()
    readiness = Readiness(broker, [], counts, clock)
    readiness.begin()
    for now, ready in ((0.0, False), (START_SECONDS - 0.1, False), (START_SECONDS, True), (START_SECONDS + 1, True)):
        clock.now = now
        assert readiness.check() == ready
    assert counts == {CODE: 1}
    (record,) = [record for record in caplog.records if "Ready after" in record.message]
    assert record.message == "Ready after 10 seconds, although the engine between the processes is not connected"
    readiness.begin()  # an application that starts again
    assert not readiness.check()
    await broker.close()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_waits_ten_seconds_for_presence(caplog: pytest.LogCaptureFixture) -> None:
    slow = PresenceTiming(news_seconds=30.0, heartbeat_seconds=60.0, down_seconds=1000.0)
    with engine("redis") as server:
        broker, counts, clock = Broker(server.url), Counter[str](), Hands()
        readiness = Readiness(broker, [Presence(timing=slow)], counts, clock)
        assert not readiness.check()
        await until(lambda: broker.is_connected)
        assert not readiness.check()
        clock.now = START_SECONDS
        assert readiness.check()
        assert counts == {CODE: 1}
        assert "Presence has not heard from all other processes" in caplog.text
        await broker.close()


# How a replica knows that it has heard from all: told the time, without an engine.


@given(st.integers(0, 10_000), st.integers(0, 5), st.booleans())
def test_a_replica_that_has_settled_knows_what_all_others_know(seed: int, others: int, lossy: bool) -> None:
    """Whatever the phases of their ticks, and the time that messages take; a lossy network only makes it later."""
    chance = random.Random(seed)
    timing = PresenceTiming()
    tick = timing.news_seconds
    new = Replica(ReplicaId("new", 1), timing)
    old = [Replica(ReplicaId(f"old {number}", 1), timing) for number in range(others)]
    for number, replica in enumerate(old):
        replica.record(replica.state.add("t", 1, f"key {number}", Meta(f"ref {number}", "{}")))
    by_id = {replica.state.me: replica for replica in (new, *old)}
    ticks = {replica.state.me: chance.uniform(0, tick) for replica in old}
    letters: list[tuple[float, int, ReplicaId, Any]] = []
    number, now, started = 0, 0.0, 20.0
    ticks[new.state.me] = started + chance.uniform(0, tick / 4)

    def send(sender: Replica, outgoing: list[Outgoing]) -> None:
        nonlocal number
        for one in outgoing:
            for hearer in by_id if one.to is None else (one.to,):
                if hearer == sender.state.me or (hearer == new.state.me and now < started):
                    continue
                if lossy and one.to is not None and chance.random() < 0.2:
                    continue  # requests and transfers; what is lost for all is another matter
                number += 1
                letters.append((now + chance.uniform(0.0, tick / 4), number, hearer, one.message))

    settled_at = None
    while now < started + 60.0 and settled_at is None:
        due = min(ticks, key=lambda replica: ticks[replica])
        letter = min(letters, default=None)
        if letter is not None and letter[0] <= ticks[due]:
            letters.remove(letter)
            now, _, hearer, message = letter
            send(by_id[hearer], by_id[hearer].receive(message, now).outgoing)
        else:
            now = ticks[due]
            ticks[due] += tick
            send(by_id[due], by_id[due].tick(now).outgoing)
        if now >= started and new.settle(now, is_heard=True):
            settled_at = now
    assert settled_at is not None
    assert len(new.state.roster.on("t")) == others
    assert lossy or settled_at - started < 4 * tick


def test_a_replica_does_not_settle_before_it_is_heard_and_has_spoken() -> None:
    timing = PresenceTiming()
    one = Replica(ReplicaId("one", 1), timing)
    assert not one.settle(0.0, is_heard=True)  # it has not said that it is there
    one.tick(1.0)
    for now in (1.0, 5.0, 9.0):
        assert not one.settle(now, is_heard=False)
    assert not one.settle(10.0, is_heard=True)
    assert not one.settle(11.0, is_heard=True)
    assert one.settle(13.0, is_heard=True)
    assert one.settle(14.0, is_heard=False)  # once it has
