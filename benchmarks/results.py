"""What was measured, as it is kept in a file, and the arithmetic over several runs."""

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
    """What kind of machine it was."""

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
        samples = [one for one in self.samples if (one.scenario, one.server) == (scenario.name, server)]
        if not samples:
            return None
        fault = next((sample.fault for sample in samples if sample.fault), "")
        measured = [sample.measured for sample in samples if sample.measured]
        if not measured:
            return Cell(figure=None, p50_ms=0, p99_ms=0, client=0, fault=fault)
        return Cell(
            figure=None if fault else median(getattr(one, scenario.figure) for one in measured),
            p50_ms=median(one.p50_ms for one in measured),
            p99_ms=median(one.p99_ms for one in measured),
            client=median(one.client for one in measured),
            fault=fault,
        )

    def of_floor(self, scenario: Scenario, server: str) -> float | None:
        """The figure in floors, where that makes sense and both are there."""
        if scenario.figure != "per_cpu_s":
            return None
        reference = next((one for one in SCENARIOS if one.name == scenario.reference), scenario)
        cell, floor = self.cell(scenario, server), self.cell(reference, FLOOR)
        if cell is None or cell.figure is None or floor is None or not floor.figure:
            return None
        return cell.figure / floor.figure

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
