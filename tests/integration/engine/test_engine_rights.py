"""What an engine allows: as much as the guide says is enough, and what is missing is never missed in silence."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import contextlib
import re
import shlex
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import redis

from starlette_channels import Broker, Publisher, PublishError
from starlette_channels.pubsub.engines import redis as redis_engine
from tests.support.engines import EngineServer, cluster_node, engine, nats, running
from tests.support.ports import HOST, free_port
from tests.support.relaying import PATIENCE, Ear, brokers
from tests.support.servers import ROOT

pytestmark = pytest.mark.anyio

SECRET = "s3cr/t"
QUOTED = "s3cr%2Ft"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def works(url: str, seconds: float = 0.0) -> None:
    """Use all that relays do on an engine, and then say nothing for a while."""
    async with brokers(url) as (one, two):
        ear, other = Ear(two, "t"), Ear(two, "other")
        await ear.hears(one)
        ear.leave()
        await anyio.sleep(seconds)
        await other.hears(one)
        assert one.counts == two.counts == {}


async def refuses(url: str, said: str, log: pytest.LogCaptureFixture) -> None:
    """See that it is counted and logged what is wrong, again and again, and not all the time."""
    log.clear()
    began = time.monotonic()
    async with brokers(url, 1) as (one,):
        Ear(one, "t")
        with anyio.fail_after(PATIENCE):
            while one.counts["relay_disconnected"] < 3:
                await anyio.lowlevel.checkpoint()
        assert time.monotonic() - began > 0.05 + 0.1
    assert re.search(said, log.text)
    assert "s3cr" not in log.text


async def keeps_from_publishing(url: str, said: str, log: pytest.LogCaptureFixture) -> None:
    """See that who publishes is told what is wrong, and the log, too."""
    log.clear()
    publisher = Publisher(url, timeout=0.5)
    publisher.broadcast("t", "e", {})
    for end in (publisher.aflush, publisher.aclose):
        with pytest.raises(PublishError, match=said) as caught:
            await end()
        assert "s3cr" not in str(caught.value)
    assert re.search(said, log.text)
    assert "s3cr" not in log.text


# ---- Redis


def rights(where: str) -> list[str]:
    """What the guide tells to type into Redis, with a password."""
    guide = (ROOT / "docs" / "guides" / "engines.md").read_text()
    (line,) = re.findall(rf"^# {where}\n(ACL SETUSER .*)$", guide, re.MULTILINE)
    return shlex.split(line.replace(">password", f">{SECRET}"))


@contextlib.contextmanager
def admin(server: EngineServer) -> Generator["redis.Redis"]:
    with redis.Redis(host=HOST, port=server.port, decode_responses=True) as client:
        yield client


@pytest.fixture(scope="module")
def server() -> Generator[EngineServer]:
    with engine("redis") as running_one:
        yield running_one


@pytest.fixture
def asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that soon asks a silent server whether it is there."""
    monkeypatch.setattr(redis_engine, "PING_SECONDS", 0.1)


@pytest.mark.usefixtures("asks_often")
async def test_the_rights_in_the_guide_are_enough_for_redis(server: EngineServer) -> None:
    with admin(server) as client:
        client.execute_command(*rights("one server, or sentinels"))
        client.acl_log_reset()
        await works(f"redis://chat:{QUOTED}@{HOST}:{server.port}/1", 0.5)
        assert client.acl_log() == []


@pytest.mark.usefixtures("asks_often")
async def test_the_rights_in_the_guide_are_enough_for_a_cluster() -> None:
    with cluster_node() as node, admin(node) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        client.execute_command(*rights("a cluster, on each node"))
        with anyio.fail_after(PATIENCE):
            while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")):
                await anyio.lowlevel.checkpoint()
        await works(f"redis+cluster://chat:{QUOTED}@{HOST}:{node.port}", 0.5)
        assert client.acl_log() == []


