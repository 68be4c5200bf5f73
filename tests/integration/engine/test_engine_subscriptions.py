"""What `subscribe` of an engine promises: once it has returned, everything that others publish is heard."""

import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Collection, Generator, Sequence

import anyio
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from starlette_channels.pubsub.engines import zenoh
from starlette_channels.pubsub.engines.base import Engine, Parcel
from starlette_channels.pubsub.engines.redis import RedisEngine
from starlette_channels.pubsub.engines.url import read_address
from starlette_channels.pubsub.engines.zenoh_keys import GROUPS, MAX_ALONE, key_of
from starlette_channels.pubsub.relay import session as life
from starlette_channels.pubsub.relay.channel_names import MAX_BYTES, MAX_TOKEN, as_short_bytes, as_token, topic_channel
from starlette_channels.pubsub.relay.relay import CLOSE_SECONDS
from tests.cluster.proxy import Network, Proxy
from tests.integration.engine.test_relay_faults import becomes_ready, listener
from tests.support.engines import ENGINES, EngineServer, engine
from tests.support.ports import HOST
from tests.support.relaying import PATIENCE, Ear, brokers

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override

# pyright: reportUnknownMemberType=false

pytestmark = pytest.mark.anyio

MESH = "zenoh://"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Where the processes of a mesh have their sockets."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.fixture(params=[*ENGINES, "mesh"])
def url(request: pytest.FixtureRequest, home: None) -> Generator[str]:
    if request.param == "mesh":
        yield MESH
        return
    with engine(request.param) as server:
        yield server.url


@pytest.fixture(scope="module")
def network() -> Generator[Network]:
    with contextlib.closing(Network()) as one:
        yield one


class End:
    """One engine, and what it has heard."""

    def __init__(self, url: str) -> None:
        address = read_address(url)
        assert address is not None
        self.engine: Engine = address.make()
        self.heard: list[bytes] = []
        self.errors: list[Exception] = []
        self._news = anyio.Event()

    def deliver(self, messages: Sequence[bytes]) -> None:
        self.heard += messages
        self._news.set()

    async def until_heard(self, number: int) -> None:
        with anyio.fail_after(PATIENCE):
            while len(self.heard) < number:
                self._news = anyio.Event()
                await self._news.wait()

    async def publish(self, channels: Collection[str]) -> None:
        await self.engine.publish([Parcel(channel, channel.encode()) for channel in channels])


@contextlib.asynccontextmanager
async def ends(*urls: str) -> AsyncGenerator[Sequence[End]]:
    those = [End(url) for url in urls]
    try:
        for one in those:
            await one.engine.start(one.deliver, one.errors.append)
        yield those
    finally:
        for one in those:
            await one.engine.close()


async def test_what_is_published_after_a_subscription_has_returned_is_heard_every_time(url: str) -> None:
    async with ends(url, url, url) as (hearing, speaking, other):
        for number in range(100):
            channel = f"t:{number}"
            await hearing.engine.subscribe([channel])
            await (speaking, other)[number % 2].publish([channel])
        await hearing.until_heard(100)
        assert sorted(hearing.heard) == sorted(f"t:{number}".encode() for number in range(100))
        await hearing.engine.unsubscribe([f"t:{number}" for number in range(50)])
        await hearing.engine.subscribe(["t:last"])
        await speaking.publish([*(f"t:{number}" for number in range(100)), "t:last"])
        await hearing.until_heard(151)
        assert len(hearing.heard) == 151
        assert hearing.errors == speaking.errors == other.errors == []


async def test_a_process_that_has_just_started_reaches_those_that_have_subscribed_before(url: str) -> None:
    async with ends(url) as (hearing,):
        await hearing.engine.subscribe(["t:a"])
        for number in range(1, 6):
            async with ends(url) as (speaking,):
                await speaking.publish(["t:a"])
                await hearing.until_heard(number)


@pytest.mark.parametrize("name", list(ENGINES))
async def test_a_subscription_does_not_return_while_the_engine_cannot_have_confirmed_it(
    name: str, network: Network
) -> None:
    with engine(name) as server, contextlib.closing(Proxy(network, server.port)) as way:
        far = server.url.replace(str(server.port), str(way.port))
        async with ends(far, server.url) as (hearing, speaking), anyio.create_task_group() as tasks:
            returned = anyio.Event()

            async def subscribe() -> None:
                await hearing.engine.subscribe(["t:a", "t:b"])
                returned.set()

            with way.hanging():
                tasks.start_soon(subscribe)
                with anyio.move_on_after(0.5):
                    await returned.wait()
                assert not returned.is_set()
            with anyio.fail_after(PATIENCE):
                await returned.wait()
            await speaking.publish(["t:a", "t:b"])
            await hearing.until_heard(2)


@pytest.mark.parametrize("name", list(ENGINES))
async def test_a_subscription_that_the_engine_never_confirms_is_an_engine_that_is_away(
    name: str, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "STEP_SECONDS", 1.0)
    monkeypatch.setattr(zenoh, "ROUTER_SECONDS", 0.8)
    with engine(name) as server, contextlib.closing(Proxy(network, server.port)) as way:
        async with brokers(server.url.replace(str(server.port), str(way.port)), 1) as (broker,):
            first = Ear(broker, "first")
            async with brokers(server.url, 1) as (other,):
                await first.hears(other)
                with way.deaf(), anyio.fail_after(PATIENCE):
                    Ear(broker, "second")
                    while not broker.counts["relay_disconnected"]:  # noqa: ASYNC110 - a counter gives no sign
                        await anyio.sleep(0.01)
                await first.hears(other)


