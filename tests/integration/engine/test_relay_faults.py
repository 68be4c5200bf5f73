"""When things go wrong, what is reported as lost is what was lost, and nothing comes twice or out of order."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from starlette_channels.pubsub.broker import Broker
from tests.support.engines import EngineServer
from tests.support.relaying import PATIENCE, Ear, all_is_accounted_for, broadcast, brokers
from tests.support.servers import ROOT

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(engine_server: EngineServer) -> EngineServer:
    engine_server.start()
    return engine_server


async def test_an_engine_that_dies_and_comes_back(server: EngineServer) -> None:
    async with brokers(server.url, 3) as (one, *others):
        ears = [Ear(broker, "t") for broker in others]
        for ear in ears:
            await ear.hears(one)
        await broadcast(one, range(1_000))
        server.kill()
        await broadcast(one, range(1_000, 2_000))
        server.start()
        await broadcast(one, range(2_000, 3_000))
        for ear in ears:
            await all_is_accounted_for(ear, 3_000)


async def test_an_engine_that_hangs_for_a_moment_loses_nothing(server: EngineServer) -> None:
    async with brokers(server.url) as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        with server.paused():
            await broadcast(one, range(1_000))
        await broadcast(one, range(1_000, 2_000))
        await all_is_accounted_for(ear, 2_000)
        assert ear.lost == 0


async def test_an_engine_that_is_away_for_longer_than_the_buffer_keeps(server: EngineServer) -> None:
    async with brokers(f"{server.url}?buffer_seconds=0.2") as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        await broadcast(one, range(100))
        server.kill()
        await broadcast(one, range(100, 300))
        with anyio.fail_after(PATIENCE):
            while one.counts["relay_dropped"] < 150:
                await anyio.lowlevel.checkpoint()
        server.start()
        await broadcast(one, range(300, 400))
        await all_is_accounted_for(ear, 400)
        assert ear.lost >= 50, "of those that are dropped, the first hundred may have arrived without an answer"


async def test_more_than_the_queue_holds(server: EngineServer) -> None:
    async with brokers(f"{server.url}?queue=100") as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        for number in range(5_000):
            one.broadcast("t", "e", {"n": number})
        await all_is_accounted_for(ear, 5_000)
        assert ear.numbers[-1] == 4_999, "the oldest are dropped"
        assert ear.lost == one.counts["relay_dropped"] > 0


async def test_event_loops_that_are_behind(server: EngineServer) -> None:
    async with brokers(server.url, 1) as (one,), brokers(f"{server.url}?queue_bytes=1000000", 1) as (slow,):
        ear = Ear(slow, "t")
        await ear.hears(one)
        deadline = time.monotonic() + 10
        number = 0
        while not slow.counts["relay_overflow"]:  # all in one turn of the event loop
            assert time.monotonic() < deadline
            one.broadcast("t", "e", {"n": number, "filler": "x" * 10_000})
            number += 1
            os.sched_yield()
        await broadcast(one, range(number, number + 100))
        await all_is_accounted_for(ear, number + 100)
        assert ear.lost > 0


@contextlib.contextmanager
def listener(url: str, number: int) -> Generator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.relay_listener", url, str(number)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def becomes_ready(process: subprocess.Popen[str], broker: Broker) -> None:
    assert process.stdout is not None
    while not select.select([process.stdout], [], [], 0)[0]:
        broker.broadcast("t", "probe", {})
        await anyio.sleep(0.05)
    assert process.stdout.readline() == "ready\n"


async def test_a_process_that_hangs_while_more_comes_than_the_engine_keeps_for_it(server: EngineServer) -> None:
    async with brokers(server.url, 1) as (one,):
        with listener(server.url, 7_000) as process:
            await becomes_ready(process, one)
            process.send_signal(signal.SIGSTOP)
            await broadcast(one, range(5_000), 10_000)
            process.send_signal(signal.SIGCONT)
            await broadcast(one, range(5_000, 7_000))
            assert process.stdout is not None
            told = json.loads(await anyio.to_thread.run_sync(process.stdout.readline))
        assert told["numbers"] == sorted(set(told["numbers"]))
        assert len(told["numbers"]) + told["lost"] == 7_000
