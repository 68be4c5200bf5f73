"""The benchmarks: their arithmetic, and that the whole chain works. How fast anything is, is not for tests to say."""

import os
import shutil
import sys
from xml.etree import ElementTree

import pytest
from msgspec.structs import replace

from benchmarks import chart, report
from benchmarks.__main__ import main
from benchmarks.loads import Load, Measured, NoReport, Timing, parse
from benchmarks.results import Machine, Results, Sample, load, save
from benchmarks.runner import measure, plan
from benchmarks.running import installed
from benchmarks.scenarios import FANOUT, SCENARIOS, Scenario
from benchmarks.servers import FLOOR, OURS, SERVERS, Server
from benchmarks.wires import PHOENIX

GOOD = Measured(
    mode="fanout",
    conns=10,
    joined=10,
    failed=0,
    closed=0,
    secs=2.0,
    count=100,
    per_s=50.0,
    expected=100,
    lost=0,
    stalled=0,
    p50_ms=1.0,
    p99_ms=2.0,
    max_ms=3.0,
    server_cpu_s=1.0,
    per_cpu_s=100.0,
    client_cpu_s=1.0,
    other_cpu_s=0.0,
)


def scenario(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


def sample(scenario: str, server: str, figure: float, *, fault: str = "") -> Sample:
    return Sample(scenario=scenario, server=server, measured=replace(GOOD, per_cpu_s=figure), fault=fault)


def results(*samples: Sample) -> Results:
    machine = Machine(processor="a processor", cores=2, memory_gb=8, system="Linux 6.1")
    return Results(date="2025-01-01", machine=machine, versions={"python": "3.13"}, seconds=1, samples=list(samples))


def test_the_report_is_the_last_line_that_the_load_generator_writes() -> None:
    line = (
        '{"label":"","mode":"echo","conns":10,"joined":10,"failed":0,"closed":0,"secs":2.0,"count":100,"per_s":50.0,'
        '"expected":100,"lost":0,"stalled":0,"p50_ms":1.0,"p99_ms":2.0,"max_ms":3.0,"server_cpu_s":0.5,'
        '"per_cpu_s":200.0,"client_cpu_s":1.9,"other_cpu_s":0.2}'
    )
    measured = parse(f"joined 10 of 10\nround trips/s 50\n{line}\n")
    assert (measured.per_cpu_s, measured.client, measured.others, measured.fault) == (200, 0.95, 0.1, "")


@pytest.mark.parametrize("output", ["", "wsload: bind\n", "{}\n"])
def test_a_load_generator_without_a_report_is_an_error(output: str) -> None:
    with pytest.raises(NoReport):
        parse(output)


@pytest.mark.parametrize(
    ("measured", "fault"),
    [
        (replace(GOOD, lost=1), "1 of 100 were lost"),
        (replace(GOOD, failed=2), "2 of 10 connections failed"),
        (replace(GOOD, closed=3), "3 of 10 connections were closed"),
        (replace(GOOD, count=0), "nothing arrived"),
    ],
)
def test_a_run_in_which_anything_is_lost_has_failed(measured: Measured, fault: str) -> None:
    assert measured.fault == fault


def test_a_figure_is_the_median_of_its_runs() -> None:
    cell = results(*(sample(FANOUT, OURS, figure) for figure in (10, 90, 20))).cell(scenario(FANOUT), OURS)
    assert cell is not None
    assert cell.figure == 20


def test_one_failed_run_of_many_leaves_no_figure() -> None:
    found = results(sample(FANOUT, OURS, 10), sample(FANOUT, OURS, 10, fault="lost"), sample(FANOUT, FLOOR, 10))
    cell = found.cell(scenario(FANOUT), OURS)
    assert cell is not None
    assert (cell.figure, cell.fault, found.of_floor(scenario(FANOUT), OURS)) == (None, "lost", None)
    assert "FAILED: lost" in report.text(found)


def test_figures_are_compared_with_the_floor_of_the_same_scenario_or_of_its_reference() -> None:
    found = results(
        sample(FANOUT, FLOOR, 100),
        sample(FANOUT, OURS, 80),
        sample("echo-w1", FLOOR, 50),
        sample("echo-w1", OURS, 15),
        sample("rooms", OURS, 250),
    )
    ratios = {name: found.of_floor(scenario(name), OURS) for name in (FANOUT, "echo-w1", "rooms")}
    assert ratios == {FANOUT: 0.8, "echo-w1": 0.3, "rooms": 2.5}
    assert [found.goal_met(scenario(name)) for name in ratios] == [True, False, True]
    assert found.goal_met(scenario("memory")) is None


def test_what_is_compared_with_the_floor_elsewhere_has_it_measured_there_only() -> None:
    pairs = plan([scenario("rooms")], [server for server in SERVERS if server.name in (FLOOR, OURS)])
    assert [(scenario.name, server.name) for scenario, server in pairs] == [(FANOUT, FLOOR), ("rooms", OURS)]


def test_a_library_that_is_not_installed_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    left = installed(SERVERS, {"litestar": "2", "python-socketio": "5", "django": "5"})
    assert {server.name for server in SERVERS} - {server.name for server in left} == {"django"}
    assert capsys.readouterr().err == "django is left out: channels is not installed\n"


def test_results_survive_their_file_and_make_a_table_and_a_picture(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("results")
    found = results(sample(FANOUT, FLOOR, 300_000), sample(FANOUT, OURS, 240_000))
    save(found, folder / "found.json")
    assert load(folder / "found.json") == found

    assert main(["table", str(folder / "found.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "|  | send() loop in C | starlette_channels |",
        "| --- | ---: | ---: |",
        "| fan-out to 1,000, 1 in flight | 300 k (1.00) | 240 k (0.80) |",
    ]
    assert main(["chart", str(folder / "found.json"), "--svg", str(folder / "found.svg")]) == 0
    picture = ElementTree.parse(folder / "found.svg")
    assert "240 k" in [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert set(chart.SHOWN) <= {scenario.name for scenario in SCENARIOS}


def test_a_load_fills_in_its_topic_and_leaves_the_rest_to_the_load_generator() -> None:
    options = Load(mode="fanout", connections=10, rooms=2, window=3).options(PHOENIX, Timing(warmup=0, window=1))
    assert '["1","1","room:{room}","phx_join",{}]' in options
    assert options[-2:] == ["--pub-window", "3"]


@pytest.mark.skipif(shutil.which("cc") is None and "CI" not in os.environ, reason="no C compiler here")
@pytest.mark.parametrize("server", [FLOOR, OURS])
def test_the_whole_chain_works(server: str) -> None:
    few = Scenario(name="few", title="", unit="", load=Load(mode="fanout", connections=10, window=1))
    under_test = next(one for one in SERVERS if one.name == server)
    found = measure(few, under_test, sys.executable, Timing(warmup=0, window=0.3))
    assert found.fault == ""
    assert found.measured is not None
    assert found.measured.count >= 10


def test_a_server_that_does_not_start_is_a_failed_run_that_names_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = Server(name="nowhere", title="", app="nowhere")
    found = measure(scenario(FANOUT), nowhere, sys.executable, Timing(warmup=0, window=0.3))
    assert (found.measured, found.fault) == (None, "nowhere did not start")
    assert "nowhere" in capsys.readouterr().err


def test_a_pattern_that_fits_no_scenario_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--only", "fanout-7", "echo-9"]) == 2
    assert "no scenario is called fanout-7 or echo-9" in capsys.readouterr().err
