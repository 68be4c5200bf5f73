"""Histories of a cluster, each from its seed: 3000 with EFFORT=full; `python -m tests.simulation` plays more."""

import pytest

from starlette_channels.presence.crdt.state import EntryPlace
from tests.simulation.__main__ import failures, main
from tests.simulation.node import Node
from tests.support.effort import some

PART = some(of=500)


@pytest.mark.parametrize("first", range(0, 3_000, 500))
def test_whatever_happens_everybody_knows_in_time_who_is_there_and_what_was_lost(first: int) -> None:
    assert failures(range(first, first + PART)) == []


def test_a_history_that_goes_wrong_can_be_played_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def vanish(node: Node, place: EntryPlace) -> None:
        """Go without a word."""
        del node.own[place]

    monkeypatch.setattr(Node, "untrack", vanish)
    seed = failures(range(20))[0]
    told = capsys.readouterr()
    assert f"seed {seed}: python -m tests.simulation {seed}" in told.err
    monkeypatch.setattr("sys.argv", ["simulation", str(seed)])
    assert main() == 1
    again = capsys.readouterr()
    assert again.out == f"1 histories, 1 went wrong [{seed}]\n"
    assert again.err.splitlines()[-2] in told.err, "for the same reason"
