"""The cases of the Autobahn testsuite, all that are about what the fast lane offers, by a runner that pip can install.

The runner, kosoku, brings the testsuite's own cases. It does not mind a server that leaves the TCP connection to the
client; the testsuite itself does, but needs Python 2.7: `scripts/autobahn` runs it.
"""

import subprocess
import sysconfig
from pathlib import Path

from tests.autobahn.echo import KIND
from tests.autobahn.verdicts import CASES, INFORMATIONAL, OK, verdicts
from tests.support.servers import serve

TO_KNOW_ONLY = dict.fromkeys(("7.1.6", "7.13.1", "7.13.2"), INFORMATIONAL)
"""Cases in which a server may do as it likes."""

KOSOKU = Path(sysconfig.get_path("scripts"), "kosoku")


def test_the_fast_lane_passes_every_case_of_the_autobahn_testsuite(tmp_path: Path) -> None:
    with serve("tests.autobahn.echo:app", KIND) as server:
        command = [KOSOKU, "--parallelism", "8", "--exclude", "12.*", "--exclude", "13.*", "--outdir", tmp_path]
        ran = subprocess.run([*command, server.ws], capture_output=True, text=True, timeout=120)
    found = verdicts(tmp_path)
    assert {case: str(verdict) for case, verdict in found.items() if str(verdict) != OK} == TO_KNOW_ONLY
    assert ran.returncode == 0, ran.stderr
    assert len(found) == CASES
