"""With `resync`, the clients of a topic are told that broadcasts are lost, without a handler."""

from collections.abc import AsyncGenerator, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from starlette_channels import Broker, Channels, Gap, Socket, channel
from starlette_channels.testing import connect
from tests.integration.engine.test_gap_handlers import Process
from tests.support.engines import EngineServer, engine
from tests.support.relaying import PATIENCE, Ear, brokers

pytestmark = pytest.mark.anyio


@channel("room:*", resync="reload")
async def room(socket: Socket, payload: Any) -> None:
    socket.subscribe("news")


@channel("plain:*")
async def plain(socket: Socket, payload: Any) -> None:
    """Do without."""


@pytest.fixture(scope="module")
def server() -> Generator[EngineServer]:
    with engine("redis") as running:
        yield running


@pytest.fixture
def process(server: EngineServer) -> Generator[Process]:
    one = Process(server)
    yield one
    one.close()


@pytest.fixture
async def channels(server: EngineServer) -> AsyncGenerator[Channels[Any]]:
    those = Channels([room, plain], broker=server.url)
    async with those.lifespan():
        yield those


async def test_each_client_of_the_topic_is_told_once_for_each_gap_and_nobody_else_is(
    channels: Channels[Any], process: Process
) -> None:
    async with connect(channels) as ann, connect(channels) as bob:
        told = [await client.join("room:a") for client in (ann, bob)]
        others = [await ann.join("room:b"), await bob.join("plain:a")]
        for topic in ("room:a", "plain:a"):
            await process.publish(topic)
        for lost in (3, 2):
            for topic in ("room:a", "plain:a"):
                await process.publish(topic, lose=lost)
            for joined in told:
                assert await joined.receive("reload") == {"lost": lost}
        for joined in (*told, others[1]):
            assert [await joined.receive("told") for _ in range(3)] == [{"n": 1}, {"n": 5}, {"n": 8}]
        for joined in (*told, *others):
            assert await joined.received_nothing()


async def test_a_gap_in_what_a_handler_subscribed_to_is_one_for_the_client(
    channels: Channels[Any], process: Process
) -> None:
    async with connect(channels) as client:
        joined = await client.join("room:a")
        await process.publish("news")
        await process.publish("news", lose=1)
        assert await joined.receive("reload") == {"lost": 1}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_clients_hear_what_was_lost_while_the_engine_was_away() -> None:
    with engine("redis") as server:
        app = Broker(server.url)
        channels = Channels([room], broker=app)
        async with (
            brokers(f"{server.url}?buffer_seconds=0.1", 1) as (other,),
            channels.lifespan(),
            connect(channels, timeout=PATIENCE) as client,
        ):
            await client.join("room:a")
            await Ear(app, "room:a").hears(other)  # until then, some of what was tried may have been lost
            server.kill()
            for number in range(7):
                other.broadcast("room:a", "told", {"n": number})
            with anyio.fail_after(PATIENCE):
                while other.counts["relay_dropped"] < 7:
                    await anyio.lowlevel.checkpoint()
            server.start()
            await client.receive(lambda one: (one.event, one.payload) == ("reload", {"lost": 7}))


@pytest.mark.parametrize("resync", [True, "", "phx_reload", b"reload"])
def test_what_is_no_name_of_an_event_is_an_error(resync: Any) -> None:
    with pytest.raises(TypeError, match=r"channel\(resync=...\): it must be the name of an event of yours"):
        channel("room:*", resync=resync)


def test_a_channel_has_either_the_event_or_a_handler() -> None:
    async def lost(socket: Socket, gap: Gap) -> None: ...

    with pytest.raises(ValueError, match=r"room.info\('Gap'\): there is a handler for it already"):
        room.info(Gap)(lost)
