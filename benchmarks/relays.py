"""The command `relays`: latency and CPU time of a broadcast to another process, for each engine."""

import contextlib
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncGenerator, Generator

import anyio
import anyio.lowlevel
from msgspec import Struct

from benchmarks.hearer import ANSWERS, TOPIC, report
from starlette_channels import Broker, Gap
from starlette_channels.pubsub.hub import Publication
from tests.support.engines import ENGINES, engine

NEWS = {"body": "x" * 70, "ts": 0}
"""About 100 bytes."""

AT_ONCE = 200
"""Messages published before other callbacks of the event loop run."""

AHEAD = 4_000
"""Messages in flight at most, fewer than a relay's queue holds."""

PATIENCE = 30.0


class Result(Struct, frozen=True):
    """The result for one engine; times in milliseconds, rates per second."""

    engine: str
    median: float
    p99: float
    messages: float
    sent: float
    """Microseconds of CPU time of the publishing process for one message."""

    received: float
    """The same of the process that takes it in."""

    lost: int


class Asker:
    """Publishes to the subscribing process, and receives its answers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._answer: Publication | None = None
        self._news = anyio.Event()
        broker.hub().subscribe(ANSWERS, self)

    def deliver(self, publication: Publication) -> None:
        """Handle an answer."""
        self._answer = publication
        self._news.set()

    def miss(self, gap: Gap) -> None:
        """Ignore a gap: the missing answer will time out."""

    async def ask(self, event: str, wanted: str) -> Publication:
        """Publish a message and wait for the answer."""
        self._news = anyio.Event()
        self._broker.broadcast(TOPIC, event, NEWS)
        with anyio.fail_after(PATIENCE):
            while True:
                await self._news.wait()
                if self._answer is not None and self._answer.event == wanted:
                    return self._answer
                self._news = anyio.Event()

    async def until_heard(self) -> None:
        """Wait until a message and its answer arrive, because subscribing does not wait for the engine."""
        for _ in range(int(PATIENCE / 0.2)):
            with contextlib.suppress(TimeoutError), anyio.fail_after(0.2):
                await self.ask("begin", "begun")
                return
        raise TimeoutError("the other process does not answer")

    async def round_trip(self) -> float:
        """Measure the seconds of a round trip."""
        began = time.perf_counter()
        await self.ask("ping", "pong")
        return time.perf_counter() - began

    async def flood(self, seconds: float) -> int:
        """Publish as fast as possible, and return the number of messages received."""
        said = 0
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for _ in range(AHEAD // AT_ONCE):
                for _ in range(AT_ONCE):
                    self._broker.broadcast(TOPIC, "news", NEWS)
                await anyio.lowlevel.checkpoint()
            said += AHEAD
            await self.ask("ping", "pong")  # which comes behind all of them
        return said


@contextlib.contextmanager
def _other_process(url: str) -> Generator[None]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.hearer", url])
    try:
        yield
        process.wait(PATIENCE)
    finally:
        process.kill()


@contextlib.asynccontextmanager
async def _asking(url: str) -> AsyncGenerator[Asker]:
    broker = Broker(url)
    try:
        asker = Asker(broker)
        await asker.until_heard()
        yield asker
        broker.broadcast(TOPIC, "stop", {})
    finally:
        await broker.close()


async def _measure(name: str, url: str, seconds: float) -> Result:
    async with _asking(url) as asker:
        trips: list[float] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            trips.append(await asker.round_trip())
            await anyio.sleep(0.001)
        trips.sort()
        await asker.ask("begin", "begun")
        began, cpu = time.perf_counter(), time.process_time()
        said = await asker.flood(seconds)
        took, spent = time.perf_counter() - began, time.process_time() - cpu
        ended = report(await asker.ask("end", "ended"))
        half = [1000 * trips[len(trips) * share // 100] / 2 for share in (50, 99)]
        return Result(
            name,
            half[0],
            half[1],
            ended["heard"] / took,
            1e6 * spent / said,
            1e6 * ended["cpu"] / said,
            said - ended["heard"],
        )


def add_options(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--seconds", type=float, default=5.0, help="for the latency, and again for the throughput")
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"all by default: {', '.join(ENGINES)}")


def run(options: Namespace) -> int:
    """Measure, and print a table in Markdown."""
    print("| engine | one way, median | p99 | messages a second | CPU to send one | CPU to take one in | lost |")
    print("|---|---|---|---|---|---|---|")
    for name in options.engines or ENGINES:
        with engine(name) as server, _other_process(server.url):
            result = anyio.run(_measure, name, server.url, options.seconds)
        times = f"{result.median:.2f} ms | {result.p99:.2f} ms"
        cpu = f"{result.sent:.0f} us | {result.received:.0f} us"
        print(f"| {name} | {times} | {result.messages:,.0f} | {cpu} | {result.lost} |", flush=True)
    return 0
