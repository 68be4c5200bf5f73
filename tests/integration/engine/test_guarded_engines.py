"""Engines with a password and TLS: who has both is served, who has not is told why, and the log keeps the secret."""

import logging
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from starlette_channels import Broker, Publisher
from tests.support.certificates import Authority, Certificate
from tests.support.guarded import GUARDED, Guard, GuardedEngine
from tests.support.relaying import Ear, brokers

pytestmark = pytest.mark.anyio

PASSWORD = "s3cr/t:p@ss?w%rd"
WRONG = "wr0ng:p@ss"

LONG = 60.0
"""Servers start anew several times, which takes long where many tests run at once."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Papers:
    """All that can be shown to the other side, right and wrong."""

    ca: Path
    stranger: Path
    right: Certificate
    expired: Certificate


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    authority = Authority(folder / "known")
    stranger = Authority(folder / "stranger")
    return Papers(authority.file, stranger.file, authority.certificate(), authority.certificate(is_expired=True))


@pytest.fixture(params=list(GUARDED), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def guard(name: str, papers: Papers) -> Guard:
    return Guard(PASSWORD, papers.right)


@pytest.fixture(scope="module")
def guarded(name: str, guard: Guard) -> Generator[GuardedEngine]:
    with GUARDED[name](guard) as engine:
        yield engine


@pytest.fixture
def is_demanding(guarded: GuardedEngine, guard: Guard, papers: Papers) -> Generator[None]:
    """Let the server have another password and an expired certificate for the time of a test."""
    guard.password, guard.certificate = f"not-{PASSWORD}", papers.expired
    guarded.restart()
    yield
    guard.password, guard.certificate = PASSWORD, papers.right
    guarded.restart()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Generator[pytest.LogCaptureFixture]:
    """All that anybody logs; at the end it is searched for what must not be there."""
    caplog.set_level(logging.DEBUG)
    yield caplog
    for text in (caplog.text, *(str(record.__dict__) for record in caplog.records)):
        for secret in (PASSWORD, WRONG, "s3cr", "wr0ng"):
            assert secret not in text


async def failures(broker: Broker, number: int) -> None:
    with anyio.fail_after(LONG):
        while broker.counts["relay_disconnected"] < number:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)  # without pauses, the servers would start late


async def test_broadcasts_arrive_over_tls_with_a_password(
    name: str, guarded: GuardedEngine, papers: Papers, log: pytest.LogCaptureFixture
) -> None:
    url = guarded.url(PASSWORD, papers.ca)
    async with brokers(url) as (one, two):
        ear = Ear(two, "t")
        await ear.hears(one)
        before = two.counts.copy()
        assert name == "zenoh" or not before  # its router forwards nothing until it has told `one` of the subscription
        for number in range(200):
            one.broadcast("t", "e", {"n": number})
        async with Publisher(url) as publisher:
            publisher.broadcast("t", "e", {"n": 200})
        await ear.until(lambda: len(ear.numbers) > 200)
        assert sorted(ear.numbers) == list(range(201))
        assert ear.lost == 0
        assert one.counts == {}
        assert two.counts == before


SAID = {
    ("redis", "password"): "invalid username-password pair",
    ("nats", "password"): "Authorization Violation",
    ("redis", "authority"): "unable to get local issuer certificate",
    ("nats", "authority"): "unable to get local issuer certificate",
    ("redis", "date"): "certificate has expired",
    ("nats", "date"): "certificate has expired",
}
"""Zenoh's library says no more than that there is no connection, whatever the reason."""


async def refusal(url: str, log: pytest.LogCaptureFixture) -> str:
    """What is logged of an engine that cannot be connected to."""
    async with brokers(url, 1) as (one,):
        Ear(one, "t")
        await failures(one, 1)
    return next(record.getMessage() for record in log.records if "is away" in record.getMessage())


async def test_a_wrong_password_is_a_line_in_the_log_without_it(
    name: str, guarded: GuardedEngine, papers: Papers, log: pytest.LogCaptureFixture
) -> None:
    said = await refusal(guarded.url(WRONG, papers.ca), log)
    assert SAID.get((name, "password"), "Unable to connect") in said


async def test_a_server_whose_authority_is_unknown_is_refused_and_the_log_says_so(
    name: str, guarded: GuardedEngine, papers: Papers, log: pytest.LogCaptureFixture
) -> None:
    said = await refusal(guarded.url(PASSWORD, papers.stranger), log)
    assert SAID.get((name, "authority"), "Unable to connect") in said


@pytest.mark.usefixtures("is_demanding")
async def test_what_is_put_right_on_the_server_heals_by_itself(
    name: str, guarded: GuardedEngine, guard: Guard, papers: Papers, log: pytest.LogCaptureFixture
) -> None:
    attempts = 2 if name == "zenoh" else 4  # each takes Zenoh two seconds
    url = f"{guarded.url(PASSWORD, papers.ca)}&buffer_seconds={LONG}"
    async with brokers(url) as (one, two):
        ear, near = Ear(two, "t"), Ear(one, "t")
        began = time.monotonic()
        one.broadcast("t", "e", {"n": 0})
        await failures(one, attempts)
        assert time.monotonic() - began > sum((0.05, 0.1, 0.2)[: attempts - 1]), "there are pauses between them"
        assert near.numbers == [0], "clients of the same process are served meanwhile"
        assert SAID.get((name, "date"), "Unable to connect") in log.text
        guard.certificate = papers.right
        guarded.restart()
        before = two.counts["relay_disconnected"]
        await failures(two, before + 1)
        guard.password = PASSWORD
        guarded.restart()
        await ear.until(lambda: ear.numbers == [0], LONG)
        await ear.hears(one)
        assert ear.lost == 0
        assert "The engine between the processes is back" in log.text
