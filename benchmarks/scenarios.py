"""The scenarios of the benchmark."""

from typing import Literal

from msgspec import Struct

from benchmarks.loads import Load

Figure = Literal["per_cpu_s", "rss_per_conn_held", "p99_ms"]


class Scenario(Struct, frozen=True, kw_only=True):
    """A load, and which of its figures counts.

    `beside` is a load that runs meanwhile. The floor's figure to compare with is that of the same scenario, or of
    `reference`. `at_least` is our goal in floors, `at_most` our goal in the figure's own unit.
    """

    name: str
    title: str
    unit: str
    load: Load
    beside: Load | None = None
    figure: Figure = "per_cpu_s"
    reference: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def has_floor(self) -> bool:
        """Whether the floor can run it: it has one topic only, and no meaningful memory figure."""
        return self.figure == "per_cpu_s" and not self.reference

    @property
    def files(self) -> int:
        """Open files that the server needs."""
        return self.load.files + (self.beside.files if self.beside else 0)


FANOUT = "fanout-1000-w1"


def fanout(subscribers: int, window: int, at_least: float | None = None) -> Scenario:
    """Build a scenario with all clients on one topic, one of which publishes."""
    return Scenario(
        name=f"fanout-{subscribers}-w{window}",
        title=f"fan-out to {subscribers:,}, {window} in flight",
        unit="deliveries",
        load=Load(mode="fanout", connections=subscribers, window=window),
        at_least=at_least,
    )


def echo(window: int, at_least: float) -> Scenario:
    """Build a scenario with 100 clients that push and wait for the reply."""
    return Scenario(
        name=f"echo-w{window}",
        title=f"push and reply, 100 clients, {window} in flight each",
        unit="replies",
        load=Load(mode="echo", says="echo", connections=100, window=window),
        at_least=at_least,
    )


SCENARIOS = [
    fanout(100, 1, at_least=0.80),
    fanout(100, 16),
    fanout(1_000, 1, at_least=0.78),
    fanout(1_000, 16, at_least=6.0),
    fanout(10_000, 1, at_least=0.70),
    fanout(10_000, 2),
    Scenario(
        name="rooms",
        title="100 rooms of 10, everyone publishing",
        unit="deliveries",
        load=Load(mode="fanout", connections=1_000, rooms=100, publishers=1_000, window=1),
        reference=FANOUT,
        at_least=2.0,
    ),
    echo(1, at_least=0.40),
    echo(8, at_least=0.55),
    Scenario(
        name="joins",
        title="connect and join, 10,000 clients, 100 at once",
        unit="joins",
        load=Load(mode="connect", connections=10_000),
        reference=FANOUT,
        at_least=6_000 / 355_000,
    ),
    Scenario(
        name="memory",
        title="memory of an idle joined connection, of 10,000",
        unit="bytes",
        load=Load(mode="idle", connections=10_000),
        figure="rss_per_conn_held",
        at_most=4_096,
    ),
    Scenario(
        name="calm",
        title="echo p99 while 10,000 get 4 broadcasts a second",
        unit="ms",
        load=Load(
            mode="fanout", says="echo", topic="room:calm{i}", connections=100, rooms=100, publishers=100, rate=400
        ),
        beside=Load(mode="fanout", connections=10_000, rate=4),
        figure="p99_ms",
        at_most=10,
    ),
]
