"""The scenarios recorded from a real Phoenix, played against every kind of server that we name as supported.

`tests/conformance/selection.py` says which are played where. All scenarios of a server are played at the same time,
which takes seconds; each is a test case all the same.
"""

import argparse
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.run import attempt
from tests.conformance.selection import DIFFERENT, LATER, LATER_CATEGORIES, SCENARIOS, SERVERS, chosen
from tests.servers import Server, serve

AT_ONCE = 12
SECONDS = 10.0  # that a frame may take on a busy machine; the scenarios' own times are theirs

CASES = [
    pytest.param(kind, name, id=f"{kind}:{name}", marks=pytest.mark.xdist_group(f"conformance {kind}"))
    for kind in SERVERS
    for name in chosen(kind)
]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve("tests.conformance.app:app", request.param) as server:
        yield server


@pytest.fixture(scope="module")
def outcomes(server: Server, request: pytest.FixtureRequest) -> dict[str, str | None]:
    """What went wrong in each scenario that this run is about: None if nothing did."""
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = {call["name"] for call in calls if call.get("server") is server.kind}
    return asyncio.run(play(server, [name for name in SCENARIOS if name in names]))


async def play(server: Server, names: list[str]) -> dict[str, str | None]:
    options = argparse.Namespace(url=f"{server.ws}/socket", http=server.http, timeout=SECONDS, record=False)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> str | None:
        async with gate:
            return await attempt(Path(name), SCENARIOS[name], options)

    return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))


@pytest.mark.parametrize(("server", "name"), CASES, indirect=["server"])
def test_a_client_sees_what_it_saw_of_phoenix(name: str, server: Server, outcomes: dict[str, str | None]) -> None:
    wrong = outcomes[name]
    if wrong is not None:
        pytest.fail(f"{SCENARIOS[name]['purpose']}\n{wrong}\n{server.tail()}", pytrace=False)


def test_every_scenario_that_is_left_out_exists() -> None:
    assert set(LATER) | set(DIFFERENT) <= set(SCENARIOS)
    assert set(LATER_CATEGORIES) <= {scenario["category"] for scenario in SCENARIOS.values()}


def test_only_what_divergences_md_lists_may_differ() -> None:
    listed = (Path(__file__).parent / "conformance" / "divergences.md").read_text()
    for name in DIFFERENT:
        category, _, short = name.partition("/")
        assert category in listed, name
        assert short in listed, name
