"""Redis that is more than one server: a cluster, and a primary that sentinels watch."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import redis

from starlette_channels import Broker, Publisher
from starlette_channels.pubsub.engines import redis as redis_engine
from starlette_channels.testing import connect
from tests.support.commanding import closed, processes
from tests.support.engines import EngineServer, cluster_node, engine, running, sentinel, valkey
from tests.support.ports import HOST
from tests.support.relaying import Ear, all_is_accounted_for, broadcast, brokers

pytestmark = pytest.mark.anyio

SECONDS = 20.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for servers that tell each other something."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def admin(server: EngineServer) -> Generator["redis.Redis"]:
    with redis.Redis(host=HOST, port=server.port, decode_responses=True) as client:
        yield client


def says(client: "redis.Redis", command: str, section: str, text: str) -> bool:
    answer = client.execute_command(command, section)
    lines = [f"{key}:{value}" for key, value in answer.items()] if isinstance(answer, dict) else str(answer).split()
    return text in lines


def fails_over(client: "redis.Redis") -> bool:
    """Tell a sentinel to make the replica the primary, if it thinks well enough of it by now."""
    try:
        client.execute_command("SENTINEL", "FAILOVER", "main")
    except redis.ResponseError:
        return False
    return True


def slots(server: EngineServer, command: str, *arguments: object) -> None:
    with admin(server) as client:
        client.execute_command("CLUSTER", command, *arguments)


@pytest.fixture
def cluster() -> Generator[list[EngineServer]]:
    """Two nodes, with half of the slots each."""
    with cluster_node() as one, cluster_node() as two:
        slots(one, "ADDSLOTSRANGE", 0, 8191)
        slots(two, "ADDSLOTSRANGE", 8192, 16383)
        with admin(two) as client:
            bus = client.config_get("cluster-port")
        slots(one, "MEET", HOST, two.port, bus["cluster-port"])
        for node in (one, two):
            with admin(node) as client:
                wait_until(lambda client=client: says(client, "CLUSTER", "INFO", "cluster_state:ok"))
                wait_until(lambda client=client: says(client, "CLUSTER", "INFO", "cluster_known_nodes:2"))
        yield [one, two]


async def test_a_cluster_has_each_topic_on_one_of_its_nodes(cluster: list[EngineServer]) -> None:
    url = f"redis+cluster://{HOST}:{cluster[1].port},{HOST}:{cluster[0].port}"
    topics = [f"room:{number}" for number in range(20)]
    async with brokers(url) as (one, two):
        ears = [Ear(two, topic) for topic in topics]
        for ear in ears:
            await ear.hears(one)
        for number in range(100):
            for topic in topics:
                one.broadcast(topic, "e", {"n": number})
        for ear in ears:
            await ear.until(lambda ear=ear: len(ear.numbers) >= 100)
            assert ear.numbers == list(range(100))
        for ear in ears[1:]:
            ear.leave()
        for node in cluster:
            with admin(node) as client:
                assert client.execute_command("PUBSUB", "SHARDCHANNELS") != []
        assert one.counts == two.counts == {}


async def test_a_topic_that_moves_to_another_node_is_found_there(cluster: list[EngineServer]) -> None:
    here, there = cluster
    async with brokers(f"redis+cluster://{HOST}:{here.port}") as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        await broadcast(one, range(500))
        with admin(here) as client:
            slot = int(str(client.execute_command("CLUSTER", "KEYSLOT", "channels:t:t")))
            ids = {node: node_id(node) for node in cluster}
        source, target = (here, there) if slot < 8192 else (there, here)
        for node in (target, source):
            slots(node, "SETSLOT", slot, "NODE", ids[target])
        await broadcast(one, range(500, 1_000))
        await all_is_accounted_for(ear, 1_000)
        before = len(ear.heard)
        await ear.hears(one)
        assert len(ear.heard) > before


def node_id(node: EngineServer) -> str:
    with admin(node) as client:
        return str(client.execute_command("CLUSTER", "MYID"))


async def test_a_disconnect_reaches_the_processes_of_a_cluster_and_those_that_sentinels_lead(
    cluster: list[EngineServer],
) -> None:
    with engine("redis") as primary, sentinel(primary) as watcher:
        for url in (
            f"redis+cluster://{HOST}:{cluster[0].port}",
            f"redis+sentinel://{HOST}:{watcher.port}/main/0",
        ):
            async with processes(url) as (one, two), connect(two, user="ann") as ann:
                one.disconnect("ann", code=4001)
                assert await closed(ann) == 4001
            async with processes(url, 1) as (there,), connect(there, user="ann") as ann:
                async with Publisher(url, timeout=SECONDS) as publisher:
                    await publisher.adisconnect("ann", code=4002)
                assert await closed(ann) == 4002


async def test_the_primary_of_a_name_is_found_through_sentinels(tmp_path: Path) -> None:
    with engine("redis") as primary, engine("redis") as replica:
        with admin(replica) as client:
            client.execute_command("REPLICAOF", HOST, primary.port)
            wait_until(lambda: says(client, "INFO", "replication", "master_link_status:up"))
        with sentinel(primary) as watcher:
            url = f"redis+sentinel://{HOST}:{watcher.port}/main/0"
            async with brokers(url) as (one, two):
                ear = Ear(two, "t")
                await ear.hears(one)
                await broadcast(one, range(500))
                with admin(watcher) as client:
                    wait_until(lambda: bool(client.execute_command("SENTINEL", "REPLICAS", "main")))
                    wait_until(lambda: fails_over(client))
                await broadcast(one, range(500, 1_000))
                with admin(replica) as client:
                    wait_until(lambda: says(client, "INFO", "replication", "role:master"))
                await all_is_accounted_for(ear, 1_000)
                with admin(replica) as client:
                    wait_until(lambda: "channels:t:t" in str(client.execute_command("PUBSUB", "CHANNELS")))
                await broadcast(one, range(1_000, 1_100))
                await all_is_accounted_for(ear, 1_100)


async def test_sentinels_that_do_not_answer_are_no_reason_to_leave_a_primary_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_engine, "PING_SECONDS", 0.2)
    with engine("redis") as primary, sentinel(primary) as watcher:
        url = f"redis+sentinel://{HOST}:{watcher.port}/main"
        async with brokers(url) as (one, two), brokers(f"{url}/1") as (other, another):
            ear, stranger = Ear(two, "t"), Ear(another, "t")
            await ear.hears(one)
            await stranger.hears(other)
            watcher.kill()
            with admin(primary) as client:
                asked = pings(client)
                wait_until(lambda: pings(client) > asked + 20)
            await broadcast(one, range(100))
            await all_is_accounted_for(ear, 100)
            await stranger.hears(other)
            assert one.counts == two.counts == {}
            assert stranger.numbers == [], "another database of the same server"


def pings(client: "redis.Redis") -> int:
    return client.info("commandstats").get("cmdstat_ping", {}).get("calls", 0)


@pytest.mark.parametrize("where", ["", "?db=1"])
async def test_a_socket_of_the_machine_is_an_address_as_well(where: str) -> None:
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        path = Path(folder) / "socket"

        def command(port: int, folder: Path) -> list[str]:
            return [*valkey(port, folder), "--unixsocket", str(path)]

        with running("redis", command):
            async with brokers(f"unix://{path}{where}") as (one, two):
                ear = Ear(two, "t")
                await ear.hears(one)
                await broadcast(one, range(100))
                await all_is_accounted_for(ear, 100)
                assert one.counts == two.counts == {}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+cluster://host/0", "redis+cluster://host:6379,other:6379"),
        ("redis+cluster://", "redis+cluster://host:6379,other:6379"),
        ("redis+cluster://host:port", "what follows the last colon is no port"),
        ("redis+sentinel://host", "redis+sentinel://host:26379,other:26379/name/0"),
        ("redis+sentinel://host/name?nonsense=1", "nonsense"),
    ],
)
def test_a_wrong_address_is_an_error_at_once(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Broker(url)
