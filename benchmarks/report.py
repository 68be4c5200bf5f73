"""Results as text: a table for the terminal, and one in Markdown."""

from collections.abc import Iterator

from benchmarks.results import Cell, Results
from benchmarks.scenarios import Scenario
from benchmarks.servers import OURS

BUSY = 0.93
"""The load generator's share of its core from which on it, too, is being measured."""


QUIET = 0.15
"""Cores that other programs may keep busy before the figures are worth less."""


def amount(value: float, unit: str) -> str:
    """A figure with three digits or so, and its unit."""
    match unit:
        case "bytes":
            return f"{value / 1024:.1f} KB"
        case "ms":
            return f"{value:.1f} ms"
        case _ if value >= 1_000_000:
            return f"{value / 1_000_000:.2f} M"
        case _ if value >= 10_000:
            return f"{value / 1_000:.0f} k"
        case _:
            return f"{value:,.0f}"


def ratio(value: float | None) -> str:
    """A figure in floors, or nothing."""
    if value is None:
        return ""
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def goal(results: Results, scenario: Scenario) -> str:
    """Our goal, and whether it is met."""
    met = {True: "met", False: "MISSED", None: ""}[results.goal_met(scenario)]
    if scenario.at_least is not None:
        return f"goal {ratio(scenario.at_least)} {met}".rstrip()
    if scenario.at_most is not None:
        return f"goal {amount(scenario.at_most, scenario.unit)} {met}".rstrip()
    return ""


def text(results: Results) -> str:
    """Everything, for the terminal."""
    return "\n".join(_lines(results))


def _lines(results: Results) -> Iterator[str]:
    yield " ".join(f"{name} {version}" for name, version in results.versions.items())
    machine = results.machine
    yield f"{machine.processor}, {machine.cores} cores, {machine.memory_gb} GB, {machine.system}"
    yield f"medians of {results.runs()} runs of {results.seconds:g} s, per CPU-second of the server"
    if results.others() > QUIET:
        yield f"DISTURBED: other programs kept {results.others():.1f} cores busy meanwhile"
    for scenario in results.scenarios():
        yield ""
        against = f", compared with the floor at {scenario.reference}" if scenario.reference else ""
        yield f"{scenario.title} ({scenario.unit}{against})"
        yield f"  {'':28}{'figure':>10}{'of floor':>10}{'p50 ms':>10}{'p99 ms':>10}{'client':>8}"
        for server in results.servers():
            if cell := results.cell(scenario, server.name):
                notes = [goal(results, scenario)] if server.name == OURS else []
                notes += ["the load generator is the bottleneck"] if cell.client > BUSY else []
                notes += [f"FAILED: {cell.fault}"] if cell.fault else []
                numbers = _numbers(cell, scenario, ratio(results.of_floor(scenario, server.name)))
                yield f"  {server.title:28}{numbers}  {'; '.join(filter(None, notes))}".rstrip()


def _numbers(cell: Cell, scenario: Scenario, floors: str) -> str:
    figure = "-" if cell.figure is None else amount(cell.figure, scenario.unit)
    times = f"{cell.p50_ms:>10.2f}{cell.p99_ms:>10.2f}" if cell.p99_ms else f"{'':20}"
    return f"{figure:>10}{floors:>10}{times}{cell.client:>8.0%}"


def markdown(results: Results) -> str:
    """One row for each scenario and one column for each server, for the documentation."""
    servers = results.servers()
    rows = [["", *(server.title for server in servers)], ["---", *("---:" for _ in servers)]]
    for scenario in results.scenarios():
        cells = [_markdown_cell(results, scenario, server.name) for server in servers]
        rows.append([scenario.title, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _markdown_cell(results: Results, scenario: Scenario, server: str) -> str:
    cell = results.cell(scenario, server)
    if cell is None:
        return ""
    if cell.figure is None:
        return "failed"
    floors = ratio(results.of_floor(scenario, server))
    return f"{amount(cell.figure, scenario.unit)}{f' ({floors})' if floors else ''}"
