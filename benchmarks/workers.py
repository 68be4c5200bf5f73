"""The command `workers`: cost of a broadcast to subscribers in several processes."""

import contextlib
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Generator
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.loads import Load, Timing
from benchmarks.runner import apply, serve
from benchmarks.servers import FAST_LANE, Server
from tests.support.engines import ENGINES, engine

MEMORY = "memory"


@dataclass(frozen=True, kw_only=True)
class Workers(Server):
    """A server of several processes, which hear each other over a broker."""

    number: int
    broker: str

    def command(self, python: str, port: int) -> list[str]:
        """The command line, with the broker's address in the environment."""
        workers = ["--workers", str(self.number)]
        return ["env", f"BROKER={self.broker}", *super().command(python, port), *workers]


@contextlib.contextmanager
def _broker(name: str) -> Generator[str]:
    if name == MEMORY:
        yield "memory://"
    else:
        with engine(name) as running:
            yield running.url


def add_options(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--workers", metavar="N", type=int, default=4)
    parser.add_argument("--subscribers", metavar="N", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"all by default: {', '.join(ENGINES)}")


def run(options: Namespace) -> int:
    """Measure, and print a table in Markdown. All workers share one core, so their seconds add up as they should."""
    machine.permit_files(2 * options.subscribers)
    timing = Timing(warmup=2.0, window=options.seconds)
    print("| broker | workers | in flight | deliveries per CPU-second | median | p99 | lost |")
    print("|---|---|---|---|---|---|---|")
    for name in [MEMORY, *(options.engines or ENGINES)]:
        number = 1 if name == MEMORY else options.workers
        with _broker(name) as broker:
            server = Workers(name=name, title=name, app="channels_app", ws=FAST_LANE, number=number, broker=broker)
            for window in (1, 16):
                with serve(server, sys.executable) as running:
                    load = Load(mode="fanout", connections=options.subscribers, window=window)
                    found = apply(load, running, timing)
                times = f"{found.p50_ms:.1f} ms | {found.p99_ms:.1f} ms"
                print(f"| {name} | {number} | {window} | {found.per_cpu_s:,.0f} | {times} | {found.lost} |", flush=True)
    return 0