async def test_a_process_that_hangs_is_waited_for_only_for_a_moment(home: None) -> None:
    async with brokers(MESH, 1) as (broker,):
        with listener(MESH, 1_000_000) as process:
            await becomes_ready(process, broker)
            async with ends(MESH) as (hearing,):
                process.send_signal(signal.SIGSTOP)
                began = time.monotonic()
                await hearing.engine.subscribe(["t:a"])
                assert time.monotonic() - began < zenoh.PEER_SECONDS + 1


@pytest.mark.parametrize("number", [MAX_ALONE + 2 * GROUPS, 20_000])
async def test_many_channels_are_each_heard_once_and_those_that_are_not_wanted_never(url: str, number: int) -> None:
    channels = [f"t:room:{one}" for one in range(number)]
    sample = random.Random(7).sample(channels, 300)
    async with ends(url, url) as (hearing, speaking):
        for first in range(0, number, 500):
            with anyio.fail_after(life.STEP_SECONDS):
                await hearing.engine.subscribe(channels[first : first + 500])
        await speaking.publish(sample)
        await hearing.until_heard(300)
        left = set(random.Random(8).sample(channels, number // 2))
        gone = [channel for channel in channels if channel not in left]
        for first in range(0, len(gone), 500):
            with anyio.fail_after(life.STEP_SECONDS):
                await hearing.engine.unsubscribe(gone[first : first + 500])
        await hearing.engine.subscribe(["t:mark"])
        hearing.heard.clear()
        await speaking.publish([*sample, "t:never", "t:mark"])
        wanted = sorted(channel.encode() for channel in [*(left & set(sample)), "t:mark"])
        await hearing.until_heard(len(wanted))
        assert sorted(hearing.heard) == wanted


async def test_tens_of_thousands_of_topics_are_heard_again_after_the_engine_was_away(
    engine_server: EngineServer,
) -> None:
    async with brokers(engine_server.url) as (one, two):
        ears = [Ear(two, f"room:{number}") for number in range(20_000)]
        with anyio.fail_after(60):
            await ears[-1].hears(one)
            await ears[0].hears(one)
            engine_server.restart()
            for ear in random.Random(7).sample(ears, 20):
                await ear.hears(one)
        assert two.counts["relay_disconnected"] < 10, "it comes back at once, and stays"


class SlowEngine(RedisEngine):
    """Redis that takes its time for each batch, and is not told of more at once than it can do in a step."""

    @override
    async def subscribe(self, channels: Collection[str]) -> None:
        await anyio.sleep(0.3)
        await super().subscribe(channels)


async def test_how_long_all_take_does_not_matter_as_long_as_each_batch_has_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(life, "STEP_SECONDS", 1.0)
    monkeypatch.setattr("starlette_channels.pubsub.engines.redis.RedisEngine", SlowEngine)
    with engine("redis") as server:
        async with brokers(server.url) as (one, two):
            ears = [Ear(two, f"room:{number}") for number in range(5 * life.SUBSCRIBE_BATCH)]
            for ear in (ears[0], ears[-1], *random.Random(7).sample(ears, 5)):
                await ear.hears(one)
            server.restart()
            for ear in (ears[0], ears[-1], *random.Random(8).sample(ears, 5)):
                await ear.hears(one)
            began = time.monotonic()
            server.restart()
        assert time.monotonic() - began < CLOSE_SECONDS + 2, "a broker that is closed does not wait for all batches"


async def test_topics_with_huge_names_stop_nobody(engine_server: EngineServer) -> None:
    huge = [f"room:{number}:{'x' * 30_000}" for number in range(20)]  # so that all marks fit into Redis's limit
    twins = [f"{huge[0]}a", f"{huge[0]}b"]  # alike for as long as a name can be read
    async with brokers(engine_server.url) as (one, two):
        ears = [Ear(two, topic) for topic in (*huge, *twins)]
        honest = Ear(two, "honest")
        await honest.hears(one)
        engine_server.restart()
        await honest.hears(one)
        for number, ear in enumerate(ears):
            one.broadcast(ear.topic, "e", {"n": number})
            await ear.until(lambda ear=ear: bool(ear.numbers) or bool(ear.gaps))
            assert ear.numbers == [number]
        if engine_server.url.startswith("redis://"):
            with redis.Redis(host=HOST, port=engine_server.port) as client:
                names = client.pubsub_channels("channels:t:*")
            assert len(names) == len(ears) + 1
            assert max(map(len, names)) <= len("channels:") + MAX_BYTES + 1


@given(st.text(st.characters(), max_size=400), st.text(st.characters(), max_size=2))
def test_names_are_bounded_and_no_name_is_that_of_another_channel(topic: str, more: str) -> None:
    channel = topic_channel(topic)
    for name in (as_short_bytes, as_token):
        assert len(name(channel)) <= max(MAX_BYTES, MAX_TOKEN) + 1
        assert (name(channel) == name(channel + more)) == (more == "")
    taken = as_short_bytes(channel)
    with contextlib.suppress(UnicodeDecodeError):  # what a client can choose as its topic to get at that of another
        assert as_short_bytes(taken.decode()) != taken or taken == channel.encode("utf-8", "surrogatepass")
    assert key_of("p", channel).count("/") == 2
