"""The command `soak`: clients connect and disconnect in all ways; the server must not keep tasks or memory."""

import asyncio
import json
import random
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import deque

from tests.fuzzing.honest import Figures, figures, figures_when, honest_pair, nothing_left
from tests.fuzzing.watch import LANES
from tests.fuzzing.wire import Address, Wire, binary, text
from tests.support.servers import Server, serve

AT_ONCE = 20
LINGERING = 100
"""Number of idle clients that stay connected meanwhile."""

MEGABYTE = 1 << 20
FLOOD = 200
"""Messages of 10,000 bytes to all clients that do not read; the second or third flood exceeds their limit."""

LAZY = 0.02
"""Share of clients that do not read."""


class Left(AssertionError):
    """The server has more tasks or memory than before."""


class Visitors:
    """Clients that connect, join, push, leave, and disconnect in different ways."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._random = random.Random(seed)
        self._lingering: deque[Wire] = deque()

    async def come_and_go(self, cycles: int) -> Figures:
        """Run a number of clients, some concurrently; return the server's statistics when it is idle again."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with gate:
                await self._visit()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(cycles):
                tasks.create_task(one())
        while self._lingering:
            await self._lingering.popleft().discard()
        return await figures_when(only_the_pair_is_left, self._server.http, collect=True)

    async def _visit(self) -> None:
        lazy = self._random.random() < LAZY
        paths = ("/socket/websocket?vsn=2.0.0", "/socket/websocket?vsn=2.0.0&user=u", "/socket/websocket")
        path = self._random.choice(paths[:1] if lazy else paths)
        wire = await Wire.open(Address(self._server.port, lazy=lazy), path)
        if lazy:
            ask = text("1", None, "room:lazy", "flood", {"first": 0, "messages": FLOOD, "size": 10_000})
            wire.send(text("1", "1", "room:lazy", "phx_join"), ask)
            await self._linger(wire)
            return
        try:
            if not path.endswith("websocket"):
                await self._talk(wire)
            lingers = await self._part(wire)
        except BaseException:
            await wire.discard()
            raise
        await (self._linger(wire) if lingers else wire.discard())

    async def _talk(self, wire: Wire) -> None:
        """Join some rooms, one of them twice, push, and leave some of them."""
        rnd = self._random
        topics = [f"room:{rnd.randrange(50)}" for _ in range(rnd.randrange(1, 6))]
        for number, topic in enumerate(topics):
            ref = str(number)
            wire.send(text(ref, ref, topic, "phx_join"), text(ref, f"echo {ref}", topic, "echo", {"number": number}))
            wire.send(text(ref, f"later {ref}", topic, "later"), text(ref, None, topic, "shout", {"from": "a client"}))
            wire.send(binary(ref, ref, topic, "bin", b"x" * rnd.randrange(5_000)))
            wire.send(text(ref, None, topic, rnd.choice(("phx_leave", "crash", "stop", "nope", "wait", "echo"))))
        wire.send(text(None, "end", "phoenix", "heartbeat"))
        if rnd.random() < 0.8:  # others do not wait for anything
            while not _is_end(await wire.receive()):
                pass

    async def _part(self, wire: Wire) -> bool:
        """Close in good order, hang up, be cut off in the middle of a frame, be closed by the server, or just vanish;
        return whether the connection stays half open."""
        match self._random.randrange(7):
            case 0:
                await wire.close()
            case 1:
                wire.hang_up()
            case 2:
                wire.write(b"\x81\xfe\x10\x00\0\0\0\0[")
            case 3:
                wire.send("no JSON")
                await wire.closed()
            case 4:
                wire.send(text("9", "9", "room:slow", "phx_join"))  # and be gone before it is answered
            case 5:
                return True
            case _:
                pass
        return False

    async def _linger(self, wire: Wire) -> None:
        self._lingering.append(wire)
        if len(self._lingering) > LINGERING:
            await self._lingering.popleft().discard()


def _is_end(message: str | bytes) -> bool:
    return isinstance(message, str) and json.loads(message)[1] == "end"


def only_the_pair_is_left(found: Figures) -> bool:
    """Whether only the two honest clients are connected, and nothing of the others is left."""
    objects = found["objects"]
    transports = objects["WebSocketTransport"] + objects["Lane"]
    left = (found["connections"], found["channels"], objects["Connection"], objects["JoinedChannel"], transports)
    return set(left) == {2} and found["topics"] == 1


async def soak(server: Server, cycles: int, rounds: int, seed: int) -> Figures:
    """Connect and disconnect clients, in rounds, beside two honest ones; return the server's final statistics.

    Raises `Left` if it has kept tasks, or has grown by more than a few megabytes since the first half of the rounds, in
    which it warms up: what Python keeps for later, it has then, and what malloc does, it gives back before we look.
    """
    before = await figures(server.http)
    visitors = Visitors(server, seed)
    memory: list[int] = []
    async with honest_pair(Address(server.port)):
        for number in range(rounds):
            began = time.monotonic()
            memory.append((await visitors.come_and_go(cycles // rounds))["rss"])
            pace = cycles // rounds / (time.monotonic() - began)
            said = f"round {number + 1} of {rounds}: {memory[-1] / MEGABYTE:.1f} MB, {pace:.0f} cycles/s"
            print(said, file=sys.stderr)
    after = await figures_when(nothing_left, server.http, collect=True)
    if after["tasks"] != before["tasks"]:
        raise Left(f"tasks: {before['tasks']} before, {after['tasks']} after")
    if memory[-1] > max(memory[: rounds // 2]) + 4 * MEGABYTE:
        raise Left(f"memory: {memory}")
    return after


def add_options(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--cycles", metavar="N", type=int, default=1_000_000, help="clients in all")
    parser.add_argument("--rounds", metavar="N", type=int, default=20, help="how often all is looked at")
    parser.add_argument("--seed", metavar="N", type=int, default=1)
    parser.add_argument("--portable", action="store_true", help="soak the portable transport, not the fast lane")


def run(options: Namespace) -> int:
    """Soak, and print what is left; return 1 if it is too much."""
    kind = LANES[0 if options.portable else 1]
    with serve("tests.fuzzing.app:app", kind) as server:
        try:
            after = asyncio.run(soak(server, options.cycles, options.rounds, options.seed))
        except Left as left:
            print(f"The server has kept something: {left}")
            return 1
    print(f"After {options.cycles} cycles nothing is left. Counted on the way: {after['counts']}")
    return 0
