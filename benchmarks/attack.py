"""The command `attack`: latencies of honest clients while a server is under attack."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from benchmarks import machine
from benchmarks.attackers import ATTACKS
from benchmarks.crowd import Crowd, Lost
from benchmarks.runner import Running, serve
from benchmarks.servers import HOST, SERVERS, Server

WARM_UP_SECONDS = 3.0


@dataclass
class Phase:
    """Latencies of the honest clients during one attack."""

    name: str
    waits: list[float]
    memory_bytes: int = 0
    log_bytes: int = 0
    counts: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def p99(self) -> float:
        """Return the 99th percentile of the latencies."""
        return self.waits[len(self.waits) * 99 // 100]

    @property
    def median(self) -> float:
        """Return the median of the latencies."""
        return self.waits[len(self.waits) // 2]


@contextlib.contextmanager
def _process(command: list[str], core: int) -> Generator[None]:
    process = subprocess.Popen(["taskset", "-c", str(core), *command], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _counts(port: int) -> dict[str, int]:
    with urlopen(f"http://{HOST}:{port}/statistics", timeout=30) as answer:
        return json.load(answer)["counts"]


def _memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


async def _measure(running: Running, names: list[str], seconds: float, core: int) -> list[Phase]:
    port = running.port
    crowd = await Crowd.gather(port)
    await crowd.talk(WARM_UP_SECONDS)
    phases = [Phase("calm", await crowd.talk(seconds), _memory(running.pid))]
    _say(phases[0], phases[0])
    before = _counts(port)
    for name in names:
        wanted = list(ATTACKS) if name == "all at once" else [name]
        written = running.log.stat().st_size
        with _process([sys.executable, "-m", "benchmarks.attackers", str(port), *wanted], core):
            await crowd.talk(WARM_UP_SECONDS)
            waits = await crowd.talk(seconds)
            memory = _memory(running.pid)
        after = _counts(port)
        grown = {code: n - before.get(code, 0) for code, n in after.items() if n > before.get(code, 0)}
        phases.append(Phase(name, waits, memory, running.log.stat().st_size - written, grown))
        _say(phases[-1], phases[0])
        before = after
        await crowd.talk(WARM_UP_SECONDS)  # until the server has done with those who are gone
    phases.append(Phase("calm again", await crowd.talk(seconds), _memory(running.pid)))
    _say(phases[-1], phases[0])
    await crowd.part()
    return phases


def _say(phase: Phase, calm: Phase) -> None:
    times = f"median {1000 * phase.median:6.2f} ms, p99 {1000 * phase.p99:7.2f} ms, {phase.p99 / calm.p99:5.1f} x calm"
    grown = (phase.memory_bytes - calm.memory_bytes) / 1e6
    sizes = f"memory {grown:+6.1f} MB, log {phase.log_bytes / 1e3:6.1f} KB"
    print(f"{phase.name:28} {times}, {sizes}, {len(phase.waits):6} answers; {phase.counts}", flush=True)


def add_options(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each attack")
    parser.add_argument("--portable", action="store_true", help="attack the portable transport, not the fast lane")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"all by default: {', '.join(ATTACKS)}")


def run(options: Namespace) -> int:
    """Run the attacks and print the latencies; return 1 if honest clients lost anything."""
    _, load_core = machine.cores()
    machine.permit_files(20_000)
    transport = next(server for server in SERVERS if server.name == ("portable" if options.portable else "fast-lane"))
    server = Server(name="attacked", title="under attack", app="attacked_app", ws=transport.ws)
    names = options.attacks or [*ATTACKS, "all at once"]
    with serve(server, sys.executable) as running:
        os.sched_setaffinity(0, {load_core})
        try:
            asyncio.run(_measure(running, names, options.seconds, load_core))
        except Lost as lost:
            print(f"An honest client has lost something: {lost}\n{running.tail()}")
            return 1
    return 0
