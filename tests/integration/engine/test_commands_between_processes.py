"""`disconnect` and `kick` between processes: they arrive, whatever was away, and mean who was there before."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import subprocess
import sys
from collections.abc import Generator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import redis

from starlette_channels import Channels, Handshake, Publisher, PublishError, Reply
from starlette_channels.pubsub.relay.channel_names import COMMANDS
from starlette_channels.pubsub.relay.command_log import CommandLog
from starlette_channels.pubsub.relay.envelope import Kind, seal
from starlette_channels.testing import connect
from tests.support.commanding import closed, processes, room
from tests.support.engines import EngineServer, engine
from tests.support.ports import HOST, free_port
from tests.support.relaying import PATIENCE
from tests.support.servers import ROOT

pytestmark = pytest.mark.anyio

OTHER = b"--other-"


async def test_a_command_that_is_said_before_anything_is_connected_arrives(engine_server: EngineServer) -> None:
    async with processes(engine_server.url) as (one, two), connect(two, user="ann") as ann:
        one.disconnect("ann", code=4001)
        assert await closed(ann) == 4001


@pytest.fixture
def server() -> Generator[EngineServer]:
    with engine("redis") as running:
        yield running


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_command_waits_for_an_engine_for_longer_than_broadcasts_do_and_whatever_their_number(
    server: EngineServer,
) -> None:
    url = f"{server.url}?buffer_seconds=0.1&queue=5"
    async with processes(url) as (one, two), connect(two, user="ann") as ann, connect(two, user="bob") as bob:
        joined = await bob.join("room:a")
        server.kill()
        one.disconnect("ann", code=4001)
        one.kick("bob", "room:a", reason="out")
        for number in range(100):
            one.broadcast("room:b", "news", {"n": number})
            one.disconnect(f"somebody {number}")
        with anyio.fail_after(PATIENCE):
            while one.statistics().counts.get("relay_dropped", 0) < 100:
                await anyio.lowlevel.checkpoint()
        await anyio.to_thread.run_sync(server.start)
        assert await closed(ann) == 4001
        assert await joined.receive("kicked") == {"reason": "out"}
        assert await bob.heartbeat() == Reply("ok")


class Stranger:
    """A process that repeats what another one has said."""

    def __init__(self, server: EngineServer) -> None:
        self._redis = redis.Redis.from_url(server.url)
        self.log = CommandLog(OTHER, lambda: 0.5)

    async def repeat(self, sent: float = 1_000.0) -> None:
        bodies, _ = self.log.outgoing(sent)
        for body in bodies:
            data = seal(Kind.COMMAND, OTHER, 1, 1, COMMANDS, "", body, sent)
            with anyio.fail_after(PATIENCE):
                while not await anyio.to_thread.run_sync(self._redis.publish, f"channels:{COMMANDS}", data):
                    await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        self._redis.close()


@pytest.fixture
def stranger(server: EngineServer) -> Generator[Stranger]:
    one = Stranger(server)
    yield one
    one.close()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_is_repeated_means_who_was_there_when_it_was_said(server: EngineServer, stranger: Stranger) -> None:
    async with (
        processes(server.url, 1) as (channels,),
        connect(channels, user="ann") as ann,
        connect(channels, user="bob") as bob,
    ):
        joined = await ann.join("room:a")
        await bob.join("room:a")
        stranger.log.say(b"bob", b"disconnect", b'{"type":"disconnect","code":4001}', 1_000.0 - 3_000)
        stranger.log.say(b"ann", b"kick room:a", b'{"type":"kick","topic":"room:a"}', 1_000.0 - 3_000)
        stranger.log.say(b"ann", b"kick room:b", b'{"type":"kick","topic":"room:b"}', 1_000.0)
        await ann.join("room:b")
        await stranger.repeat()
        assert (await ann.receive()).topic == "room:b"
        assert await bob.heartbeat() == Reply("ok")
        assert await joined.received_nothing()
        stranger.log.say(b"bob", b"disconnect", b'{"type":"disconnect","code":4001}', 1_000.0)
        await stranger.repeat()
        assert await closed(bob) == 4001


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_who_may_be_meant_by_a_command_that_is_lost_is_closed_with_1012(
    server: EngineServer, stranger: Stranger
) -> None:
    stranger.log = CommandLog(OTHER, lambda: 0.5, max_bytes=1_000)
    async with (
        processes(server.url, 1) as (channels,),
        connect(channels, user="ann") as ann,
        connect(channels) as anonymous,
    ):
        for number in range(10):
            stranger.log.say(b"user %d" % number, b"disconnect", b'{"type":"disconnect"}', 1_000.0)
        await stranger.repeat()
        assert await closed(ann) == 1012
        assert await anonymous.heartbeat() == Reply("ok")
        assert channels.statistics().counts["commands_lost"] == 1


@pytest.mark.parametrize("broker", ["memory://", "redis"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_client_who_is_being_let_in_when_it_is_disconnected_is_disconnected(
    broker: str, server: EngineServer
) -> None:
    asked, answer = anyio.Event(), anyio.Event()

    async def slow(conn: Handshake) -> dict[str, Any]:
        asked.set()
        await answer.wait()
        return {"id": "ann"}

    channels = Channels(
        [room], connect=slow, socket_id=lambda user: user["id"], broker=server.url if broker == "redis" else broker
    )
    outcomes: list[int] = []

    async def come() -> None:
        async with connect(channels) as client:
            outcomes.append(await client.closed())

    async with channels.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(come)
        await asked.wait()
        channels.disconnect("ann", code=4001)
        answer.set()
    assert outcomes == [4001]
    async with channels.lifespan(), connect(channels) as again:
        assert await again.heartbeat() == Reply("ok"), "who comes after it is not meant"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_identities_cost_no_subscription(server: EngineServer) -> None:
    async with (
        processes(server.url, 1) as (channels,),
        connect(channels, user="ann"),
        connect(channels, user="bob") as bob,
    ):
        await bob.join("room:a")
        hearing = redis.Redis.from_url(server.url)
        names = await anyio.to_thread.run_sync(hearing.pubsub_channels)
        assert sorted(names) == [b"channels:t:room:a", f"channels:{COMMANDS}".encode()]
        hearing.close()


async def test_a_publisher_returns_when_a_server_process_keeps_what_it_said(engine_server: EngineServer) -> None:
    async with processes(engine_server.url, 1) as (channels,), connect(channels, user="ann") as ann:
        joined = await ann.join("room:a")
        async with Publisher(engine_server.url, timeout=PATIENCE) as publisher:
            await publisher.akick("ann", "room:a", reason="out")
            assert await joined.receive("kicked") == {"reason": "out"}
            await publisher.adisconnect("ann", code=4001)
        assert await closed(ann) == 4001


async def test_a_broadcast_that_disconnects_is_waited_for_at_the_flush(engine_server: EngineServer) -> None:
    async with processes(engine_server.url, 1) as (channels,), connect(channels, user="ann") as ann:
        async with Publisher(engine_server.url, timeout=PATIENCE) as publisher:
            publisher.broadcast("ann", "disconnect", {})
            await publisher.aflush()
        assert await closed(ann) == 1001


async def test_a_publisher_that_nobody_hears_raises_and_takes_it_back(engine_server: EngineServer) -> None:
    async with Publisher(engine_server.url, timeout=0.5) as publisher:
        with pytest.raises(PublishError, match="no server process of the application has acknowledged 1") as caught:
            await publisher.adisconnect("ann")
        assert (caught.value.left, caught.value.unheard) == (1, 1)
        async with processes(engine_server.url, 1) as (channels,), connect(channels, user="ann") as ann:
            with anyio.fail_after(PATIENCE):
                while True:
                    try:
                        await publisher.akick("ann", "room:nowhere")
                        break
                    except PublishError:
                        continue
            assert await ann.heartbeat() == Reply("ok"), "the disconnect was taken back"


def test_what_a_broadcast_commanded_and_nobody_heard_is_an_error_at_the_close(engine_server: EngineServer) -> None:
    publisher = Publisher(engine_server.url, timeout=1)
    publisher.broadcast("ann", "disconnect", {})
    with pytest.raises(
        PublishError, match="no server process of the application has acknowledged 1 commands"
    ) as caught:
        publisher.close()
    assert caught.value.unheard == 1
    publisher.close()


def test_an_engine_that_is_away_is_the_cause() -> None:
    with (
        pytest.raises(PublishError, match=r"acknowledged 1 commands .*: ConnectionError") as caught,
        Publisher(f"redis://{HOST}:{free_port()}", timeout=0.5) as publisher,
    ):
        publisher.disconnect("ann")
    assert caught.value.__cause__ is not None


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "starlette_channels", *arguments]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


async def test_the_command_line_disconnects_and_kicks(engine_server: EngineServer) -> None:
    url = engine_server.url
    async with processes(url, 1) as (channels,), connect(channels, user="ann") as ann:
        joined = await ann.join("room:a")
        for arguments in (
            ("kick", url, "ann", "room:a", "--reason", "out"),
            ("disconnect", url, "ann", "--code", "4001", "--reason", "moved"),
        ):
            done = await anyio.to_thread.run_sync(command, *arguments, "--timeout", "15")
            assert (done.returncode, done.stderr) == (0, "")
            if arguments[0] == "kick":
                assert await joined.receive("kicked") == {"reason": "out"}
        assert await closed(ann) == 4001


def test_the_command_line_says_what_is_wrong(server: EngineServer) -> None:
    nowhere = f"redis://secret:password@{HOST}:{free_port()}"
    for arguments, code, said in (
        (["disconnect", "memory://", "ann"], 2, "memory:// reaches no other process"),
        (["disconnect", server.url, "ann", "--code", "99"], 2, "a server may send 1000"),
        (["disconnect", server.url, "ann", "--timeout", "0.5"], 1, "no server process of the application has"),
        (["kick", nowhere, "ann", "room:a", "--timeout", "0.5"], 1, "acknowledged 1 commands (disconnect, kick)"),
    ):
        done = command(*arguments)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert "secret" not in done.stderr
        assert "Traceback" not in done.stderr
