"""The trips of a message through the package stay short: few calls, and few moves between files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EAGER = sys.version_info >= (3, 12)
"""Whether a handler begins at once. Without that, each message waits for a turn, and is counted meanwhile."""

MOST = {
    "frame, handler, broadcast and reply": (40, 20) if EAGER else (42, 31),
    "join": (45, 30) if EAGER else (58, 42),
    "join, presence.track and push_state": (125, 90) if EAGER else (138, 100),
}
"""Calls and moves of each trip; `scripts/trips --calls` lists them."""


@pytest.fixture(scope="module")
def trips() -> dict[str, tuple[int, int]]:
    """Count in a process of its own: what other tests have imported changes the ways."""
    command = [sys.executable, "-m", "benchmarks.trips", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: (calls, moves) for name, (calls, moves) in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", MOST)
def test_a_trip_has_few_calls_and_few_moves_between_files(name: str, trips: dict[str, tuple[int, int]]) -> None:
    calls, moves = trips[name]
    assert calls <= MOST[name][0]
    assert moves <= MOST[name][1]
