"""Faults while a cluster speaks on topics for the first time, and disconnects clients: nothing is lost in silence.

The faults are those of `test_cluster.py`. Here nobody has spoken before on the topics in question, so nobody could
notice a loss by what came before.
"""

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TypeAlias

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

DIGESTS_SECONDS = 4.0
"""Within this a digest passes."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def clusters() -> Generator[dict[str, Cluster]]:
    with contextlib.ExitStack() as stack:
        names = [*ENGINES, MESH]
        yield {name: stack.enter_context(mesh(None) if name == MESH else cluster(name, None)) for name in names}


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

    async def know_of(self, number: int) -> None:
        """Wait until everybody has heard so many words on each topic, or knows that they are lost."""

        def sums() -> list[list[int]]:
            return [[ear.accounts_for(topic) for topic in self.topics] for ear in self.ears]

        async def do_they() -> bool:
            return sums() == [[number] * len(self.topics)] * len(self.ears)

        await until(do_they, lambda: str(sums()))

    async def is_over_in_time(self) -> None:
        """Wait until everybody is gone who should be, but not for long."""
        began = time.monotonic()

        async def is_it() -> bool:
            return self.is_done()

        await until(is_it, lambda: str(self))
        assert time.monotonic() - began < SECONDS

    async def leave(self) -> None:
        for client in self._everybody:
            await client.leave()


Check: TypeAlias = Callable[[Crowd, Cluster], Awaitable[None]]


async def in_all(clusters: Mapping[str, Cluster], check: Check) -> None:
    """Check some clusters, all at the same time, since a check waits for most of its time."""

    async def in_one(name: str, running: Cluster) -> None:
        crowd = Crowd(running, f"{name}-{next(_numbers)}")
        try:
            await crowd.come()
            await check(crowd, running)
        except BaseException as error:
            error.add_note(f"between processes: {name}")
            raise
        finally:
            await crowd.leave()

    async with asyncio.TaskGroup() as group:
        for name, running in clusters.items():
            group.create_task(in_one(name, running))


_numbers = itertools.count()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_first_word_during_a_fault_comes_or_is_known_to_be_lost_and_a_disconnect_closes_who_was_there_alone(
    clusters: dict[str, Cluster], fault: str
) -> None:
    async def check(crowd: Crowd, running: Cluster) -> None:
        one = running.nodes[0]
        with FAULTS[fault](running):
            await one.break_silence(crowd.topics)
            await one.disconnect(crowd.user, crowd.kicked, crowd.topic)
            await asyncio.sleep(0.1)  # what is in doubt is who came first
            await crowd.come_again(one)
            await asyncio.sleep(0 if fault == "calm" else FAULT_SECONDS)  # how long the fault lasts
        healed_at = time.monotonic()
        await crowd.is_over_in_time()
        await crowd.know_of(1)
        await one.break_silence(crowd.topics)
        await crowd.know_of(2)
        await asyncio.sleep(healed_at + DIGESTS_SECONDS - time.monotonic())  # nothing is done again
        crowd.check_the_others()

    await in_all({name: running for name, running in clusters.items() if name != MESH or fault in OF_ALL}, check)


@contextlib.contextmanager
def without_three(running: Cluster) -> Generator[None]:
    """One of the nodes hears nothing."""
    with running.nodes[2].hanging() if running.is_mesh else running.nodes[2].network.cut():
        yield


async def test_a_disconnect_outlives_the_node_that_said_it(clusters: dict[str, Cluster]) -> None:
    async def check(crowd: Crowd, running: Cluster) -> None:
        one = running.nodes[0]
        with without_three(running):
            await one.disconnect(crowd.user, crowd.kicked, crowd.topic)
            await asyncio.sleep(0.5)  # so long the node lives on
            one.server.kill()
        try:
            crowd.gone, crowd.out = crowd.gone[1:], crowd.out[1:]
            await crowd.is_over_in_time()
        finally:
            await asyncio.to_thread(one.server.start)

    await in_all(clusters, check)


async def test_so_does_one_of_the_command_line(clusters: dict[str, Cluster]) -> None:
    async def say(node: Node, *arguments: str) -> None:
        verb, *more = arguments
        program = [sys.executable, "-m", "starlette_channels", verb, node.broker, *more, "--timeout", "15"]
        done = await asyncio.to_thread(
            subprocess.run,
            program,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=node.environment,
        )
        assert (done.returncode, done.stderr) == (0, "")

    async def check(crowd: Crowd, running: Cluster) -> None:
        one = running.nodes[0]
        with without_three(running):
            await asyncio.gather(
                say(one, "disconnect", crowd.user, "--code", "4001"),
                say(one, "kick", crowd.kicked, crowd.topic, "--reason", "out"),
            )
        await crowd.is_over_in_time()

    await in_all(clusters, check)
