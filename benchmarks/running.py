"""The command `run`: runs the chosen scenarios and servers several times, and prints the table."""

import fnmatch
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from benchmarks import machine, report, results
from benchmarks.compiler import CACHE, compiled
from benchmarks.loads import Timing
from benchmarks.results import Results, Sample
from benchmarks.runner import measure, plan
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.servers import FLOOR, SERVERS, Server

NORMAL = Timing(warmup=1.0, window=4.0)
QUICK = Timing(warmup=0.3, window=1.0)


def add_options(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--only", metavar="PATTERN", nargs="+", default=["*"], help="scenarios: fanout-1000-* echo-*")
    parser.add_argument("--servers", metavar="NAME", nargs="+", default=["*"], help="servers; the floor runs always")
    parser.add_argument("--runs", metavar="N", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--quick", action="store_true", help="one short run of each: a look, not a measurement")
    parser.add_argument("--python", metavar="PATH", default=sys.executable, help="run the servers with this Python")
    parser.add_argument("--json", metavar="PATH", type=Path, default=CACHE / "results.json", help="where to save")
    parser.add_argument("--list", action="store_true", help="name the scenarios and the servers, and do nothing")


def run(options: Namespace) -> int:
    """Measure, save after each round, print the table; 1 if a run failed, and 0 otherwise."""
    scenarios = [scenario for scenario in SCENARIOS if _chosen(scenario.name, options.only)]
    servers = [server for server in SERVERS if server.name == FLOOR or _chosen(server.name, options.servers)]
    if options.list:
        print(*(f"{one.name:16}{one.title}" for one in (*scenarios, *servers)), sep="\n")
        return 0
    if not scenarios:
        say(f"no scenario is called {' or '.join(options.only)}; --list names them")
        return 2
    for program in ("wsload", "floor"):
        compiled(program)  # what is wrong with the compiler is said before anything is measured
    machine.take_precedence(os.getpid())
    timing = QUICK if options.quick else NORMAL
    versions = machine.installed(options.python, {name for server in servers for name in server.requires})
    pairs = plan(permitted(scenarios), installed(servers, versions))
    found = Results(date=machine.today(), machine=machine.kind(), versions=versions, seconds=timing.window, samples=[])
    for number in range(1 if options.quick else options.runs):
        for scenario, server in pairs:
            sample = measure(scenario, server, options.python, timing)
            found.samples.append(sample)
            say(f"run {number + 1}  {scenario.name:16} {server.name:10} {_short(scenario, sample)}")
        results.save(found, options.json)
    print(report.text(found))
    return int(any(sample.fault for sample in found.samples))


def say(text: str) -> None:
    """Print the progress."""
    print(text, file=sys.stderr, flush=True)


def _short(scenario: Scenario, sample: Sample) -> str:
    if sample.fault or sample.measured is None:
        return f"FAILED: {sample.fault}"
    return report.amount(getattr(sample.measured, scenario.figure), scenario.unit)


def _chosen(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def permitted(scenarios: list[Scenario]) -> list[Scenario]:
    """The scenarios for which enough files can be opened; the others are named."""
    fit: list[Scenario] = []
    for scenario in scenarios:
        if machine.permit_files(scenario.files):
            fit.append(scenario)
        else:
            say(f"{scenario.name} is left out: it needs {scenario.files:,} open files, see `ulimit -Hn`")
    return fit


def installed(servers: list[Server], versions: dict[str, str]) -> list[Server]:
    """The servers that can be started; the others are named."""
    fit: list[Server] = []
    for server in servers:
        if missing := [name for name in server.requires if name not in versions]:
            say(f"{server.name} is left out: {', '.join(missing)} is not installed")
        else:
            fit.append(server)
    return fit
