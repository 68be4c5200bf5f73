"""The nodes of a cluster, and what must be true of it."""

import asyncio
import contextlib
import json
import os
import signal
import tempfile
import time
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed

from tests.cluster.listener import Listener
from tests.cluster.proxy import Network, Proxy
from tests.cluster.watchers import BrowserThread, NodeWatchers, PageWatchers, View, Watchers
from tests.support.engines import EngineServer, engine
from tests.support.servers import FAST_LANE, Server

PATIENCE = 30.0
"""That the last message is lost is noticed with the next mark, which is sent after 1, 5 and 21 seconds."""


class Node:
    """A server of the application, with a network of its own to the engine, if there is one."""

    def __init__(self, name: str, folder: Path, broker: str, way: Proxy | None = None) -> None:
        self.name, self.broker = name, broker
        self._way = way
        environment = {"NODE": name, "BROKER": broker, "XDG_RUNTIME_DIR": str(folder)}
        self.environment = {**os.environ, **environment}
        self.server = Server(FAST_LANE, "tests.cluster.app:app", log=folder / f"{name}.log", environment=environment)

    @property
    def network(self) -> Proxy:
        """Its way to the engine."""
        assert self._way is not None, "it has a way to each of the others, and none to an engine"
        return self._way

    async def stop(self) -> bool:
        """Ask the server to end, and tell whether it did so by itself; meanwhile its clients answer it."""
        return await asyncio.to_thread(self.server.stop)

    @contextlib.contextmanager
    def hanging(self) -> Generator[None]:
        """Stop the process as a machine does that hangs."""
        os.kill(self.server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.server.pid, signal.SIGCONT)

    async def speak(self) -> tuple[str, int]:
        """Let the node say a number: return its life, and the number."""
        life, number = await self._get("speak")
        return life, number

    async def break_silence(self, topics: Sequence[str]) -> str:
        """Let the node say something on topics; return its life."""
        return await self._get(f"break_silence?topics={','.join(topics)}")

    async def disconnect(self, user: str, kicked: str, topic: str) -> None:
        """Let the node disconnect a user, and kick another."""
        await self._get(f"disconnect?user={user}&kicked={kicked}&topic={topic}")

    async def who(self) -> View:
        """Who is there, as the node knows it."""
        return (await self._get("report"))["who"]

    async def counts(self) -> dict[str, int]:
        """What has gone wrong at the node."""
        return (await self._get("report"))["counts"]

    async def _get(self, path: str) -> Any:
        return await asyncio.to_thread(_fetch, f"{self.server.http}/{path}")


def _fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        return json.load(response)


