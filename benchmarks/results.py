"""Results of the benchmark as kept in a file, and medians over several runs."""

from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

from benchmarks.loads import Measured
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.servers import FLOOR, OURS, SERVERS, Server


class Sample(Struct, frozen=True, kw_only=True):
    """One server under one scenario, once. `beside` is the report of the load that ran meanwhile."""

    scenario: str
    server: str
    measured: Measured | None = None
    beside: Measured | None = None
    fault: str = ""


class Machine(Struct, frozen=True, kw_only=True):
    """The kind of machine."""

    processor: str
    cores: int
    memory_gb: int
    system: str


class Cell(Struct, frozen=True, kw_only=True):
    """The medians of all runs of one server under one scenario; `figure` is none if any of them failed."""

    figure: float | None
    p50_ms: float
    p99_ms: float
    client: float
    fault: str = ""


class Results(Struct, kw_only=True):
    """All samples, and where they come from."""

    date: str
    machine: Machine
    versions: dict[str, str]
    seconds: float
    samples: list[Sample]

    def scenarios(self) -> list[Scenario]:
        """The scenarios that were run, in the order of their list."""
        run = {sample.scenario for sample in self.samples}
        return [scenario for scenario in SCENARIOS if scenario.name in run]

    def servers(self) -> list[Server]:
        """The servers that were run, in the order of their list."""
        run = {sample.server for sample in self.samples}
        return [server for server in SERVERS if server.name in run]

    def runs(self) -> int:
        """How often each server was run under each scenario."""
        return max(
            len([1 for sample in self.samples if (sample.scenario, sample.server) == pair])
            for pair in {(sample.scenario, sample.server) for sample in self.samples}
        )

    def others(self) -> float:
        """Cores that other programs kept busy meanwhile: how far the machine was not ours."""
        return median(one.measured.others for one in self.samples if one.measured)

    def cell(self, scenario: Scenario, server: str) -> Cell | None:
        """Medians over the runs, or none if there was no run."""
        samples = self._samples(scenario, server)
        if not samples:
            return None
        measured = [sample.measured for sample in samples if sample.measured]
        figures = [figure for figure in self._figures(scenario, server) if figure is not None]
        return Cell(
            figure=median(figures) if len(figures) == len(samples) else None,
            p50_ms=median([one.p50_ms for one in measured] or [0]),
            p99_ms=median([one.p99_ms for one in measured] or [0]),
            client=median([one.client for one in measured] or [0]),
            fault=next((sample.fault for sample in samples if sample.fault), ""),
        )

    def of_floor(self, scenario: Scenario, server: str) -> float | None:
        """The figure in floors, where that makes sense and both are there: the median over the runs, since what slows
        one run of a server down often slows the floor's down as well."""
        if scenario.figure != "per_cpu_s":
            return None
        reference = next((one for one in SCENARIOS if one.name == scenario.reference), scenario)
        ours, floors = self._figures(scenario, server), self._figures(reference, FLOOR)
        if not ours or not floors or None in (*ours, *floors):
            return None
        return median(mine / floor for mine, floor in zip(ours, floors, strict=False) if mine is not None and floor)

    def _samples(self, scenario: Scenario, server: str) -> list[Sample]:
        return [one for one in self.samples if (one.scenario, one.server) == (scenario.name, server)]

    def _figures(self, scenario: Scenario, server: str) -> list[float | None]:
        samples = self._samples(scenario, server)
        return [None if one.fault else getattr(one.measured, scenario.figure) for one in samples]

    def goal_met(self, scenario: Scenario) -> bool | None:
        """Whether our server meets its goal, or none if there is no goal, or nothing to compare with it."""
        ours, ratio = self.cell(scenario, OURS), self.of_floor(scenario, OURS)
        if ours is None:
            return None
        if scenario.at_least is not None and ratio is not None:
            return ratio >= scenario.at_least
        if scenario.at_most is not None and ours.figure is not None:
            return ours.figure <= scenario.at_most
        return None


def load(path: Path) -> Results:
    """Read a file of results."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def save(results: Results, path: Path) -> None:
    """Write a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
