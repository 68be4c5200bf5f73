"""User-space instructions of an echo, a publish and a join, counted by callgrind without a network.

`scripts/instructions` prints them. The driver's own share is measured with a lane that does nothing, and subtracted.
The figures repeat to a few tenths of a percent on one build of Python and of msgspec, and do not travel to another: so
the committed ones, in `instructions.json`, are compared only where the versions are the same.
"""

import asyncio
import ctypes
import json
import os
import platform
import re
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeAlias

import uvloop

from benchmarks.compiler import compiled
from benchmarks.lanes import Client, Crowd, text
from starlette_channels import Limits

CLIENTS = 100
ROOM = 10
ROUNDS = 5
COMMITTED = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.03
LIMITS = Limits(message_rate=None, join_rate=None)
TURNS = 4
"""Turns of the event loop for each round: the work is done and written by then."""


class TakesBytes(Protocol):
    """A lane, or what stands in its place."""

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        ...


class Nothing:
    """A lane that does nothing: its cost is the driver's."""

    def data_received(self, data: bytes) -> None:
        """Do nothing."""


class Meter:
    """Counts the instructions of rounds of frames, sent by all clients of a driver."""

    def __init__(self, library: str) -> None:
        self._native = ctypes.CDLL(library)

    async def count(self, name: str, clients: Sequence[Client], rounds: Sequence[Sequence[bytes]]) -> None:
        """Count some rounds, after one that warms up; then the same without the lanes."""
        lanes = [client.lane for client in clients]
        await self._send(lanes, clients, rounds, 3)
        for part, takers in (("", lanes), ("-bare", [Nothing()] * len(lanes))):
            self._native.begin()
            await self._send(takers, clients, rounds, ROUNDS)
            self._native.end(f"{name}{part}".encode())

    async def _send(
        self, takers: Sequence[TakesBytes], clients: Sequence[Client], rounds: Sequence[Sequence[bytes]], times: int
    ) -> None:
        for _ in range(times):
            for frames in rounds:
                for taker, frame in zip(takers, frames, strict=True):
                    taker.data_received(frame)
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            for client in clients:
                client.written.clear()


async def _joined(crowd: Crowd, topics: list[str]) -> list[Client]:
    clients = [crowd.client() for _ in topics]
    for client, topic in zip(clients, topics, strict=True):
        client.lane.data_received(text(json.dumps(["1", "1", topic, "phx_join", {}])))
    for _ in range(10):
        await asyncio.sleep(0)
    return clients


async def echo(meter: Meter) -> None:
    """Every client sends a message, and gets its reply: one operation is one echo."""
    clients = await _joined(Crowd(LIMITS), ["room:echo"] * CLIENTS)
    frame = text('["1","7","room:echo","echo",{"text":"hello, everyone","n":42}]')
    await meter.count("echo", clients, [[frame] * CLIENTS])


async def publish(meter: Meter) -> None:
    """Every client of ten rooms of ten publishes: one operation is one publish with its ten deliveries."""
    clients = await _joined(Crowd(LIMITS), [f"room:{number // ROOM}" for number in range(CLIENTS)])
    frames = [text(f'["1","7","room:{n // ROOM}","publish",{{"text":"hello, everyone"}}]') for n in range(CLIENTS)]
    await meter.count("publish", clients, [frames])


async def join(meter: Meter) -> None:
    """Every client joins a second topic, and leaves it: one operation is both."""
    clients = await _joined(Crowd(LIMITS), ["room:first"] * CLIENTS)
    into = text('["2","2","room:second","phx_join",{}]')
    out = text('["2","3","room:second","phx_leave",{}]')
    await meter.count("join", clients, [[into] * CLIENTS, [out] * CLIENTS])


Driver: TypeAlias = Callable[[Meter], Coroutine[Any, Any, None]]
DRIVERS: dict[str, Driver] = {"echo": echo, "publish": publish, "join": join}


def measure(names: Sequence[str]) -> dict[str, int]:
    """Return the instructions of one operation of each driver."""
    library = compiled("callgrind", "-shared", "-fPIC")
    with TemporaryDirectory() as folder:
        command = [
            *("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"),
            *(sys.executable, "-m", "benchmarks.instructions", "--library", str(library), *names),
        ]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "0"})
        totals: dict[str, int] = {}
        for file in Path(folder).iterdir():
            content = file.read_text()
            trigger = re.search(r"desc: Trigger: Client Request: (\S+)", content)
            total = re.search(r"^(?:summary|totals): (\d+)", content, re.MULTILINE)
            if trigger and total:
                totals[trigger[1]] = int(total[1])
    return {name: (totals[name] - totals[f"{name}-bare"]) // (ROUNDS * CLIENTS) for name in names}


def versions() -> str:
    """Return the versions that the figures depend on."""
    return f"Python {platform.python_version()}, msgspec {version('msgspec')}, uvloop {version('uvloop')}"


def check(found: dict[str, int]) -> int:
    """Compare figures with the committed ones; return 1 if one is larger by more than the tolerance."""
    committed = json.loads(COMMITTED.read_text())
    if committed["versions"] != versions():
        print(f"The committed figures are for {committed['versions']}; this is {versions()}: not compared")
        return 0
    grown = {name: n for name, n in found.items() if n > committed["instructions"][name] * (1 + TOLERANCE)}
    for name, instructions in grown.items():
        print(f"{name} has grown: {instructions:,} instructions, {committed['instructions'][name]:,} are committed")
    return 1 if grown else 0


def main() -> int:
    """Print the figures; with `--library`, be the process that callgrind counts."""
    parser = ArgumentParser(prog="scripts/instructions", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"measure only these, of {', '.join(DRIVERS)}")
    parser.add_argument("--check", action="store_true", help="fail if a figure is over the committed one by 3 %%")
    parser.add_argument("--write", action="store_true", help="commit the figures")
    parser.add_argument("--library", help="what switches callgrind on and off; for the measured process only")
    options = parser.parse_args()
    names = options.names or [*DRIVERS]
    if options.library:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for name in names:
                runner.run(DRIVERS[name](Meter(options.library)))
        return 0
    found = measure(names)
    for name, instructions in found.items():
        print(f"{name}: {instructions:,} instructions")
    if options.write:
        COMMITTED.write_text(json.dumps({"versions": versions(), "instructions": found}, indent=2) + "\n")
    return check(found) if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
