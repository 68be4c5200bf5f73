"""Faults while a cluster speaks on topics for the first time, and disconnects clients: nothing is lost in silence.

The faults are those of `test_cluster.py`. Here nobody has spoken before on the topics in question, so nobody could
notice a loss by what came before.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator

import pytest

from tests.cluster.client import Client
from tests.cluster.cluster import Cluster, Node, cluster, mesh, until
from tests.integration.slow.test_cluster import MESH
from tests.support.engines import ENGINES
from tests.support.servers import ROOT

pytestmark = pytest.mark.anyio

SECONDS = 10.0
"""So soon after a fault every connection is closed that is meant."""

FAULT_SECONDS = 4.0
"""So long a fault lasts, after what is said."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=[*ENGINES, MESH])
def running(request: pytest.FixtureRequest) -> Generator[Cluster]:
    with mesh(None) if request.param == MESH else cluster(request.param, None) as running:
        yield running


@contextlib.contextmanager
def engine_away(running: Cluster) -> Generator[None]:
    running.engine.kill()
    try:
        yield
    finally:
        running.engine.start()


FAULTS: dict[str, Callable[[Cluster], contextlib.AbstractContextManager[None]]] = {
    "calm": lambda running: contextlib.nullcontext(),
    "a node hangs": lambda running: running.nodes[2].hanging(),
    "a node is cut off": lambda running: running.nodes[2].network.cut(),
    "its network hangs": lambda running: running.nodes[2].network.hanging(),
    "the engine dies": engine_away,
    "the engine hangs": lambda running: running.engine.paused(),
}
OF_ALL = ("calm", "a node hangs")
"""The others need an engine."""


with_all_faults = pytest.mark.parametrize(
    ("running", "fault"),
    [(name, fault) for name in [*ENGINES, MESH] for fault in (FAULTS if name != MESH else OF_ALL)],
    indirect=["running"],
)


class Crowd:
    """For each node a user who is to go, one who is to be kicked, and one who listens to topics without a word yet."""

    def __init__(self, running: Cluster, name: str) -> None:
        self.user, self.kicked, self.topic = f"{name}-gone", f"{name}-kicked", f"quiet:{name}"
        self.topics = [f"quiet:{name}-{number}" for number in range(5)]
        urls = [node.server.ws for node in running.nodes]
        self.gone = [Client(url, self.user) for url in urls]
        self.out = [Client(url, self.kicked) for url in urls]
        self.ears = [Client(url, f"{name}-ear") for url in urls]
        self.late: list[Client] = []
        self._everybody = [*self.gone, *self.out, *self.ears]

    async def come(self) -> None:
        for client in (*self.gone, *self.out):
            await client.join([self.topic])
        for client in self.ears:
            await client.join(self.topics)

    async def come_again(self, node: Node) -> None:
        """The same users log in anew, after they were disconnected or kicked."""
        for user in (self.user, self.kicked):
            client = Client(node.server.ws, user)
            self._everybody.append(client)
            self.late.append(await client.join([self.topic]))

    def is_done(self) -> bool:
        """Whether everybody is gone who should be."""
        kicked = all(client.events[self.topic, "kicked"] == 1 for client in self.out)
        return kicked and all(client.code == 4001 for client in self.gone)

    def __str__(self) -> str:
        kicked = [client.events[self.topic, "kicked"] for client in self.out]
        return f"closed: {[client.code for client in self.gone]}, kicked: {kicked}"

    def check_the_others(self) -> None:
        """Nobody else is gone."""
        assert [client.code for client in (*self.out, *self.ears, *self.late)] == [None] * (6 + len(self.late))
        assert [client.events[self.topic, "kicked"] for client in self.late] == [0] * len(self.late)

    async def leave(self) -> None:
        for client in self._everybody:
            await client.leave()


@pytest.fixture
async def crowd(running: Cluster, request: pytest.FixtureRequest) -> AsyncGenerator[Crowd]:
    crowd = Crowd(running, f"c{abs(hash((request.node.name, time.time())))}")
    await crowd.come()
    try:
        yield crowd
    finally:
        await crowd.leave()


async def is_over_in_time(crowd: Crowd) -> None:
    began = time.monotonic()

    async def is_it() -> bool:
        return crowd.is_done()

    await until(is_it, lambda: str(crowd))
    assert time.monotonic() - began < SECONDS


@with_all_faults
async def test_what_is_said_first_on_a_topic_during_a_fault_comes_or_is_known_to_be_lost(
    crowd: Crowd, running: Cluster, fault: str
) -> None:
    one = running.nodes[0]
    with FAULTS[fault](running):
        await one.break_silence(crowd.topics)
        await asyncio.sleep(FAULT_SECONDS)  # how long the fault lasts

    async def are_they_known() -> bool:
        return all(ear.accounts_for(topic) == 1 for ear in crowd.ears for topic in crowd.topics)

    await until(
        are_they_known, lambda: str([[ear.accounts_for(topic) for topic in crowd.topics] for ear in crowd.ears])
    )
    await one.break_silence(crowd.topics)

    async def are_they_all() -> bool:
        return all(ear.accounts_for(topic) == 2 for ear in crowd.ears for topic in crowd.topics)

    await until(are_they_all, lambda: str([[ear.accounts_for(topic) for topic in crowd.topics] for ear in crowd.ears]))


@with_all_faults
async def test_a_disconnect_during_a_fault_closes_who_was_there_and_nobody_who_came_later(
    crowd: Crowd, running: Cluster, fault: str
) -> None:
    one = running.nodes[0]
    with FAULTS[fault](running):
        await one.disconnect(crowd.user, crowd.kicked, crowd.topic)
        await asyncio.sleep(0.2)  # what is in doubt is who came first
        await crowd.come_again(one)
        await asyncio.sleep(FAULT_SECONDS)  # how long the fault lasts
    await is_over_in_time(crowd)
    await asyncio.sleep(4)  # a digest or two: nothing is done again
    crowd.check_the_others()


async def test_a_disconnect_outlives_the_node_that_said_it(crowd: Crowd, running: Cluster) -> None:
    one, _, three = running.nodes
    with three.hanging() if running.is_mesh else three.network.cut():
        await one.disconnect(crowd.user, crowd.kicked, crowd.topic)
        await asyncio.sleep(0.5)  # so long the node lives on
        one.server.kill()
    try:
        crowd.gone, crowd.out = crowd.gone[1:], crowd.out[1:]
        await is_over_in_time(crowd)
    finally:
        one.server.start()


@pytest.mark.parametrize("verb", ["disconnect", "kick"])
async def test_so_does_one_of_the_command_line(crowd: Crowd, running: Cluster, verb: str) -> None:
    one, _, three = running.nodes
    more = ["--code", "4001"] if verb == "disconnect" else ["--reason", "out"]
    whom = [crowd.user] if verb == "disconnect" else [crowd.kicked, crowd.topic]
    program = [sys.executable, "-m", "starlette_channels", verb, one.broker, *whom, *more]
    with three.hanging() if running.is_mesh else three.network.cut():
        done = await asyncio.to_thread(
            subprocess.run,
            program,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=one.environment,
        )
        assert (done.returncode, done.stderr) == (0, "")
        await asyncio.sleep(FAULT_SECONDS)  # how long the fault lasts
    if verb == "disconnect":
        crowd.out = []
    else:
        crowd.gone = []
    await is_over_in_time(crowd)
