"""Thousands of clients come and go, politely or not, and the server must be afterwards what it was before."""

import asyncio
import json
import random

import pytest

from tests.fuzzing.honest import Figures, figures, figures_when, honest_pair, nothing_left
from tests.fuzzing.watch import LANES
from tests.fuzzing.wire import Address, Wire, binary, text
from tests.servers import Kind, Server, serve

CYCLES = 6_000
AT_ONCE = 20
ROUNDS = 5
"""The first is for warming up: what Python and the server keep for later, they have then."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def come_and_go(address: Address, rnd: random.Random) -> None:
    """One client's day. How it ends is different every time."""
    path = rnd.choice(("/socket/websocket?vsn=2.0.0", "/socket/websocket?vsn=2.0.0&user=u", "/socket/websocket"))
    wire = await Wire.open(address, path)
    try:
        if not path.endswith("websocket"):
            await talk(wire, rnd)
        await part(wire, rnd)
    finally:
        await wire.discard()


async def talk(wire: Wire, rnd: random.Random) -> None:
    """Join some rooms, one of them twice, push, and leave some of them."""
    topics = [f"room:{rnd.randrange(50)}" for _ in range(rnd.randrange(1, 6))]
    for number, topic in enumerate(topics):
        ref = str(number)
        wire.send(text(ref, ref, topic, "phx_join"), text(ref, f"echo {ref}", topic, "echo", {"number": number}))
        wire.send(text(ref, f"later {ref}", topic, "later"), text(ref, None, topic, "shout", {"from": "a client"}))
        wire.send(binary(ref, ref, topic, "bin", b"x" * rnd.randrange(5_000)))
        wire.send(text(ref, None, topic, rnd.choice(("phx_leave", "crash", "stop", "nope", "wait", "echo"))))
    wire.send(text(None, "end", "phoenix", "heartbeat"))
    if rnd.random() < 0.8:  # others do not wait for anything
        while not is_end(await wire.receive()):
            pass


def is_end(message: str | bytes) -> bool:
    return isinstance(message, str) and json.loads(message)[1] == "end"


async def part(wire: Wire, rnd: random.Random) -> None:
    """Close in good order, hang up, be cut off in the middle of a frame, be closed by the server, or just vanish."""
    match rnd.randrange(6):
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
        case _:
            pass


async def one_round(server: Server, rnd: random.Random, cycles: int) -> Figures:
    """So many cycles, some at the same time; return the figures of the server when it is at rest again."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            await come_and_go(Address(server.port), rnd)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(cycles):
            tasks.create_task(one())
    return await figures_when(only_the_pair_is_left, server.http, collect=True)


def only_the_pair_is_left(found: Figures) -> bool:
    objects = found["objects"]
    transports = objects["WebSocketTransport"] + objects["Lane"]
    left = (found["connections"], found["channels"], objects["Connection"], objects["Member"], transports)
    return set(left) == {2} and found["topics"] == 1


@pytest.mark.anyio
@pytest.mark.parametrize("kind", LANES, ids=str)
async def test_thousands_of_clients_that_come_and_go_leave_nothing_behind(kind: Kind) -> None:
    with serve("tests.fuzzing.app:app", kind) as server:
        before = await figures(server.http)
        rnd = random.Random(1)
        async with honest_pair(Address(server.port)):
            rounds = [await one_round(server, rnd, CYCLES // ROUNDS) for _ in range(ROUNDS)]
        after = await figures_when(nothing_left, server.http, collect=True)
        assert after["tasks"] == before["tasks"]
        assert not after["failures"]
        memory = [found["rss"] for found in rounds]
        assert memory[-1] < memory[0] + (4 << 20), memory
        expected = {"channel_crashed", "malformed_message", "unmatched_event"}
        assert expected <= set(after["counts"])
        assert not {"transport_failed", "delivery_failed", "end_failed", "slow_client"} & set(after["counts"])