async def test_a_right_that_is_missing_in_redis_is_in_the_log(
    server: EngineServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://chat:{QUOTED}@{HOST}:{server.port}"
    with admin(server) as client:
        for lacking, said in (("-publish", "'publish' command"), ("resetchannels", "access a channel")):
            client.execute_command(*rights("one server, or sentinels"), lacking)
            await keeps_from_publishing(url, f"NoPermissionError: .*{said}", caplog)
        for lacking, said in (("-subscribe", "'subscribe' command"), ("resetchannels", "access a channel")):
            client.execute_command(*rights("one server, or sentinels"), lacking)
            await refuses(url, f"NoPermissionError: .*{said}", caplog)


# ---- NATS


@contextlib.contextmanager
def nats_server(**authorization: Any) -> Generator[EngineServer]:
    def command(port: int, folder: Path) -> list[str]:
        return nats(port, folder, {"authorization": authorization})

    with running("nats", command) as one:
        yield one


async def test_the_rights_in_the_guide_are_enough_for_nats() -> None:
    guide = (ROOT / "docs" / "guides" / "engines.md").read_text()
    ((publish, subscribe),) = re.findall('permissions: { publish: "(.*)", subscribe: "(.*)" }', guide)
    permissions = {"publish": publish, "subscribe": subscribe}
    with nats_server(users=[{"user": "chat", "password": SECRET, "permissions": permissions}]) as one:
        await works(f"nats://chat:{QUOTED}@{HOST}:{one.port}")


async def test_a_right_that_is_missing_in_nats_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    speaker = {"user": "speaker", "password": SECRET, "permissions": {"publish": ">", "subscribe": "other.>"}}
    listener = {"user": "listener", "password": SECRET, "permissions": {"publish": "other.>", "subscribe": ">"}}
    with nats_server(users=[speaker, listener]) as one:
        said = "permissions violation for {} to"
        await refuses(f"nats://speaker:{QUOTED}@{HOST}:{one.port}", said.format("subscription"), caplog)
        await keeps_from_publishing(f"nats://listener:{QUOTED}@{HOST}:{one.port}", said.format("publish"), caplog)


async def test_nats_takes_a_token_and_one_user_for_all_servers() -> None:
    with nats_server(token=SECRET) as one:
        await works(f"nats://{QUOTED}@{HOST}:{one.port}")
    with nats_server(user="chat", password=SECRET) as one:
        gone = f"{HOST}:{free_port()}"
        await works(f"nats://chat:{QUOTED}@{gone},{HOST}:{one.port}")
        await works(f"nats://chat:{QUOTED}@{gone},chat:{QUOTED}@{HOST}:{one.port}")


@contextlib.asynccontextmanager
async def somebody_else(heard: bytearray) -> AsyncGenerator[str]:
    """One who speaks as a NATS server without TLS does, and keeps what it is told."""

    async def greet(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(b'INFO {"auth_required": true, "max_payload": 1000000}\r\n')
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    data = await stream.receive()
                    heard.extend(data)
                    await stream.send(b"PONG\r\n" * data.count(b"PING\r\n"))

    async with await anyio.create_tcp_listener(local_host=HOST) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, greet)
        yield f"{HOST}:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


async def test_a_password_does_not_go_to_a_nats_server_that_does_no_tls(caplog: pytest.LogCaptureFixture) -> None:
    heard = bytearray()
    async with somebody_else(heard) as server:
        await refuses(f"tls://chat:{QUOTED}@{server}", "the NATS server does no TLS", caplog)
    assert heard == b""


async def test_nats_is_asked_whether_it_has_everything_after_it_was_sent() -> None:
    heard = bytearray()
    async with somebody_else(heard) as server, Publisher(f"nats://{server}") as publisher:
        publisher.broadcast("t", "e", {})
        await publisher.aflush()
        assert heard.index(b"PUB channels.") < heard.rindex(b"PING")


# ---- addresses


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("tls://host?ca=nowhere.pem", "a broker's address for NATS: .*No such file"),
        (f"tls://host?ca={__file__}", "a broker's address for NATS: .*NO_CERTIFICATE_OR_CRL_FOUND"),
        ("nats://host?credentials=nowhere.creds", "a broker's address for NATS: .*No such file"),
        ("nats://host?ca=ca.pem", "ca, cert and key are options of tls://host:4222"),
        ("nats://a:s3cr@one,b:s3cr@two", "all servers of a cluster have the same user and password"),
        ("zenoh+tls://host?ca=nowhere.pem", "the file nowhere.pem, which does not exist"),
        (f"zenoh://host?ca={__file__}", r"zenoh\+tls://host:7447\?ca=FILE"),
        ("zenoh+tls://", r"zenoh\+tls://host:7447\?ca=FILE"),
    ],
)
def test_a_wrong_address_is_an_error_at_once(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Broker(url)
    assert "s3cr" not in str(caught.value)