class Cluster:
    """Three nodes, their engine (a mesh has none), and their clients."""

    def __init__(self, nodes: Sequence[Node], watchers: Sequence[Watchers], engine: EngineServer | None) -> None:
        self.nodes = nodes
        self._watchers = watchers
        self._engine = engine

    @property
    def is_mesh(self) -> bool:
        """Whether there is nothing between the nodes."""
        return self._engine is None

    @property
    def engine(self) -> EngineServer:
        """What is between the nodes."""
        assert self._engine is not None, "there is nothing between the nodes of a mesh"
        return self._engine

    @contextlib.asynccontextmanager
    async def guests(self) -> AsyncGenerator[list[Listener]]:
        """Somebody at each node, who all know of each other and hear each other."""
        listeners = [Listener(node.server.ws, f"guest-of-{node.name}") for node in self.nodes]
        try:
            for listener in listeners:
                await listener.join()
            await self.agree(listeners)
            await self.hear_each_other(listeners)
            for listener in listeners:
                await listener.finish()  # then it has been told of gaps as well
                listener.begin()
            with self._logs():
                yield listeners
            assert [listener.wrong for listener in listeners] == [[]] * len(listeners)
        finally:
            for listener in listeners:
                await listener.leave()
        await self.agree(())

    @contextlib.contextmanager
    def _logs(self) -> Generator[None]:
        try:
            yield
        except BaseException as error:
            for node in self.nodes:
                error.add_note(node.server.tail())
            raise

    @contextlib.asynccontextmanager
    async def talking(self, guests: Sequence[Listener]) -> AsyncGenerator[None]:
        """Let guests have their nodes say numbers all the time, while there is a way to their nodes."""

        async def talk(guest: Listener) -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await guest.say()
                    await asyncio.sleep(0.01)  # the pace at which they talk

        tasks = [asyncio.create_task(talk(guest)) for guest in guests]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for guest in guests:
                await guest.finish()

    async def agree(self, guests: Sequence[Listener], nodes: Sequence[Node] | None = None) -> None:
        """Wait until these nodes, clients of phoenix.js there, and the guests have one list: that of these guests."""
        those = [index for index, node in enumerate(self.nodes) if nodes is None or node in nodes]
        wanted = sorted(guest.user for guest in guests)
        views: list[View] = []
        told: list[list[str]] = []

        def are_right() -> bool:
            return all(view == views[0] for view in views) and [key for key, _ in views[0]] == wanted

        async def do_they() -> bool:
            views[:] = [await self.nodes[index].who() for index in those]
            if not are_right():
                return False
            for watchers in self._watchers:
                seen = await watchers.look()
                views.extend(sorted(seen[index]) for index in those)
            told[:] = [guest.who() for guest in guests if not guest.is_gone]
            return are_right() and all(who == wanted for who in told)

        await until(do_they, lambda: f"wanted {wanted}, got {views}, guests were told {told}")

    async def hear_each_other(self, guests: Sequence[Listener]) -> None:
        """Wait until everybody hears every node; from then on nothing may be lost without a word."""

        async def do_they() -> bool:
            lives = [(await node.speak())[0] for node in self.nodes]
            return all(guest.numbers[life] for guest in guests for life in lives)

        await until(do_they, lambda: str([dict(guest.numbers) for guest in guests]))

    async def have_an_account(self, guests: Sequence[Listener], life: str, number: int) -> None:
        """Wait until what a node has said up to this number has come to everybody, or was reported as lost."""

        async def have_they() -> bool:
            return all(guest.accounted_for(life) >= number for guest in guests)

        await until(have_they, lambda: f"{number} of {life}: {[guest.sums() for guest in guests]}")

    async def all_is_accounted_for(self, guests: Sequence[Listener]) -> None:
        """Wait until what every node has said has come to everybody, or was reported as lost, to the last number."""
        said = [await node.speak() for node in self.nodes]
        for life, number in said:
            await self.have_an_account(guests, life, number)
        for guest in guests:
            assert {life: guest.accounted_for(life) for life, _ in said} == dict(said), guest.sums()


async def until(condition: Callable[[], Awaitable[bool]], why: Callable[[], str]) -> None:
    """Wait for something that is seen only by looking."""
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, why()
        await asyncio.sleep(0.02)  # under the deadline above


NAMES = ("one", "two", "three")


@contextlib.contextmanager
def cluster(engine_name: str, browser: BrowserThread | None) -> Generator[Cluster]:
    """Run a cluster of three nodes, with an engine between them, while the block runs."""
    with contextlib.ExitStack() as stack:
        between = stack.enter_context(engine(engine_name))
        network = Network()
        stack.callback(network.close)
        ways = [Proxy(network, between.port) for _ in NAMES]
        for way in ways:
            stack.callback(way.close)
        folder = stack.enter_context(_folder())
        urls = [between.url.replace(str(between.port), str(way.port)) for way in ways]
        nodes = [Node(name, folder, url, way) for name, url, way in zip(NAMES, urls, ways, strict=True)]
        yield stack.enter_context(_running(nodes, browser, between))


@contextlib.contextmanager
def mesh(browser: BrowserThread | None) -> Generator[Cluster]:
    """Run a cluster of three nodes, each of which is connected with each other, while the block runs."""
    with _folder() as folder, _running([Node(name, folder, "zenoh://") for name in NAMES], browser) as running:
        yield running


@contextlib.contextmanager
def _folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _running(
    nodes: Sequence[Node], browser: BrowserThread | None, between: EngineServer | None = None
) -> Generator[Cluster]:
    servers = [node.server for node in nodes]
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
        with ThreadPoolExecutor() as threads:
            list(threads.map(Server.start, servers))
        watchers: list[Watchers] = [NodeWatchers(servers)]
        if browser is not None:
            watchers.append(PageWatchers(browser, servers))
        for one in watchers:
            stack.callback(one.close)
        yield Cluster(nodes, watchers, between)
