"""`python -m tests.autobahn WSTEST [CASE...]`: let the Autobahn testsuite loose on the fast lane; see scripts/autobahn.

Without cases it runs all that are about what the lane offers. Fails unless the server passes every one of them.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.autobahn.echo import KIND
from tests.autobahn.verdicts import CASES, OK, verdicts
from tests.support.servers import ROOT, serve

REPORTS = ROOT / "test-results" / "autobahn"
GROUPS = [f"{group}.*" for group in (*range(1, 8), 9, 10)]


def run(wstest: str, url: str, cases: list[str]) -> None:
    """Run the testsuite's fuzzing client; its reports go to `REPORTS`."""
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    spec = REPORTS / "spec.json"
    servers = [{"agent": "fast lane", "url": url}]
    spec.write_text(json.dumps({"outdir": str(REPORTS), "servers": servers, "cases": cases, "exclude-cases": []}))
    with Path(REPORTS, "log.txt").open("w") as log:
        subprocess.run(
            [wstest, "--mode", "fuzzingclient", "--spec", spec], check=True, stdout=log, stderr=subprocess.STDOUT
        )


def main(wstest: str, *cases: str) -> str | None:
    """Run the cases and print what became of them; returns what is wrong, if anything is."""
    with serve("tests.autobahn.echo:app", KIND) as server:
        run(wstest, server.ws, list(cases) or GROUPS)
    found = verdicts(REPORTS)
    for case, verdict in found.items():
        if {verdict.behavior, verdict.close} != {OK}:
            print(f"{case}: {verdict}")
    counted = Counter(str(verdict) for verdict in found.values())
    print(f"{len(found)} cases:", ", ".join(f"{times} {verdict}" for verdict, times in counted.most_common()))
    if not all(verdict.passed for verdict in found.values()):
        return f"see {REPORTS / 'index.html'}"
    return None if found and (cases or len(found) == CASES) else f"there should be {CASES} cases"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
