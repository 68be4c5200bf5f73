"""Redis that refuses, hangs by half, or was given settings: what is a sign of life, and what is none."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import anyio
import pytest
import redis

from starlette_channels import Broker
from starlette_channels.pubsub.engines import redis as redis_engine
from tests.cluster.proxy import Network, Proxy
from tests.integration.engine.test_redis_kinds import wait_until
from tests.support.engines import EngineServer, engine, running, valkey
from tests.support.ports import HOST, free_port
from tests.support.relaying import PATIENCE, Ear, brokers
from tests.support.servers import ROOT

pytestmark = pytest.mark.anyio

PERIOD = 0.1


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that asks the server often whether it is there."""
    monkeypatch.setattr(redis_engine, "PING_SECONDS", PERIOD)


@pytest.fixture(scope="module")
def network() -> Generator[Network]:
    with contextlib.closing(Network()) as one:
        yield one


@contextlib.contextmanager
def admin(server: EngineServer) -> Generator["redis.Redis"]:
    with redis.Redis(host=HOST, port=server.port) as client:
        yield client


async def becomes(condition: Callable[[], bool]) -> None:
    """Wait for what a server tells only those who ask."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - as said
            await anyio.sleep(0.01)


def pings(client: "redis.Redis") -> int:
    """How often the server was asked with PING, and how often it refused."""
    return client.info("commandstats").get("cmdstat_ping", {}).get("calls", 0)


def refusals(client: "redis.Redis", code: str) -> int:
    return client.info("errorstats").get(f"errorstat_{code}", {}).get("count", 0)


async def survives(server: EngineServer, client: "redis.Redis", code: str, user: str = "") -> None:
    """See that refused PINGs do not end a connection on which all else works."""
    url = server.url.replace("://", f"://{user}")
    async with brokers(url) as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        before = refusals(client, code)
        await becomes(lambda: refusals(client, code) >= before + 20)
        one.broadcast("t", "e", {"n": 1})
        await ear.until(lambda: ear.numbers == [1])
        assert one.counts == two.counts == {}


async def test_a_server_whose_snapshots_fail_lives() -> None:
    def command(port: int, folder: Path) -> list[str]:
        data = folder / "data"
        data.mkdir(exist_ok=True)
        return [*valkey(port, data), "--save", "3600 1"]

    with running("redis", command) as server, admin(server) as client:
        shutil.rmtree(str(client.config_get("dir")["dir"]))
        client.set("x", 1)
        client.bgsave()
        await becomes(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        await survives(server, client, "MISCONF")


async def test_a_replica_that_has_lost_its_primary_lives() -> None:
    with engine("redis") as server, admin(server) as client:
        client.config_set("replica-serve-stale-data", "no")
        client.replicaof(HOST, free_port())
        await survives(server, client, "MASTERDOWN")
        client.replicaof("NO", "ONE")


async def test_a_server_that_loads_its_data_lives() -> None:
    def command(port: int, folder: Path) -> list[str]:
        slowly = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
        return [*valkey(port, folder), *(slowly if (folder / "dump.rdb").exists() else ())]

    with running("redis", command) as server:
        with admin(server) as client:
            for first in range(0, 20_000, 5_000):
                client.mset({f"key:{number}": "x" * 20 for number in range(first, first + 5_000)})
            client.save()
        server.restart()
        with admin(server) as client:
            assert client.info("persistence")["loading"] == 1
            await survives(server, client, "LOADING")
            assert client.info("persistence")["loading"] == 1


async def test_a_user_who_may_not_ping_is_told_so_and_lives() -> None:
    with engine("redis") as server, admin(server) as client:
        client.execute_command(
            *[
                "ACL",
                "SETUSER",
                "chat",
                "on",
                ">secret",
                "resetchannels",
                "&channels:*",
                "-@all",
                "+publish",
                "+subscribe",
                "+unsubscribe",
            ]
        )
        await survives(server, client, "NOPERM", "chat:secret@")


async def test_what_is_said_while_a_server_runs_a_script_arrives_when_it_ends() -> None:
    with engine("redis") as server, admin(server) as client:
        client.config_set("busy-reply-threshold", 50)
        async with brokers(server.url) as (one, two):
            ear = Ear(two, "t")
            await ear.hears(one)
            script = "local t = redis.call('TIME') repeat local u = redis.call('TIME') until u[1] - t[1] > 1"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, client.eval, script, 0)
                await anyio.sleep(0.2)
                one.broadcast("t", "e", {"n": 1})
            assert refusals(client, "BUSY") > 0
            await ear.until(lambda: ear.numbers == [1])
            assert ear.lost == 0


async def test_commands_that_hang_are_noticed_while_messages_of_others_still_come(network: Network) -> None:
    with engine("redis") as server, contextlib.closing(Proxy(network, server.port)) as way:
        far = server.url.replace(str(server.port), str(way.port))
        async with brokers(far, 1) as (broker,), brokers(server.url, 1) as (other,):
            ear = Ear(broker, "t")
            await ear.hears(other)
            assert broker.counts == {}
            with way.deaf():
                began = time.monotonic()
                while not broker.counts["relay_disconnected"]:
                    other.broadcast("t", "e", {"n": 1})
                    await anyio.sleep(PERIOD / 10)
                    assert time.monotonic() - began < PATIENCE
            heard = len(ear.heard)
            assert heard > 5, "they came all the time"
            await ear.hears(other)


async def test_a_dead_connection_is_noticed_before_there_is_something_to_publish(network: Network) -> None:
    with engine("redis") as server, contextlib.closing(Proxy(network, server.port)) as way:
        far = server.url.replace(str(server.port), str(way.port))
        async with brokers(far, 1) as (broker,):
            broker.broadcast("t", "e", {})
            with admin(server) as client:
                await becomes(lambda: len(client.client_list()) == 3)
            with way.deaf():
                await becomes(lambda: broker.counts["relay_disconnected"] > 0)


QUIET = """
import sys, threading
from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.engines import redis
redis.PING_SECONDS = 0.1
broker = Broker(sys.argv[1])
broker.broadcast("t", "e", {})
broker._relay.flush(10)
print("ready", flush=True)
sys.stdin.readline()
print(dict(broker.counts), flush=True)
"""


def test_a_process_that_was_stopped_reads_before_it_judges() -> None:
    with engine("redis") as server:
        command = [sys.executable, "-c", QUIET, server.url]
        with (
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
            admin(server) as client,
        ):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in range(3):
                asked = pings(client)
                wait_until(lambda asked=asked: pings(client) > asked + 1)
                process.send_signal(signal.SIGSTOP)
                time.sleep(10 * PERIOD)  # that is what it is about
                process.send_signal(signal.SIGCONT)
            told, _ = process.communicate("\n", timeout=20)
            assert told == "{}\n"


@pytest.mark.parametrize(
    "option",
    [
        "decode_responses=true",
        "encoding=utf-16",
        "encoding_errors=ignore",
        "health_check_interval=1",
        "legacy_responses=false",
        "max_connections=1",
        "protocol=3",
        "retry_on_error=all",
        "retry_on_timeout=true",
        "single_connection_client=true",
        "socket_timeout=0.05",
        "timeout=0.05",
    ],
)
async def test_what_the_relay_depends_on_is_as_it_needs_it_whatever_the_address_says(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    with engine("redis") as server:
        async with brokers(f"{server.url}?{option}") as (one, two):
            assert f"The option {option.partition('=')[0]} in the address of a broker has no effect" in caplog.text
            ear = Ear(two, "t")
            await ear.hears(one)
            await anyio.sleep(5 * PERIOD)  # longer than the time limits above
            one.broadcast("t", "e", {"n": 1, "é": "\u4e16"})
            await ear.until(lambda: ear.numbers == [1])
            assert one.counts == two.counts == {}


@pytest.mark.parametrize("option", ["client_name=chat", "socket_connect_timeout=5", "socket_keepalive=true", "db=1"])
async def test_what_an_address_may_say_of_its_connections_holds(option: str) -> None:
    with engine("redis") as server, admin(server) as client:
        async with brokers(f"{server.url}?{option}") as (one, two):
            ear = Ear(two, "t")
            await ear.hears(one)
            name, _, value = option.partition("=")
            if name in ("client_name", "db"):
                key = {"client_name": "name"}.get(name, name)
                assert sum(entry[key] == value for entry in client.client_list()) == 4
            assert one.counts == two.counts == {}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host?nonsense=1", "nonsense; it may have .*buffer_seconds.*client_name.*prefix"),
        ("redis://host?ssl_ca_certs=ca.pem", "ssl_ca_certs: an option of rediss://"),
        ("rediss://host?ssl_cert_reqs=perhaps", "perhaps"),
        ("rediss://host?ssl_ca=ca.pem", "ssl_ca; it may have .*ssl_ca_certs"),
        ("redis://host?socket_connect_timeout=soon", "Invalid value for 'socket_connect_timeout'"),
        ("redis://host?socket_connect_timeout=0", "socket_connect_timeout must be more than 0"),
        ("redis://host?socket_read_size=0", "socket_read_size must be more than 0"),
        ("redis+cluster://host?socket_read_size=-1", "socket_read_size must be more than 0"),
        ("redis+cluster://host?db=1", "has no databases"),
        ("redis+cluster://host?nonsense=1", "nonsense; it may have"),
        ("redis+sentinel://host/name/first", "redis\\+sentinel://host:26379,other:26379/name/0"),
        ("nats://host?nonsense=1", "nonsense; it may have .*buffer_seconds.*credentials"),
        ("zenoh://?nonsense=1", "nonsense; it may have .*buffer_seconds.*config"),
    ],
)
def test_an_option_that_is_unknown_or_wrong_is_refused_with_those_that_are_known(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Broker(url)


async def test_databases_of_one_server_are_apart_and_all_ways_to_name_one_lead_to_it() -> None:
    with engine("redis") as server:
        urls = [server.url, f"{server.url}/0", f"{server.url}/1", f"{server.url}?db=1", f"{server.url}/11"]
        async with contextlib.AsyncExitStack() as stack:
            those = [(await stack.enter_async_context(brokers(url, 1)))[0] for url in urls]
            ears = [Ear(broker, "t") for broker in those]
            for one, two in ((0, 1), (1, 0), (2, 3), (3, 2)):
                await ears[one].hears(those[two])
            for number, broker in enumerate(those):
                broker.broadcast("t", "e", {"n": number})
            for ear, other in zip(ears, (1, 0, 3, 2), strict=False):
                await ear.until(lambda ear=ear, other=other: other in ear.numbers)
        assert [sorted(ear.numbers) for ear in ears] == [[0, 1], [0, 1], [2, 3], [2, 3], [4]]
