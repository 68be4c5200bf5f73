"""The command `presence`: many clients join one topic at once, and then some join and leave all the time."""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from benchmarks import machine
from benchmarks.compiler import compiled
from benchmarks.loads import JOINING_AT_ONCE
from benchmarks.runner import Running, serve
from benchmarks.servers import FAST_LANE, HOST, Server

JOIN = '["1","1","hall:1","phx_join",{}]'
TICKS = 100.0
"""Units per second of the times in /proc."""

PATIENCE = 300.0


def _statistics(running: Running) -> dict[str, int]:
    with urlopen(f"http://{HOST}:{running.port}/statistics", timeout=60) as answer:
        return json.load(answer)


def _cpu_seconds(running: Running) -> float:
    fields = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _clients(running: Running, mode: str, options: Sequence[object]) -> list[str]:
    address = f"ws://{HOST}:{running.port}/socket/websocket?vsn=2.0.0"
    command = [str(compiled("wsload")), "--mode", mode, "--url", address, "--send", JOIN, "--timeout", int(PATIENCE)]
    return [str(part) for part in (*command, "--cpu", machine.cores()[1], *options)]


class Spell:
    """A period of time, and the server's cost in it."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._before = _statistics(running)
        self._cpu, self._began = _cpu_seconds(running), time.monotonic()

    def line(self, title: str) -> str:
        """Return the changes since the beginning as a row of the table."""
        after = _statistics(self._running)
        spent, took = _cpu_seconds(self._running) - self._cpu, time.monotonic() - self._began
        diffs, changes, size = (after[name] - self._before[name] for name in ("diffs", "changes", "bytes"))
        per = f"{changes / max(diffs, 1):.1f} | {size / max(diffs, 1):,.0f}"
        return f"| {title} | {took:.1f} s | {spent:.1f} s | {1000 * spent / max(changes, 1):.2f} ms | {diffs} | {per} |"


def add_options(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--members", metavar="N", type=int, default=2_000, help="who come at once, and stay")
    parser.add_argument("--churn", metavar="N", type=int, default=100, help="joins a second, each gone at once again")
    parser.add_argument("--seconds", type=float, default=10.0, help="of churn")


def run(options: Namespace) -> int:
    """Measure, and print a table in Markdown."""
    machine.permit_files(options.members + 1_000)
    server = Server(name="presence", title="presence", app="presence_app", ws=FAST_LANE)
    with serve(server, sys.executable) as running:
        print("| what | took | CPU | CPU for a change | diffs | changes in a diff | bytes of a diff |")
        print("|---|---|---|---|---|---|---|")
        spell = Spell(running)
        stay = ["--conns", options.members, "--inflight", JOINING_AT_ONCE, "--prewarm", 0]
        stay += ["--hold", options.seconds + 30]
        with subprocess.Popen(
            _clients(running, "idle", stay), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as members:
            assert members.stdout is not None
            members.stdout.readline()  # comes when all have joined
            print(spell.line(f"{options.members:,} come at once"), flush=True)
            spell = Spell(running)
            visits = ["--conns", int(options.churn * options.seconds), "--rate", options.churn]
            subprocess.run(_clients(running, "connect", visits), stdout=subprocess.DEVNULL, check=True)
            print(spell.line(f"{options.churn} a second come and go"), flush=True)
            members.kill()
    return 0
