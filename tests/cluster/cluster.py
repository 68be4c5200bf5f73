"""The nodes of a cluster, and what must be true of it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed

from tests.clients import node as nodejs
from tests.cluster.listener import Listener
from tests.cluster.proxy import Network, Proxy
from tests.engines import EngineServer, engine
from tests.servers import FAST_LANE, Server

PATIENCE = 30.0
"""That the last message is lost is noticed with the next mark, which is sent after 1, 5 and 21 seconds."""


class Node:
    """A server of the application, with a network of its own to the engine."""

    def __init__(self, name: str, engine: EngineServer, network: Network, folder: Path) -> None:
        self.name = name
        self.network = Proxy(network, engine.port)
        url = engine.url.replace(str(engine.port), str(self.network.port))
        environment = {"NODE": name, "BROKER": url}
        self.server = Server(FAST_LANE, "tests.cluster.app:app", log=folder / f"{name}.log", environment=environment)

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

    async def who(self) -> list[list[str]]:
        """Who is there, as the node knows it: `[key, phx_ref]` of each."""
        return (await self._get("report"))["who"]

    async def counts(self) -> dict[str, int]:
        """What has gone wrong at the node."""
        return (await self._get("report"))["counts"]

    async def _get(self, path: str) -> Any:
        return await asyncio.to_thread(_fetch, f"{self.server.http}/{path}")


def _fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        return json.load(response)


class Watchers:
    """Clients of phoenix.js at all nodes, which come back whenever they are cut off."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        nodejs.install()
        urls = [f"{node.server.ws}/socket" for node in nodes]
        self._process = subprocess.Popen(
            [nodejs.NODE, nodejs.HERE / "watch.mjs", *urls], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    async def look(self) -> list[list[list[str]]]:
        """Who is there, as each of them has it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        return json.loads(await asyncio.to_thread(self._process.stdout.readline))

    def close(self) -> None:
        """End them."""
        with self._process:
            self._process.kill()


class Cluster:
    """Three nodes, their engine, and their clients."""

    def __init__(self, engine: EngineServer, nodes: Sequence[Node], watchers: Watchers) -> None:
        self.engine = engine
        self.nodes = nodes
        self._watchers = watchers

    @contextlib.asynccontextmanager
    async def guests(self) -> AsyncGenerator[list[Listener]]:
        """Somebody at each node, who all know of each other and hear each other."""
        listeners = [Listener(node.server.ws, f"guest-of-{node.name}") for node in self.nodes]
        try:
            for listener in listeners:
                await listener.join()
            await self.agree(listeners)
            await self.hear_each_other(listeners)
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
                    await asyncio.sleep(0.005)

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
        """Wait until these nodes, and the clients of phoenix.js there, have one list: that of these guests."""
        those = [index for index, node in enumerate(self.nodes) if nodes is None or node in nodes]
        wanted = sorted(guest.user for guest in guests)
        views: list[list[list[str]]] = []

        async def do_they() -> bool:
            watched = await self._watchers.look()
            views[:] = [await self.nodes[index].who() for index in those]
            views[len(those) :] = [sorted(watched[index]) for index in those]
            return all(view == views[0] for view in views) and [key for key, _ in views[0]] == wanted

        await until(do_they, lambda: f"wanted {wanted}, got {views}")
        told = [guest.who() for guest in guests if not guest.is_gone]
        assert told == [wanted] * len(told)

    async def hear_each_other(self, guests: Sequence[Listener]) -> None:
        """Wait until everybody hears every node; from then on nothing may be lost without a word."""

        async def do_they() -> bool:
            lives = [(await node.speak())[0] for node in self.nodes]
            return all(guest.numbers[life] for guest in guests for life in lives)

        await until(do_they, lambda: str([dict(guest.numbers) for guest in guests]))

    async def all_is_accounted_for(self, guests: Sequence[Listener]) -> None:
        """Wait until what every node has said has come to everybody, or was reported as lost, to the last number."""
        said = [await node.speak() for node in self.nodes]

        async def is_it() -> bool:
            return all(guest.accounted_for(life) >= number for guest in guests for life, number in said)

        await until(is_it, lambda: f"{said}: {[guest.sums() for guest in guests]}")
        for guest in guests:
            assert {life: guest.accounted_for(life) for life, _ in said} == dict(said), guest.sums()


async def until(condition: Callable[[], Awaitable[bool]], why: Callable[[], str]) -> None:
    """Wait for something that is seen only by looking."""
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, why()
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def cluster(engine_name: str) -> Generator[Cluster]:
    """Run a cluster of three nodes while the block runs."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))
        engine_server = stack.enter_context(engine(engine_name))
        network = Network()
        stack.callback(network.close)
        nodes = [Node(name, engine_server, network, folder) for name in ("one", "two", "three")]
        for node in nodes:
            stack.callback(node.network.close)
            stack.callback(node.server.kill)
        with ThreadPoolExecutor() as threads:
            list(threads.map(Server.start, [node.server for node in nodes]))
        watchers = Watchers(nodes)
        stack.callback(watchers.close)
        yield Cluster(engine_server, nodes, watchers)
