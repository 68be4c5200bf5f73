"""Relays on real engines: what one process broadcasts, the others get, in order, once, and nothing else."""

import anyio.lowlevel
import pytest

from tests.support.engines import EngineServer
from tests.support.relaying import Ear, Phone, brokers

pytestmark = pytest.mark.anyio


async def test_a_broadcast_reaches_the_subscribers_of_other_processes_once_and_in_order(
    engine_server: EngineServer,
) -> None:
    async with brokers(engine_server.url, 3) as (one, two, three):
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


async def test_all_that_a_topic_may_contain_arrives_where_it_is_meant(engine_server: EngineServer) -> None:
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
    async with brokers(engine_server.url) as (one, two):
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


async def test_payloads_arrive_as_they_were_encoded(engine_server: EngineServer) -> None:
    async with brokers(engine_server.url) as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        one.broadcast("t", "json", {"b": 1, "a": [1.0, None, "é"]})
        one.broadcast("t", "bytes", b"\x00\xff" * 100_000)
        await ear.until(lambda: ear.heard[-1].event == "bytes")
        assert bytes(ear.heard[-2].body) == '{"b":1,"a":[1.0,null,"é"]}'.encode()
        assert ear.heard[-1].body == b"\x00\xff" * 100_000


async def test_a_line_of_the_librarys_own_reaches_all_other_processes_and_never_its_own(
    engine_server: EngineServer,
) -> None:
    async with brokers(engine_server.url, 3) as those:
        one, two, three = [Phone(broker) for broker in those]
        other_name = Phone(those[1], "other")
        for phone in (two, three):
            await phone.hears(one, b"hello")
        one.line.send(b"\xff")
        for phone in (two, three):
            await phone.until_heard(b"\xff")
            assert phone.heard[-1] == b"\xff"
        assert one.heard == other_name.heard == []
        assert len({broker.node for broker in those}) == 3
        assert sum(those[1].counts.values()) == 0


async def test_an_end_of_a_line_that_is_closed_hears_nothing_and_says_nothing(engine_server: EngineServer) -> None:
    async with brokers(engine_server.url) as those:
        one, two = [Phone(broker) for broker in those]
        await two.hears(one, b"hello")
        await one.hears(two, b"hello")
        one.line.close()
        one.line.close()
        one.line.send(b"not heard")
        two.line.send(b"not heard either")
        again = Phone(those[0])
        await two.hears(again, b"again")
        await again.hears(two, b"again")
        assert b"not heard" not in two.heard
        assert b"not heard either" not in one.heard


async def test_a_goodbye_leaves_before_a_broker_is_closed_and_a_new_life_has_a_new_id(
    engine_server: EngineServer,
) -> None:
    async with brokers(engine_server.url) as those:
        one, two = [Phone(broker) for broker in those]
        await two.hears(one, b"hello")
        before = those[0].node
        await those[0].close()
        await two.until_heard(b"goodbye")
        assert those[0].node != before
        await two.hears(one, b"back again")


async def test_what_an_engine_loses_when_it_dies_is_what_is_reported(engine_server: EngineServer) -> None:
    async with brokers(engine_server.url) as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        for number in range(3_000):
            if number == 1_000:
                engine_server.restart()
            one.broadcast("t", "e", {"n": number})
            if number % 50 == 0:
                await anyio.lowlevel.checkpoint()
        await ear.until(lambda: len(ear.numbers) + ear.lost >= 3_000)
        assert ear.numbers == sorted(set(ear.numbers))
        assert len(ear.numbers) + ear.lost == 3_000
