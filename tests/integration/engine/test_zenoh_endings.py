"""Zenoh when its router hangs or is late: nobody aborts or waits for ever, and what is lost is counted."""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from starlette_channels import Broker, Publisher, PublishError
from starlette_channels.pubsub.relay.relay import CLOSE_SECONDS, EXIT_SECONDS
from tests.support.engines import EngineServer, engine, running, zenoh_router
from tests.support.ports import HOST, free_port
from tests.support.relaying import Ear, brokers
from tests.support.servers import ROOT

pytestmark = pytest.mark.anyio

SLACK = 2.0
"""For the start of an interpreter on a busy machine."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def router() -> Generator[EngineServer]:
    with engine("zenoh") as one:
        yield one


def run(script: str, url: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", script, url], cwd=ROOT, capture_output=True, text=True, check=False)


ENDS = """
import sys, time
from starlette_channels import Publisher
publisher = Publisher(sys.argv[1], timeout=0.5)
publisher.broadcast("t", "e", {})
began = time.monotonic()
try:
    publisher.close()
except Exception as error:
    print(type(error).__name__, error.left, time.monotonic() - began < 1.5)
"""

LEAVES = """
import sys
from starlette_channels import Publisher
Publisher(sys.argv[1], timeout=0.5).broadcast("t", "e", {})
"""

HANGS_LATER = """
import sys, time
from starlette_channels import Broker, Publisher
publisher = Publisher(sys.argv[1], timeout=0.5)
publisher.broadcast("t", "e", {})
publisher.flush()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(2_000):
    publisher.broadcast("t", "e", {"filler": "x" * 10_000})
began = time.monotonic()
try:
    publisher.close()
except Exception as error:
    print(type(error).__name__, 1_000 < error.left <= 2_000, time.monotonic() - began < 1.5)
