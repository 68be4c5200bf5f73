"""A bar chart of results in SVG, for light and dark pages of README and documentation."""

from collections.abc import Iterator
from xml.sax.saxutils import escape

from benchmarks.compiler import ROOT
from benchmarks.report import amount
from benchmarks.results import Results
from benchmarks.scenarios import Scenario
from benchmarks.servers import FLOOR, OURS, Server

PATH = ROOT / "docs" / "_static" / "benchmarks.svg"
SHOWN = ("fanout-1000-w1", "fanout-1000-w16", "rooms", "echo-w1", "joins", "memory")
WIDTH, LABEL, NUMBER = 720, 190, 90
BAR, GAP, HEAD = 16, 6, 34
STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 13px; }
.bar { fill: #8c959f; } .ours { fill: #2f6fdb; } .floor { fill: #c8ced5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .bar { fill: #6e7781; } .ours { fill: #58a6ff; } .floor { fill: #444c56; }
}"""


def svg(results: Results) -> str:
    """Draw one panel for each scenario, with its own scale, and one bar for each server."""
    panels = [scenario for scenario in results.scenarios() if scenario.name in SHOWN]
    drawn: list[str] = []
    top = 0
    for scenario in panels:
        bars = _figures(results, scenario)
        drawn.append(f'<text class="title" x="0" y="{top + 22}">{escape(_heading(scenario))}</text>')
        drawn += _bars(bars, scenario, top + HEAD)
        top += HEAD + len(bars) * (BAR + GAP) + GAP
    open_tag = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img">'
    title = "<title>starlette_channels and others, by work per CPU-second of the server</title>"
    return "\n".join([open_tag, title, f"<style>{STYLE}</style>", *drawn, "</svg>", ""])


def _heading(scenario: Scenario) -> str:
    if scenario.figure == "per_cpu_s":
        return f"{scenario.title}: {scenario.unit} per CPU-second"
    return f"{scenario.title}: less is better"


def _figures(results: Results, scenario: Scenario) -> list[tuple[Server, float]]:
    cells = [(server, results.cell(scenario, server.name)) for server in results.servers()]
    return [(server, cell.figure) for server, cell in cells if cell is not None and cell.figure is not None]


def _bars(figures: list[tuple[Server, float]], scenario: Scenario, top: int) -> Iterator[str]:
    longest = max((figure for _, figure in figures), default=1)
    for number, (server, figure) in enumerate(figures):
        y = top + number * (BAR + GAP)
        length = max(1.0, figure / longest * (WIDTH - LABEL - NUMBER))
        kind = {OURS: "ours", FLOOR: "floor"}.get(server.name, "bar")
        yield f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(server.title)}</text>'
        yield f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3"/>'
        yield f'<text x="{LABEL + length + 6:.1f}" y="{y + 12}">{escape(amount(figure, scenario.unit))}</text>'
