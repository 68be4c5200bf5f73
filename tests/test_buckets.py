"""Token buckets: never more than the rate and one burst, never less, whenever messages come."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_channels import Rate
from starlette_channels.rates import FULL, UNLIMITED, Meter

rates = st.builds(Rate, st.floats(0.01, 10_000), st.integers(1, 5_000))
starts = st.floats(0, 1e7)
pauses = st.lists(st.floats(0, 20) | st.just(0.0), max_size=200)


def draws(rate: Rate, start: float, pauses: list[float]) -> list[tuple[float, bool]]:
    """When one was wanted, and whether it was there."""
    meter, bucket, now = Meter(rate), FULL, start
    found: list[tuple[float, bool]] = []
    for pause in pauses:
        now += pause
        drawn = meter.draw(bucket, now)
        found.append((now, drawn is not None))
        bucket = bucket if drawn is None else drawn
    return found


@given(rates, starts, pauses)
def test_in_no_time_more_are_drawn_than_the_rate_and_one_burst_allow(
    rate: Rate, start: float, pauses: list[float]
) -> None:
    drawn = [now for now, was_there in draws(rate, start, pauses) if was_there]
    for first in range(len(drawn)):
        for last in range(first, len(drawn), 7):
            assert last - first + 1 <= rate.burst + (drawn[last] - drawn[first]) * rate.per_second + 1


@given(rates, starts, pauses)
def test_it_is_as_if_the_bucket_held_tokens(rate: Rate, start: float, pauses: list[float]) -> None:
    tokens, then = float(rate.burst), start
    for now, was_there in draws(rate, start, pauses):
        tokens = min(rate.burst, tokens + (now - then) * rate.per_second)
        then = now
        if abs(tokens - 1) > 0.6:  # near the edge, half a token is left to rounding
            assert was_there is (tokens >= 1)
        tokens -= was_there


@given(st.builds(Rate, st.floats(0.1, 1_000), st.integers(1, 500)), starts)
def test_a_full_bucket_holds_exactly_one_burst(rate: Rate, start: float) -> None:
    found = draws(rate, start, [0.0] * (rate.burst + 1))
    assert [was_there for _, was_there in found] == [True] * rate.burst + [False]


@given(st.builds(Rate, st.floats(0.1, 1_000), st.integers(1, 50)), st.floats(0, 1e5))
def test_after_the_wait_that_was_promised_there_is_one_and_not_sooner(rate: Rate, now: float) -> None:
    meter, bucket = Meter(rate), FULL
    while (drawn := meter.draw(bucket, now)) is not None:
        bucket = drawn
    seconds = meter.wait(bucket, now)
    assert 0 < seconds <= 1 / rate.per_second
    assert meter.draw(bucket, now + seconds * 0.9) is None
    assert meter.draw(bucket, now + seconds * 1.001 + 1e-9) is not None


@given(rates, starts, st.integers(1, 100), st.lists(st.booleans(), max_size=50))
def test_many_at_once_are_as_many_one_by_one(rate: Rate, now: float, number: int, wholes: list[bool]) -> None:
    meter, whole, single = Meter(rate), FULL, FULL
    for _ in wholes:
        drawn = meter.draw(whole, now, number)
        if drawn is None:
            return
        whole = drawn
        for _ in range(number):
            one = meter.draw(single, now)
            assert one is not None
            single = one
        assert whole == pytest.approx(single)


@given(starts, pauses)
def test_without_a_limit_all_are_drawn(start: float, pauses: list[float]) -> None:
    assert all(was_there for _, was_there in draws(UNLIMITED, start, pauses))


def test_a_clock_that_is_far_behind_finds_the_bucket_full_not_empty_for_years() -> None:
    meter = Meter(Rate(1, burst=2))
    bucket = meter.draw(FULL, 1e6)
    assert bucket is not None
    assert meter.draw(bucket, 10.0) == pytest.approx(11.0)


@given(rates, starts, st.integers(1, 300))
def test_a_bucket_says_when_it_is_full_again(rate: Rate, now: float, number: int) -> None:
    meter, bucket = Meter(rate), FULL
    buckets = [bucket]
    for _ in range(number):
        drawn = meter.draw(bucket, now)
        bucket = bucket if drawn is None else drawn
        buckets.append(bucket)
    assert all(one <= other for one, other in pairwise(buckets))
    assert bucket <= now + (rate.burst + 0.5) / rate.per_second


@pytest.mark.parametrize(
    ("per_second", "burst", "wrong"),
    [
        (0, 1, "Rate(per_second=0)"),
        (-1, 1, "Rate(per_second=-1)"),
        (float("nan"), 1, "Rate(per_second=nan)"),
        (1, 0, "Rate(burst=0)"),
        (1, -1, "Rate(burst=-1)"),
    ],
)
def test_a_rate_of_nothing_is_a_mistake_and_the_error_says_how_to_have_no_limit(
    per_second: float, burst: int, wrong: str
) -> None:
    said = f"{wrong}: it must be more than 0; None in place of a Rate switches the limit off"
    with pytest.raises(ValueError, match=re.escape(said)):
        Rate(per_second, burst)
