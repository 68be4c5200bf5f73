"""Broadcasts from processes without clients: scripts, tasks and the command line."""

import subprocess
import sys
import time

import anyio
import anyio.to_thread
import pytest

from starlette_channels import Publisher, PublishError
from tests.support.engines import EngineServer
from tests.support.ports import HOST, free_port
from tests.support.relaying import Ear, brokers
from tests.support.servers import ROOT

pytestmark = pytest.mark.anyio


@pytest.fixture
def nowhere() -> str:
    return f"redis://secret:password@{HOST}:{free_port()}"


async def test_what_is_published_before_the_end_of_the_block_arrives(engine_server: EngineServer) -> None:
    async with brokers(engine_server.url, 2) as (app, other):
        ear = Ear(app, "t")
        await ear.hears(other)

        def script(first: int) -> None:
            with Publisher(engine_server.url) as publisher:
                for number in range(first, first + 100):
                    publisher.broadcast("t", "e", {"n": number})

        for first in range(0, 1_000, 100):
            await anyio.to_thread.run_sync(script, first)
        await ear.until(lambda: len(ear.numbers) == 1_000)
        assert ear.numbers == list(range(1_000))
        assert ear.lost == 0


async def test_async_code_has_the_same(engine_server: EngineServer) -> None:
    async with brokers(engine_server.url, 2) as (app, other):
        ear = Ear(app, "t")
        await ear.hears(other)
        async with Publisher(engine_server.url) as publisher:
            publisher.broadcast("t", "e", {"n": 1})
            await publisher.aflush()
            await ear.until(lambda: ear.numbers == [1])
            publisher.broadcast("t", "e", {"n": 2})
        await ear.until(lambda: ear.numbers == [1, 2])
        publisher.broadcast("t", "e", {"n": 3})
        publisher.disconnect("user:7")
        await publisher.aclose()
        await ear.until(lambda: ear.numbers == [1, 2, 3])
        assert ear.lost == 0


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "starlette_channels", "publish", *arguments]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


async def test_the_command_publishes(engine_server: EngineServer) -> None:
    async with brokers(engine_server.url, 2) as (app, other):
        ear = Ear(app, "room:*")
        await ear.hears(other)
        done = await anyio.to_thread.run_sync(command, engine_server.url, "room:*", "new msg", '{"n": 7, "b": "é"}')
        assert (done.returncode, done.stderr) == (0, "")
        await ear.until(lambda: bool(ear.numbers))
        assert (ear.heard[-1].event, bytes(ear.heard[-1].body)) == ("new msg", '{"n": 7, "b": "é"}'.encode())


def test_an_engine_that_is_not_there_is_an_error_at_the_end_and_never_before(nowhere: str) -> None:
    publisher = Publisher(nowhere, timeout=0.3)
    for number in range(10):
        publisher.broadcast("t", "e", {"n": number})
    with pytest.raises(PublishError, match="10 broadcasts were not published") as caught:
        publisher.flush()
    assert caught.value.left == 10
    assert caught.value.__cause__ is not None
    with pytest.raises(PublishError, match="10 broadcasts were not published"):
        publisher.close()
    publisher.close()


def test_what_is_dropped_is_an_error_as_well(nowhere: str) -> None:
    publisher = Publisher(f"{nowhere}?buffer_seconds=0&queue=5", timeout=5)
    publisher.broadcast("t", "e", {})
    with pytest.raises(PublishError, match="1 broadcasts were not published"):
        publisher.close()


def test_an_error_counts_all_that_was_lost_and_not_only_what_is_left(engine_server: EngineServer) -> None:
    engine_server.start()
    publisher = Publisher(f"{engine_server.url}?queue=5", timeout=0.5)
    with engine_server.paused():  # so that it hangs while it connects
        for number in range(20):
            publisher.broadcast("t", "e", {"n": number})
        with pytest.raises(PublishError, match="20 broadcasts were not published") as caught:
            publisher.flush()
        assert caught.value.left == 20, "fifteen were dropped, and five wait"
        for number in range(3):
            publisher.broadcast("t", "e", {"n": number})
        with pytest.raises(PublishError, match="8 broadcasts were not published"):
            publisher.close()
        for number in range(20):
            publisher.broadcast("t", "e", {"n": number})
        with pytest.raises(PublishError, match="20 broadcasts were not published"):
            publisher.close()
    publisher.close()


def test_what_was_dropped_for_its_age_is_counted_with_what_is_left(
    nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(f"{nowhere}?buffer_seconds=0.3", timeout=0.2)
    for _ in range(10):
        publisher.broadcast("t", "e", {})
    deadline = time.monotonic() + 10
    while "broadcasts do not get to the other processes" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a log gives no sign
    for _ in range(3):
        publisher.broadcast("t", "e", {})
    with pytest.raises(PublishError, match="13 broadcasts were not published"):
        publisher.close()


def test_mistakes_on_the_command_line_are_told_from_each_other(nowhere: str) -> None:
    for arguments, code, said in (
        (["memory://", "t", "e"], 2, "memory:// reaches no other process"),
        (["kafka://u:secret@h", "t", "e"], 2, "broker 'kafka://***@h': it must begin with one of"),
        ([nowhere, "t", "e", "{"], 2, "Invalid value for PAYLOAD: Input data was truncated"),
        ([nowhere, "t", "e", "{}", "--timeout", "0.2"], 1, "Error: 1 broadcasts were not published"),
    ):
        done = command(*arguments)
        assert done.returncode == code
        assert said in done.stderr
        assert "secret" not in done.stderr
        assert "Traceback" not in done.stderr


def test_memory_is_no_address_for_a_publisher() -> None:
    with pytest.raises(ValueError, match="memory:// reaches no other process"):
        Publisher("memory://")
