"""The life of a relay: when it begins and ends, what it costs until then, and what a wrong address says."""

import subprocess
import sys
import threading
from collections.abc import Generator

import anyio
import anyio.to_thread
import pytest

from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.relay.envelope import Kind
from starlette_channels.pubsub.relay.publish_queue import BATCH, BATCH_BYTES, Outbox
from starlette_channels.pubsub.relay.subscriptions import Interests
from tests.support.engines import EngineServer, engine
from tests.support.ports import HOST, free_port
from tests.support.relaying import Ear, brokers
from tests.support.servers import ROOT

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Generator[EngineServer]:
    with engine("redis") as running:
        yield running


def threads() -> int:
    return sum(thread.name.startswith("starlette-channels") for thread in threading.enumerate())


async def test_every_event_loop_can_use_it_and_is_not_blocked(server: EngineServer) -> None:
    async with brokers(server.url) as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        for number in range(500):
            one.broadcast("t", "e", {"n": number})
        await ear.until(lambda: len(ear.numbers) == 500)


async def test_a_thread_begins_with_the_first_use_and_ends_with_the_close(server: EngineServer) -> None:
    before = threads()
    broker = Broker(server.url)
    assert threads() == before
    broker.broadcast("t", "e", {})
    assert threads() == before + 1
    broker.hub()
    assert threads() == before + 1
    await broker.close()
    await broker.close()
    assert threads() == before


async def test_memory_needs_no_thread_and_its_lines_lead_nowhere() -> None:
    before = threads()
    broker = Broker()
    line = broker.exchange("presence", lambda data: None)
    line.send(b"nobody is there")
    broker.broadcast("t", "e", {})
    assert broker.node == "local"
    assert threads() == before
    line.close()
    await broker.close()


async def test_event_loops_of_one_process_each_hear_everything(server: EngineServer) -> None:
    async with brokers(server.url) as (one, two):
        here = Ear(two, "t")
        await here.hears(one)
        heard: list[list[int]] = []

        async def elsewhere(started: threading.Event) -> None:
            ear = Ear(two, "t")
            started.set()
            await ear.until(lambda: len(ear.numbers) == 100)
            heard.append(ear.numbers)

        started = threading.Event()
        thread = threading.Thread(target=anyio.run, args=(elsewhere, started))
        thread.start()
        await anyio.to_thread.run_sync(started.wait)
        for number in range(100):
            one.broadcast("t", "e", {"n": number})
        await here.until(lambda: len(here.numbers) == 100)
        await anyio.to_thread.run_sync(thread.join)
        assert heard == [here.numbers] == [list(range(100))]


async def test_who_leaves_hears_no_more_and_the_engine_is_told(server: EngineServer) -> None:
    async with brokers(server.url) as (one, two):
        ear, other = Ear(two, "t"), Ear(two, "other")
        await ear.hears(one)
        ear.leave()
        await other.hears(one)
        before = len(ear.heard)
        one.broadcast("t", "e", {})
        await other.hears(one)
        assert len(ear.heard) == before
        again = Ear(two, "t")  # within a moment, so nothing has been missed
        one.broadcast("t", "e", {"n": 1})
        await again.until(lambda: again.numbers == [1])
        assert again.lost == 0


def test_interests_are_counted_and_told_once() -> None:
    told: list[None] = []
    interests = Interests(lambda: told.append(None))
    interests.add("a")
    interests.add("a")
    interests.add("b")
    interests.remove("b")
    assert len(told) == 3
    wanted, unwanted = interests.take()
    assert (set(wanted), unwanted) == ({"a"}, {"b"})
    assert interests.take() == ({}, set())
    interests.remove("a")
    assert interests.take() == ({}, set())
    interests.remove("a")
    interests.add("c")
    assert set(interests.all()) == {"c"}
    assert interests.take() == ({}, set())


