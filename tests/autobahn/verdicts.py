"""What the Autobahn testsuite found, read from the index of its reports."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CASES = 301
"""How many there are in the groups 1 to 10; 12 and 13 are about compression, which the fast lane does not offer."""

OK, NON_STRICT, INFORMATIONAL = "OK", "NON-STRICT", "INFORMATIONAL"


class Verdict(NamedTuple):
    """On one case: on what the server sent, and on how it closed."""

    behavior: str
    close: str

    @property
    def passed(self) -> bool:
        """Whether the server did what the RFC says it must."""
        return {self.behavior, self.close} <= {OK, NON_STRICT, INFORMATIONAL}

    def __str__(self) -> str:
        return self.behavior if self.behavior == self.close else f"{self.behavior}, close {self.close}"


def verdicts(reports: Path) -> Mapping[str, Verdict]:
    """The verdict on each case, by its id."""
    (cases,) = json.loads((reports / "index.json").read_text()).values()
    return {case: Verdict(found["behavior"], found["behaviorClose"]) for case, found in cases.items()}
