"""What a type checker sees: right programs pass, mistakes are found where they are made, all public types are known."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import ROOT

PROGRAMS = ROOT / "tests" / "typing"
GOOD, BAD = PROGRAMS / "good.py", PROGRAMS / "bad.py"


def pyright(directory: Path, *arguments: str) -> dict[str, Any]:
    """Run pyright in a directory of its own, so that no project's configuration counts, and return its report."""
    venv = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{venv}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "pyright", "--outputjson", *arguments]
    run = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.startswith("{"), run.stdout + run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def diagnostics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, list[str]]]:
    """What strict pyright says of both files, by line; one run, as most of its time goes into starting."""
    directory = tmp_path_factory.mktemp("pyright")
    (directory / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    for program in (GOOD, BAD):
        shutil.copy(program, directory)
    report = pyright(directory, "--pythonpath", sys.executable)
    assert report["summary"]["filesAnalyzed"] == 2
    found: dict[str, dict[int, list[str]]] = {GOOD.name: {}, BAD.name: {}}
    for one in report["generalDiagnostics"]:
        lines = found[Path(one["file"]).name]
        lines.setdefault(one["range"]["start"]["line"] + 1, []).append(f"{one['severity']}: {one['message']}")
    return found


def test_right_programs_pass(diagnostics: dict[str, dict[int, list[str]]]) -> None:
    assert diagnostics[GOOD.name] == {}


def test_mistakes_are_found_on_the_lines_where_they_are_made(diagnostics: dict[str, dict[int, list[str]]]) -> None:
    lines = BAD.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# ERR")}
    found = diagnostics[BAD.name]
    assert len(marked) > 50
    assert {lines[number - 1] for number in marked - found.keys()} == set(), "not found"
    assert {lines[number - 1]: found[number] for number in found.keys() - marked} == {}, "found, but not marked"


def test_right_programs_run() -> None:
    spec = importlib.util.spec_from_file_location("good", GOOD)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_every_public_type_is_known(tmp_path: Path) -> None:
    completeness = pyright(tmp_path, "--verifytypes", "starlette_channels", "--ignoreexternal")["typeCompleteness"]
    vague = {
        symbol["name"]: [one["message"] for one in symbol["diagnostics"]]
        for symbol in completeness["symbols"]
        if symbol["isExported"] and (not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"])
    }
    assert completeness["exportedSymbolCounts"]["withKnownType"] > 300
    assert vague == {}
    assert completeness["completenessScore"] == 1
