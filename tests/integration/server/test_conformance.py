"""The scenarios recorded from a real Phoenix, played against every kind of server that we name as supported.

`tests/conformance/selection.py` says which are played where. All scenarios of a server are played at the same time,
which takes seconds; each is a test case all the same.
"""

import functools
from collections.abc import Callable

import pytest

from tests.conformance.play import Outcomes, play_on
from tests.conformance.selection import (
    DIFFERENT,
    FAST_LANE_ONLY,
    FOLDER,
    SCENARIOS,
    SERVER_DECIDES,
    SERVERS,
    chosen,
)
from tests.support.servers import Kind

CASES = [pytest.param(kind, name, id=f"{kind}:{name}") for kind in SERVERS for name in chosen(kind)]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Callable[[Kind], Outcomes]:
    """The outcomes of all scenarios that this run is about, played when a kind of server is first asked for."""

    @functools.cache
    def of(kind: Kind) -> Outcomes:
        ids = {item.name.partition("[")[2].removesuffix("]") for item in request.session.items}
        return play_on(kind, {name: SCENARIOS[name] for name in chosen(kind) if f"{kind}:{name}" in ids})

    return of


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_client_sees_what_it_saw_of_phoenix(kind: Kind, name: str, outcomes: Callable[[Kind], Outcomes]) -> None:
    wrong = outcomes(kind).wrong[name]
    if wrong is not None:
        pytest.fail(f"{SCENARIOS[name]['purpose']}\n{wrong}\n{outcomes(kind).log}", pytrace=False)


def test_every_scenario_that_is_left_out_exists() -> None:
    assert set(DIFFERENT) | SERVER_DECIDES <= set(SCENARIOS)


def test_only_what_divergences_md_lists_may_differ() -> None:
    listed = (FOLDER.parent / "divergences.md").read_text()
    for name in {*DIFFERENT, *FAST_LANE_ONLY, *SERVER_DECIDES}:
        category, _, short = name.partition("/")
        assert category in listed, name
        assert short in listed, name
