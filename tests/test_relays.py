"""Relays on real engines: what one process broadcasts, the others get, in order, once, and nothing else."""

from collections.abc import Generator

import anyio.lowlevel
import pytest

from starlette_channels.broker import Broker
from tests.engines import ENGINES, EngineServer, engine
from tests.relaying import Ear, brokers

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=list(ENGINES))
def server(request: pytest.FixtureRequest) -> Generator[EngineServer]:
    with engine(request.param) as running:
        yield running


async def test_a_broadcast_reaches_the_subscribers_of_other_processes_once_and_in_order(server: EngineServer) -> None:
    async with brokers(server.url, 3) as (one, two, three):
        ears = [Ear(broker, "room:a") for broker in (one, two, three)]
        stranger = Ear(three, "room:b")
        for ear in ears[1:]:
            await ear.hears(one)
        for number in range(2_000):
            one.broadcast("room:a", "e", {"n": number})
        for ear in ears:
            await ear.until(lambda ear=ear: len(ear.numbers) >= 2_000)
        assert [ear.numbers for ear in ears] == [list(range(2_000))] * 3
        assert [ear.gaps for ear in ears] == [[]] * 3
        assert stranger.heard == []


async def test_all_that_a_topic_may_contain_arrives_where_it_is_meant(server: EngineServer) -> None:
    topics = [
        "*",
        ">",
        "a.b",
        "a.*",
        "room:é 漢字 🙂",
        "line\nbreak\r\n",
        " ",
        "x" * 3_000,
        "$SYS",
        "_INBOX.>",
        "a/b//c",
    ]
    async with brokers(server.url) as (one, two):
        ears = [Ear(two, topic) for topic in topics]
        for ear in ears:
            await ear.hears(one)
        for number, topic in enumerate(topics):
            one.broadcast(topic, f"event {topic[:9]}", {"n": number})
        for number, ear in enumerate(ears):
            await ear.until(lambda ear=ear: bool(ear.numbers))
            assert ear.numbers == [number]
            assert ear.heard[-1].topic == topics[number]
            assert ear.heard[-1].event == f"event {topics[number][:9]}"


async def test_payloads_arrive_as_they_were_encoded(server: EngineServer) -> None:
    async with brokers(server.url) as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        before = len(ear.heard)
        one.broadcast("t", "json", {"b": 1, "a": [1.0, None, "é"]})
        one.broadcast("t", "bytes", b"\x00\xff" * 100_000)
        await ear.until(lambda: len(ear.heard) == before + 2)
        assert bytes(ear.heard[-2].body) == '{"b":1,"a":[1.0,null,"é"]}'.encode()
        assert ear.heard[-1].body == b"\x00\xff" * 100_000


async def test_a_line_of_the_librarys_own_reaches_all_other_processes(server: EngineServer) -> None:
    async with brokers(server.url, 3) as (one, two, three):
        got: list[tuple[str, bytes]] = []
        lines = [
            broker.exchange("presence", lambda data, name=name: got.append((name, data)))
            for name, broker in zip("123", (one, two, three), strict=True)
        ]
        ear = Ear(two, "t"), Ear(three, "t")
        for one_ear in ear:
            await one_ear.hears(one)
        lines[0].send(b"\xff")
        one.broadcast("t", "e", {"n": 1})
        for one_ear in ear:
            await one_ear.until(lambda one_ear=one_ear: bool(one_ear.numbers))
        assert sorted(got) == [("2", b"\xff"), ("3", b"\xff")]
        assert len({one.node, two.node, three.node}) == 3


async def test_a_goodbye_leaves_before_a_broker_is_closed(server: EngineServer) -> None:
    async with brokers(server.url) as (one, two):
        got: list[bytes] = []
        two.exchange("presence", got.append)
        line = one.exchange("presence", got.append, stopping=lambda: line.send(b"goodbye"))
        ear = Ear(two, "t")
        await ear.hears(one)
        await one.close()
        two.broadcast("t", "e", {})
        other = Broker(server.url)
        await ear.hears(other)
        await other.close()
        assert got == [b"goodbye"]


async def test_what_an_engine_loses_when_it_dies_is_what_is_reported(server: EngineServer) -> None:
    async with brokers(server.url) as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        for number in range(3_000):
            if number == 1_000:
                server.restart()
            one.broadcast("t", "e", {"n": number})
            if number % 50 == 0:
                await anyio.lowlevel.checkpoint()
        await ear.until(lambda: len(ear.numbers) + ear.lost >= 3_000)
        assert ear.numbers == sorted(set(ear.numbers))
        assert len(ear.numbers) + ear.lost == 3_000