def test_an_outbox_keeps_order_and_drops_the_oldest_and_what_waits_for_too_long() -> None:
    now = 0.0
    outbox = Outbox(3, 1_000_000, lambda: now)
    for number in range(5):
        now = number
        outbox.put(Kind.JSON, "t:a", str(number), b"")
    assert outbox.dropped == 2
    assert [waiting.event for waiting in outbox.take()] == ["2", "3", "4"]
    outbox.put(Kind.JSON, "t:a", "5", b"")
    assert [waiting.event for waiting in outbox.take()] == ["2", "3", "4"], "they are not done"
    outbox.expire(1.0)
    assert [waiting.event for waiting in outbox.take()] == ["3", "4", "5"]
    assert [waiting.stamp.number for waiting in outbox.take()] == [4, 5, 6]
    assert (outbox.unpublished(), outbox.dropped) == (3, 3)
    outbox.done()
    assert outbox.unpublished() == 0
    outbox.put(Kind.JSON, "t:a", "big", b"x" * 2_000_000)
    assert (outbox.unpublished(), outbox.dropped) == (0, 4)


def test_an_outbox_gives_out_no_more_at_once_than_goes_out_in_time() -> None:
    outbox = Outbox(10_000, 100_000_000, lambda: 0.0)
    for number in range(2_000):
        outbox.put(Kind.JSON, "t:a", str(number), b"")
    for number in range(2_000, 2_010):
        outbox.put(Kind.JSON, "t:a", str(number), b"x" * 1_500_000)
    outbox.put(Kind.JSON, "t:a", "2010", b"x" * 10_000_000)
    outbox.put(Kind.JSON, "t:a", "2011", b"")
    batches: list[list[str]] = []
    while taken := outbox.take():
        batches.append([waiting.event for waiting in taken])
        assert len(taken) <= BATCH
        assert len(taken) == 1 or sum(waiting.size for waiting in taken) <= BATCH_BYTES
        outbox.done()
    assert [event for batch in batches for event in batch] == [str(number) for number in range(2_012)]
    assert len(batches) < 15


FORKED = """
import os, sys
from starlette_channels.pubsub.broker import Broker

broker = Broker(sys.argv[1])
broker.broadcast("t", "e", {"n": 0})
parent = broker.node
if os.fork() == 0:
    assert broker.node != parent
    broker.broadcast("t", "e", {"n": 1})
    sys.exit()
os.wait()
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_fork_begins_a_life_of_its_own_and_the_interpreter_ends_both(server: EngineServer) -> None:
    async with brokers(server.url) as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, server.url]
        done = await anyio.to_thread.run_sync(lambda: subprocess.run(command, cwd=ROOT, check=False, timeout=30))
        assert done.returncode == 0
        await ear.until(lambda: sorted(ear.numbers) == [0, 1])
        assert ear.lost == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_process_ends_in_time_when_the_engine_is_not_there() -> None:
    broker = Broker(f"redis://{HOST}:{free_port()}")
    broker.broadcast("t", "e", {})
    with anyio.fail_after(6):
        await broker.close()
    assert broker.counts["relay_dropped"] == 1


def test_importing_the_package_imports_no_engine() -> None:
    script = "import starlette_channels, sys; print({'redis', 'nats', 'zenoh'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", ["redis", "nats", "zenoh"])
def test_a_library_that_is_missing_is_an_error_with_the_fix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in tuple(sys.modules):
        if module == f"starlette_channels.pubsub.engines.{name}" or module.startswith(f"{name}."):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name}:// needs .*: pip install 'starlette-channels\[{name}\]'"):
        Broker(f"{name}://localhost")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "broker '': it must begin with one of memory://, redis://"),
        ("memory", "write memory://"),
        ("memory://x", "write memory://, it takes nothing"),
        ("http://user:secret@host", r"broker 'http://\*\*\*@host': it must begin with"),
        ("redis://host?queue=no", "Expected `int`, got `str` - at `\\$.queue`"),
        ("redis://host?buffer_seconds=-1", "Expected `float` >= 0"),
        ("redis://host?prefix=a.b", "Expected `str` matching regex"),
        ("redis://host?nonsense=1", "nonsense"),
        ("redis://host:port", "what follows the last colon is no port"),
        ("redis://host/no", "redis://host:6379/0"),
        ("nats://host?nonsense=1", "an option that is unknown: nonsense"),
        ("nats://host/path", "nats://host:4222"),
        ("nats://", "nats://host:4222"),
        ("zenoh://host/path", "a name goes into \\?prefix="),
        ("zenoh://?nonsense=1", "an option that is unknown: nonsense"),
        ("zenoh://?config=nowhere.json5", "the file nowhere.json5, which does not exist"),
    ],
)
def test_a_wrong_address_is_an_error_at_once(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Broker(url)
    assert "secret" not in str(caught.value)
