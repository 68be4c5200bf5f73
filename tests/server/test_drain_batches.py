"""How clients are divided into batches, for whatever number and pace."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_channels import Drain
from starlette_channels.server.drain import batches

seconds = st.floats(0.01, 100.0)
drains = st.builds(
    Drain, batch_size=st.integers(1, 200), interval_seconds=seconds, timeout_seconds=st.floats(0.0, 100.0)
)
crowds = st.integers(0, 500)


@given(crowds, drains)
def test_everybody_is_closed_once_and_in_time(clients: int, drain: Drain) -> None:
    plan = list(batches(clients, drain))
    assert sum(len(batch.waits) for batch in plan) == clients
    assert [batch.at for batch in plan] == [number * drain.interval_seconds for number in range(len(plan))]
    if plan:
        assert plan[-1].at < max(drain.timeout_seconds, drain.interval_seconds)


@given(crowds, drains)
def test_batches_are_as_large_as_was_said_unless_time_is_short(clients: int, drain: Drain) -> None:
    sizes = [len(batch.waits) for batch in batches(clients, drain)]
    if clients * drain.interval_seconds < drain.batch_size * (drain.timeout_seconds - drain.interval_seconds):
        assert all(size == drain.batch_size for size in sizes[:-1])
    assert all(size >= drain.batch_size for size in sizes[:-1])


@given(crowds, drains)
def test_clients_are_asked_to_come_back_one_after_the_other_at_an_even_pace(clients: int, drain: Drain) -> None:
    back = [batch.at + wait for batch in batches(clients, drain) for wait in batch.waits]
    gaps = [after - before for before, after in pairwise(back)]
    assert max(gaps, default=0.0) - min(gaps, default=0.0) < 1e-6
    assert max(gaps, default=0.0) < drain.interval_seconds / drain.batch_size + 1e-6


@given(crowds, drains, st.floats(0.0, 60.0))
def test_clients_of_a_server_that_comes_back_are_closed_at_once_and_stay_away_until_then(
    clients: int, drain: Drain, restart: float
) -> None:
    alone = Drain(batch_size=drain.batch_size, interval_seconds=drain.interval_seconds, restart_seconds=restart)
    (batch,) = batches(clients, alone)
    pace = drain.interval_seconds / drain.batch_size
    assert batch.at == 0.0
    assert batch.waits == [restart + number * pace for number in range(clients)]
    assert list(batches(clients, drain, at_once=True)) == [(0.0, [number * pace for number in range(clients)])]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 0}, "Drain(batch_size=0): it must be more than 0"),
        ({"batch_size": -1}, "Drain(batch_size=-1): it must be more than 0"),
        ({"interval_seconds": 0.0}, "Drain(interval_seconds=0.0): it must be more than 0"),
        ({"interval_seconds": float("nan")}, "Drain(interval_seconds=nan): it must be more than 0"),
        ({"timeout_seconds": -1.0}, "Drain(timeout_seconds=-1.0): it must not be less than 0"),
        ({"timeout_seconds": float("nan")}, "Drain(timeout_seconds=nan): it must not be less than 0"),
        ({"restart_seconds": -1.0}, "Drain(restart_seconds=-1.0): it must not be less than 0"),
    ],
    ids=str,
)
def test_a_pace_that_is_none_is_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Drain(**wrong)  # pyright: ignore[reportArgumentType]
