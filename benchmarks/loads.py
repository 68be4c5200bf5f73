"""Loads and reports of the load generator."""

from typing import Literal

import msgspec
from msgspec import Struct

from benchmarks.wires import Wire

Mode = Literal["fanout", "echo", "connect", "idle"]

FRAME_BYTES = 100
JOINING_AT_ONCE = 100
CONNECTIONS_PER_ADDRESS = (
    5_000  # an address in 127.0.0.0/8 has some 28,000 ports for its clients, some not yet free again
)


class Timing(Struct, frozen=True, kw_only=True):
    """Seconds: before the measured window, of the window, and limits for joins and late messages."""

    warmup: float
    window: float
    joining: float = 120.0
    drain: float = 20.0

    @property
    def bound(self) -> float:
        """The timeout of the run in seconds."""
        return self.joining + self.warmup + self.window + self.drain + 30


class Load(Struct, frozen=True, kw_only=True):
    """One run of the load generator.

    `window` is the number of messages in flight: for each publisher, until all its subscribers have it, or for each
    connection that waits for its echo. With `rate` instead, messages are sent at that rate per second.
    """

    mode: Mode
    connections: int
    says: Literal["publish", "echo"] = "publish"
    topic: str = "room:{room}"
    rooms: int = 1
    publishers: int = 1
    window: int = 0
    rate: float = 0

    @property
    def files(self) -> int:
        """Number of open files that server and load generator need each."""
        return self.connections + 200

    def options(self, wire: Wire, timing: Timing) -> list[str]:
        """The load generator's options, without the server's address."""
        options = ["--mode", self.mode, "--conns", self.connections, "--rooms", self.rooms]
        options += ["--send", wire.join.replace("{topic}", self.topic), *wire.options]
        options += ["--inflight", JOINING_AT_ONCE, "--timeout", timing.joining]
        options += ["--src-ips", 1 + self.connections // CONNECTIONS_PER_ADDRESS]
        if self.mode == "idle":
            options += ["--hold", timing.window]
        elif self.mode in ("fanout", "echo"):
            frame = wire.echo if self.says == "echo" else wire.publish
            options += ["--pub", frame.replace("{topic}", self.topic), "--size", FRAME_BYTES]
            options += ["--marker", wire.echo_marker if self.says == "echo" else '"ts":']
            options += ["--publishers", self.publishers, "--warmup", timing.warmup]
            options += ["--duration", timing.window, "--drain", timing.drain]
            options += ["--pub-rate", self.rate] if self.rate else ["--pub-window", self.window]
        return [str(option) for option in options]


class Measured(Struct, frozen=True, kw_only=True):
    """The load generator's report, with its names. Latencies are in milliseconds."""

    mode: Mode
    conns: int
    joined: int
    failed: int
    closed: int
    secs: float
    count: int
    per_s: float
    expected: int
    lost: int
    stalled: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    server_cpu_s: float
    per_cpu_s: float
    client_cpu_s: float
    other_cpu_s: float
    rss_per_conn_held: float = 0.0

    @property
    def fault(self) -> str:
        """The reason why the run is invalid, or an empty text."""
        if self.failed:
            return f"{self.failed:,} of {self.conns:,} connections failed"
        if self.closed:
            return f"{self.closed:,} of {self.conns:,} connections were closed"
        if self.lost:
            return f"{self.lost:,} of {self.expected:,} were lost"
        if self.mode != "idle" and not self.count:
            return "nothing arrived"
        return ""

    @property
    def client(self) -> float:
        """The load generator's share of its core; near 1, it limits the result."""
        return self.client_cpu_s / self.secs

    @property
    def others(self) -> float:
        """Number of cores used by other programs meanwhile."""
        return self.other_cpu_s / self.secs


class NoReport(Exception):
    """The load generator ended without a report; the text is its output."""


def parse(output: str) -> Measured:
    """Parse the load generator's output; the report is the last line."""
    last = output.rstrip().rpartition("\n")[2]
    try:
        return msgspec.json.decode(last, type=Measured)
    except msgspec.DecodeError as error:
        raise NoReport(f"no report in what the load generator wrote ({error}): {output!r}") from None
