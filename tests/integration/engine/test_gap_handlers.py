"""What an application is told of losses between processes, and what its clients see of it."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from collections.abc import AsyncGenerator, Generator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import redis

from starlette_channels import Broadcast, Broker, Channels, Gap, Handshake, Publisher, Reply, Socket, channel
from starlette_channels.pubsub.relay.channel_names import COMMANDS
from starlette_channels.pubsub.relay.command_log import CommandLog
from starlette_channels.pubsub.relay.envelope import Kind, seal
from starlette_channels.testing import connect
from tests.support.engines import EngineServer, engine
from tests.support.relaying import Ear

pytestmark = pytest.mark.anyio

STRANGER = b"stranger"


@pytest.fixture(scope="module")
def server() -> Generator[EngineServer]:
    with engine("redis") as running:
        yield running


class Process:
    """Another process, of which some broadcasts get lost."""

    def __init__(self, server: EngineServer) -> None:
        self._redis = redis.Redis.from_url(server.url)
        self._numbers: dict[str, int] = {}

    async def publish(self, topic: str, event: str = "told", *, lose: int = 0, kind: Kind = Kind.JSON) -> None:
        """Publish on a topic, after some that were lost; again and again, until there is somebody who hears it."""
        number = self._numbers[topic] = self._numbers.get(topic, 0) + lose + 1
        await self._publish(f"t:{topic}", seal(kind, STRANGER, 1, number, f"t:{topic}", event, b'{"n":%d}' % number))

    async def say(self, channel: str, body: bytes) -> None:
        """Say something on a channel about commands, until there is somebody who hears it."""
        await self._publish(channel, seal(Kind.COMMAND, STRANGER, 1, 1, channel, "", body))

    async def _publish(self, channel: str, data: bytes) -> None:
        with anyio.fail_after(10):
            while not await anyio.to_thread.run_sync(self._redis.publish, f"channels:{channel}", data):
                await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        self._redis.close()


@pytest.fixture
def process(server: EngineServer) -> Generator[Process]:
    one = Process(server)
    yield one
    one.close()


@channel("room:*")
async def room(socket: Socket, payload: Any) -> None:
    socket.subscribe("news")


@room.info(Gap)
async def lost(socket: Socket, gap: Gap) -> None:
    socket.push("resync", {"topic": gap.topic, "lost": gap.lost, "publisher": gap.publisher})


@room.info(Broadcast)
async def heard(socket: Socket, message: Broadcast) -> None:
    socket.push("heard", {"topic": message.topic})


@channel("plain:*")
async def plain(socket: Socket, payload: Any) -> None:
    """Do without a handler of gaps."""


async def who(conn: Handshake) -> dict[str, Any]:
    return {"id": conn.params.get("user")}


@pytest.fixture
async def channels(server: EngineServer) -> AsyncGenerator[Channels[Any]]:
    those = Channels([room, plain], connect=who, socket_id=lambda user: user["id"], broker=server.url)
    async with those.lifespan():
        yield those


def told(topic: str, lost: int) -> dict[str, Any]:
    return {"topic": topic, "lost": lost, "publisher": STRANGER.hex()}


async def test_channels_with_a_handler_are_told_of_a_gap_and_then_get_what_came_after_it(
    channels: Channels[Any], process: Process
) -> None:
    async with connect(channels) as client:
        joined = await client.join("room:a")
        other = await client.join("plain:a")
        for topic in ("room:a", "plain:a"):
            await process.publish(topic)
            await process.publish(topic, lose=3)
        assert await joined.receive("told") == {"n": 1}
        assert (await joined.receive("told"), await joined.receive("resync")) == ({"n": 5}, told("room:a", 3))
        assert (await other.receive("told"), await other.receive("told")) == ({"n": 1}, {"n": 5})
        assert await other.received_nothing()
        counts = channels.statistics().counts
        assert (counts["relay_lost"], counts["relay_gap"], counts.get("unmatched_info")) == (6, 2, None)


async def test_a_topic_that_a_handler_subscribed_to_has_gaps_as_well(channels: Channels[Any], process: Process) -> None:
    async with connect(channels) as client:
        joined = await client.join("room:a")
        await process.publish("news")
        await process.publish("news", lose=1)
        assert await joined.receive("heard") == {"topic": "news"}
        assert await joined.receive("resync") == told("news", 1)
        assert await joined.receive("heard") == {"topic": "news"}


async def test_a_gap_on_a_topic_that_is_called_like_a_client_is_nothing_to_its_connection(
    channels: Channels[Any], process: Process
) -> None:
    async with connect(channels, user="room:ann") as ann, connect(channels, user="bob") as bob:
        joined = await bob.join("room:ann")
        await process.publish("room:ann")
        await process.publish("room:ann", lose=3)
        assert await joined.receive("resync") == told("room:ann", 3)
        assert await ann.heartbeat() == Reply("ok")


async def test_a_disconnect_reaches_the_connections_of_other_processes(
    server: EngineServer, channels: Channels[Any], process: Process
) -> None:
    async with connect(channels, user="ann") as ann:
        other = Channels([room], broker=server.url)
        other.disconnect("ann")
        assert await ann.closed() == 1001
        async with other.lifespan():
            pass


async def test_so_do_codes_and_kicks_and_those_of_a_publisher(
    server: EngineServer, channels: Channels[Any], process: Process
) -> None:
    async with connect(channels, user="ann") as ann, connect(channels, user="bob") as bob:
        rooms = [await client.join(topic) for client in (ann, bob) for topic in ("plain:a", "plain:b")]
        other = Channels([room], broker=server.url)
        other.kick("ann", "plain:a", reason="flooding")
        assert await rooms[0].receive("kicked") == {"reason": "flooding"}
        await rooms[0].receive("phx_close")
        other.disconnect("ann", code=4003, reason="moved")
        assert await ann.closed() == 4003
        async with Publisher(server.url) as publisher:
            publisher.kick("bob", "plain:b")
            await rooms[3].receive("phx_close")
            await publisher.adisconnect("bob", code=4004)
            assert await bob.closed() == 4004
        async with other.lifespan():
            pass


async def test_a_plain_broadcast_of_a_publisher_disconnects_too(
    server: EngineServer, channels: Channels[Any], process: Process
) -> None:
    async with connect(channels, user="plain:ann") as ann:
        await ann.join("plain:ann")
        await process.publish("plain:ann", "disconnect")  # as a client's, by way of a handler: no command
        async with Publisher(server.url) as publisher:
            assert await ann.heartbeat() == Reply("ok")
            publisher.broadcast("plain:ann", "disconnect", {})
            await publisher.aflush()
            assert await ann.closed() == 1001


async def test_a_command_that_is_not_known_here_is_counted_and_where_there_are_none_it_is_junk(
    channels: Channels[Any], process: Process
) -> None:
    log = CommandLog(STRANGER, lambda: 0.5)
    log.say(b"ann", b"later", b'{"type":"later"}', 0)
    async with connect(channels, user="ann") as ann:
        await ann.join("plain:a")
        await process.publish("plain:a", kind=Kind.COMMAND)
        for message in (*log.outgoing(0)[0], b"junk"):
            await process.say(COMMANDS, message)
        with anyio.fail_after(10):
            while not channels.statistics().counts.get("unknown_command"):
                await anyio.lowlevel.checkpoint()
            while channels.statistics().counts.get("relay_junk") != 2:
                await anyio.lowlevel.checkpoint()
        assert await ann.heartbeat() == Reply("ok")


async def test_junk_is_counted_and_harms_nobody(server: EngineServer, process: Process) -> None:
    broker = Broker(server.url)
    ear = Ear(broker, "t")
    await process.publish("t")
    junk = redis.Redis.from_url(server.url)
    for data in (b"", b"junk", b"\x91" * 10_000, "é"):
        await anyio.to_thread.run_sync(junk.publish, "channels:t:t", data)
    await process.publish("t")
    await ear.until(lambda: ear.numbers == [1, 2])
    assert broker.counts == {"relay_junk": 4}
    junk.close()
    await broker.close()
