"""The command `drain`: a server with many clients stops, and they reconnect to another one."""

import asyncio
import os
import random
import re
import signal
import time
from argparse import ArgumentParser, Namespace
from collections import Counter

import msgspec

from benchmarks import machine
from starlette_channels import Drain
from tests.fuzzing.wire import Address, Wire
from tests.support.servers import FAST_LANE, Server, serve

APP = "benchmarks.apps.drain_app:app"
AT_ONCE = 50
"""Number of clients that connect concurrently at the beginning."""

RETRY_AFTER = re.compile(r"retry_after=([\d.]+)")
BAR = 60


class Crowd:
    """Clients of one server that reconnect to another when it closes them."""

    def __init__(self, old: Server, new: Server) -> None:
        self.back: list[float] = []
        self._old = Address(old.port)
        self._new = Address(new.port)
        self._wires: list[Wire] = []
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def arrive(self, number: int) -> None:
        """Connect and join a number of clients."""
        await asyncio.gather(*[self._arrive() for _ in range(number)])

    async def move(self) -> None:
        """Wait until all have been closed, and have joined at the other server or failed to."""
        began = time.monotonic()
        await asyncio.gather(*[self._move(wire, began) for wire in self._wires], return_exceptions=True)

    async def leave(self) -> None:
        """Disconnect all clients."""
        for wire in self._wires:
            await wire.discard()

    async def _arrive(self) -> None:
        async with self._gate:
            self._wires.append(await _joined(self._old))

    async def _move(self, wire: Wire, began: float) -> None:
        closed = await wire.closed()
        await wire.end()
        asked = RETRY_AFTER.search(closed.reason)
        if asked is None:
            raise closed
        await asyncio.sleep(float(asked[1]) * (1 + random.random() / 10))  # as channels.js does
        self._wires.append(await _joined(self._new))
        self.back.append(time.monotonic() - began)


async def _joined(where: Address) -> Wire:
    wire = await Wire.open(where)
    await wire.join("room:a")
    return wire


async def drain(old: Server, new: Server, clients: int) -> list[float]:
    """Connect clients, stop their server, and return the seconds after which each has joined at another."""
    crowd = Crowd(old, new)
    await crowd.arrive(clients)
    os.kill(old.pid, signal.SIGTERM)
    await crowd.move()
    await crowd.leave()
    return crowd.back


def histogram(moments: list[float], step: float) -> str:
    """Draw a histogram of the times."""
    found = Counter(int(moment / step) for moment in moments)
    most = max(found.values(), default=1)
    lines = [f"{'seconds':>9} {'joins':>7}"]
    for number in range(max(found, default=-1) + 1):
        bar = "#" * round(BAR * found[number] / most)
        lines.append(f"{number * step:>9.2f} {found[number]:>7,} {bar}".rstrip())
    return "\n".join(lines)


def add_options(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    usual = Drain()
    parser.add_argument("--clients", metavar="N", type=int, default=10_000)
    parser.add_argument("--batch-size", metavar="N", type=int, default=usual.batch_size)
    parser.add_argument("--interval-seconds", metavar="S", type=float, default=usual.interval_seconds)
    parser.add_argument("--timeout-seconds", metavar="S", type=float, default=usual.timeout_seconds)
    parser.add_argument("--step", metavar="S", type=float, default=0.5, help="seconds for each line of the histogram")


def run(options: Namespace) -> int:
    """Drain, and print when clients reconnected; return 1 if one did not."""
    if not machine.permit_files(2 * options.clients + 200):
        raise machine.Unfit(f"{options.clients:,} clients need {2 * options.clients + 200:,} open files: `ulimit -Hn`")
    pace = Drain(
        batch_size=options.batch_size,
        interval_seconds=options.interval_seconds,
        timeout_seconds=options.timeout_seconds,
    )
    environment = {"DRAIN": msgspec.json.encode(pace).decode()}
    with serve(APP, FAST_LANE, environment=environment) as old, serve(APP, FAST_LANE, environment=environment) as new:
        back = asyncio.run(drain(old, new, options.clients))
    print(histogram(back, options.step))
    print(f"{len(back):,} of {options.clients:,} came back, the last {max(back, default=0.0):.1f} s after the signal")
    return int(len(back) < options.clients)
