"""A thousand histories of a cluster, each made up from its seed; `python -m tests.simulation` plays more."""

import pytest

from tests.simulation.__main__ import failures


@pytest.mark.parametrize("first", range(0, 1_000, 250))  # in parts, for those who test in several processes
def test_whatever_happens_everybody_knows_in_the_end_who_is_there_and_what_was_lost(first: int) -> None:
    assert failures(range(first, first + 250)) == []
