"""Hundreds of histories of a cluster, each made up from its seed; see `presence_simulation.py` for thousands."""

from tests.presence_simulation import failures


def test_whatever_happens_everybody_knows_in_the_end_who_is_there() -> None:
    assert failures(range(250)) == []