"""


def test_a_script_whose_router_hangs_ends_in_time_and_says_why(router: EngineServer) -> None:
    with router.paused():
        done = run(ENDS, router.url)
    assert (done.returncode, done.stdout) == (0, "PublishError 1 True\n")
    assert "FATAL" not in done.stderr


def test_a_script_that_leaves_its_publisher_to_the_interpreter_ends_as_well(router: EngineServer) -> None:
    with router.paused():
        began = time.monotonic()
        done = run(LEAVES, router.url)
        assert time.monotonic() - began < CLOSE_SECONDS + EXIT_SECONDS + SLACK
    assert done.returncode == 0
    assert "FATAL" not in done.stderr
    assert "1 broadcasts are left at the end" in done.stderr


def test_a_script_whose_router_begins_to_hang_ends_as_well(router: EngineServer) -> None:
    command = [sys.executable, "-c", HANGS_LATER, router.url]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with router.paused():
            told, wrong = process.communicate("\n", timeout=30)
    assert (process.returncode, told) == (0, "PublishError True True\n")
    assert "FATAL" not in wrong


@pytest.mark.parametrize("timeout", ["0.3", "1", "2.2", "4"])
def test_the_command_ends_with_an_error_whose_router_hangs(router: EngineServer, timeout: str) -> None:
    command = [sys.executable, "-m", "starlette_channels", "publish", router.url, "t", "e", "{}", "--timeout", timeout]
    with router.paused():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Error: 1 broadcasts were not published" in done.stderr
    assert "FATAL" not in done.stderr


async def test_a_broker_whose_router_hangs_is_closed_in_time(router: EngineServer) -> None:
    broker = Broker(router.url)
    ear = Ear(broker, "t")
    async with brokers(router.url, 1) as (other,):
        await ear.hears(other)
    with router.paused():
        broker.broadcast("t", "e", {})
        began = time.monotonic()
        await broker.close()
        assert time.monotonic() - began < CLOSE_SECONDS + 1
    assert broker.counts["relay_dropped"] == 1


async def test_what_is_published_behind_a_router_that_dies_is_an_error_and_no_silence(router: EngineServer) -> None:
    publisher = Publisher(router.url, timeout=1)
    publisher.broadcast("t", "e", {})
    await publisher.aflush()
    with router.paused():
        publisher.broadcast("t", "e", {})
        with pytest.raises(PublishError, match="1 broadcasts were not published"):
            await publisher.aflush()
    with contextlib.suppress(PublishError):
        await publisher.aclose()


async def test_the_first_word_waits_for_the_others_when_all_start_before_their_router() -> None:
    for seconds in (0.0, 0.7, 2.5):
        with tempfile.TemporaryDirectory(prefix="engine-") as folder:
            late = EngineServer("zenoh", zenoh_router, Path(folder))
            async with brokers(late.url, 3) as (one, two, three):
                ears = [Ear(two, "t"), Ear(three, "t")]
                one.broadcast("t", "e", {"n": 0})
                await anyio.sleep(seconds)  # the router is away for so long
                one.broadcast("t", "e", {"n": 1})
                await anyio.to_thread.run_sync(late.start)
                try:
                    for ear in ears:
                        await ear.until(lambda ear=ear: ear.numbers == [0, 1])
                        assert ear.lost == 0
                finally:
                    late.kill()


async def test_a_router_that_hangs_at_the_first_connection_was_away_as_well() -> None:
    with engine("zenoh") as router:
        async with brokers(router.url) as (one, two):
            with router.paused():
                ear = Ear(two, "t")
                one.broadcast("t", "e", {"n": 0})
                await anyio.sleep(1.0)  # the router hangs for so long
            await ear.until(lambda: ear.numbers == [0] or bool(ear.gaps))


async def test_the_rights_in_the_guide_are_enough_for_a_router() -> None:
    guide = (ROOT / "docs" / "guides" / "engines.md").read_text()
    ((messages, keys),) = re.findall(r'messages: \[(.*)\], key_exprs: \["(.*)"\]', guide)
    rule = {"id": "channels", "messages": json.loads(f"[{messages}]"), "permission": "allow", "key_exprs": [keys]}
    control = {
        "enabled": True,
        "default_permission": "deny",
        "rules": [rule],
        "subjects": [{"id": "all"}],
        "policies": [{"rules": ["channels"], "subjects": ["all"]}],
    }

    def command(port: int, folder: Path) -> list[str]:
        return zenoh_router(port, folder, {"access_control": control})

    with running("zenoh", command) as router:
        async with brokers(router.url) as (one, two), brokers(f"{router.url}?prefix=other", 1) as (other,):
            ear, stranger = Ear(two, "t"), Ear(other, "t")
            await ear.hears(one)
            one.broadcast("t", "e", {"n": 1})
            await ear.until(lambda: ear.numbers == [1])
            assert one.counts == two.counts == {}
            assert stranger.heard == []


def test_settings_that_zenoh_cannot_read_are_refused_at_once(tmp_path: Path) -> None:
    broken = tmp_path / "zenoh.json5"
    broken.write_text("{ mode: ")
    for url in (f"zenoh://?config={broken}", f"zenoh://{HOST}:{free_port()}?config={broken}"):
        with pytest.raises(ValueError, match="which Zenoh cannot read"):
            Broker(url)


async def test_what_the_relay_depends_on_is_as_it_needs_it_whatever_a_file_says(tmp_path: Path) -> None:
    file = tmp_path / "zenoh.json5"
    file.write_text(
        """{ mode: "router", connect: { endpoints: ["tcp/127.0.0.1:1"], timeout_ms: -1 },
             listen: { endpoints: ["tcp/127.0.0.1:0"] }, scouting: { multicast: { enabled: true } } }"""
    )
    with engine("zenoh") as router:
        async with brokers(f"{router.url}?config={file}") as (one, two):
            ear = Ear(two, "t")
            await ear.hears(one)
            one.broadcast("t", "e", {"n": 1})
            await ear.until(lambda: ear.numbers == [1])
            assert one.counts == two.counts == {}
