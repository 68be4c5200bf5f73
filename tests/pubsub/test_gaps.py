"""The numbers on what is published: what a receiver can know of its losses, for any history of losses."""

from bisect import bisect_left
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlette_channels.pubsub.relay.sequence import (
    ENDED_SECONDS,
    KEEP_SECONDS,
    MARK_SECONDS,
    Listener,
    News,
    Numbers,
    Stamp,
)
from tests.support.effort import some

ME, OTHER = b"publisher", b"other"


def test_numbers_count_each_channel_from_one_and_epochs_grow() -> None:
    numbers = Numbers()
    assert [numbers.next("a", 0)[:2], numbers.next("a", 0)[:2], numbers.next("b", 0)[:2]] == [(1, 1), (1, 2), (2, 1)]


def test_a_stamp_says_how_old_its_series_is_and_when_the_message_before_was_said() -> None:
    numbers = Numbers()
    assert numbers.next("a", 10) == Stamp(1, 1, 0, inf)
    assert numbers.next("a", 10.25) == Stamp(1, 2, 0.25, 0.25)
    assert numbers.next("a", 10.75) == Stamp(1, 3, 0.75, 0.5)
    assert list(numbers.all(11)) == [("a", Stamp(1, 3, 1, 0.25))]
    assert list(numbers.marks(11.75)) == [("a", Stamp(1, 3, 1.75, 1))]
    list(numbers.marks(1_000))
    for _ in range(5):
        list(numbers.marks(numbers.due() or 0))
    assert numbers.next("a", 2_000) == Stamp(2, 1, 0, inf), "a new series"


def test_marks_come_after_growing_pauses_and_then_the_count_is_forgotten() -> None:
    numbers = Numbers()
    numbers.next("a", 0)
    numbers.next("a", 0.5)
    now, marks = 0.0, list[float]()
    while (due := numbers.due()) is not None:
        now = max(now, due)
        marks += [now for _ in numbers.marks(now)]
    assert marks == [1.5, 5.5, 21.5, 85.5, 341.5]
    assert len(numbers) == 0
    assert numbers.next("a", now) == Stamp(2, 1), "a new epoch"


def test_a_message_begins_the_marks_anew() -> None:
    numbers = Numbers()
    numbers.next("a", 0)
    assert list(numbers.marks(1)) == [("a", Stamp(1, 1, 1, 1))]
    numbers.next("a", 4.5)
    assert list(numbers.marks(5.0)) == []
    assert list(numbers.marks(5.5)) == [("a", Stamp(1, 2, 5.5, 1))]
    assert list(numbers.marks(9.5)) == [("a", Stamp(1, 2, 9.5, 5))]


def test_all_marks_can_begin_anew() -> None:
    numbers = Numbers()
    for channel in "abc":
        numbers.next(channel, 0)
    assert len(list(numbers.marks(6))) == 3
    numbers.restart(100)
    assert list(numbers.marks(100.9)) == []
    assert len(list(numbers.marks(101))) == 3


def test_what_is_used_for_ever_or_only_once_takes_no_more_and_more_memory() -> None:
    numbers, listener = Numbers(), Listener()
    for second in range(2_000):
        for channel in ("steady", f"once {second}", f"often {second % 7}"):
            listener.take(channel, ME, numbers.next(channel, second), second)
        list(numbers.marks(second))
        listener.expire(second)
    assert len(numbers) < 1.2 * sum(MARK_SECONDS) + 8
    assert sum(map(len, numbers._steps)) < 3 * sum(MARK_SECONDS)  # pyright: ignore[reportPrivateUsage]
    assert len(listener) < 1.2 * KEEP_SECONDS + 8


@pytest.fixture
def listener() -> Listener:
    return Listener()


def test_what_was_said_first_is_missed_by_who_has_wanted_the_channel_since_before(listener: Listener) -> None:
    assert listener.mark("a", ME, Stamp(1, 1), 100) == 1
    assert listener.take("a", OTHER, Stamp(1, 5), 100) == (News.FRESH, 4)
    listener.want("b", 100)
    listener.confirm("b", 100)
    assert listener.mark("b", ME, Stamp(2, 3, 10, 1), 110) == 3
    assert listener.take("b", OTHER, Stamp(2, 3, 10, 1), 110) == (News.FRESH, 2)
    assert listener.end("b", b"another", Stamp(2, 3, 9, 1), 110) == 3


def test_what_was_said_before_a_channel_was_wanted_is_not_missed(listener: Listener) -> None:
    listener.want("a", 100)
    listener.confirm("a", 100)
    assert listener.take("a", ME, Stamp(3, 17, 11, 10.5), 110) == (News.FRESH, 0)
    assert listener.mark("a", OTHER, Stamp(5, 9, 11, 10.5), 110) == 0
    assert listener.take("a", OTHER, Stamp(5, 10, 12, 11.5), 111) == (News.FRESH, 0)
    assert listener.end("a", b"another", Stamp(2, 3, 11, 10.5), 110) == 0
    listener.want("old", 100)
    listener.confirm("old", 100)
    assert listener.take("old", ME, Stamp(9, 5, inf, inf), 110) == (News.FRESH, 0), "it does not say how old it is"


def test_of_an_older_series_the_last_that_was_missed_is_known(listener: Listener) -> None:
    listener.want("a", 100)
    listener.confirm("a", 100)
    assert listener.take("a", ME, Stamp(3, 17, 60, 9.5), 110) == (News.FRESH, 1)
    assert listener.take("a", ME, Stamp(3, 16, 60, 9.5), 110) == (News.LATE, 0)
    assert listener.mark("a", OTHER, Stamp(5, 9, 60, 9.5), 110) == 1
    assert listener.take("a", OTHER, Stamp(5, 9, 60, 9.5), 110) == (News.LATE, 0)


def test_what_is_said_while_a_subscription_takes_its_moment_is_not_missed_but_if_it_takes_long_it_is(
    listener: Listener,
) -> None:
    for channel, confirmed, lost in (("a", 101.5, 0), ("b", 103, 3), ("c", 100.5, 3)):
        listener.want(channel, 100)
        listener.confirm(channel, confirmed)
        assert listener.mark(channel, ME, Stamp(1, 3, 3, 3), 104) == lost
    listener.want("d", 100)
    assert listener.take("d", ME, Stamp(2, 4, 1, 0.5), 102) == (News.FRESH, 0)
    assert listener.take("d", OTHER, Stamp(2, 4, 1, 0.5), 102.5) == (News.FRESH, 3)


def test_a_channel_that_is_wanted_anew_has_been_wanted_since_then_only(listener: Listener) -> None:
    listener.want("a", 0)
    listener.confirm("a", 0)
    listener.want("a", 50)
    listener.confirm("a", 50)
    assert listener.mark("a", ME, Stamp(1, 2, 20, 15), 60) == 2
    listener.forget("a")
    listener.want("a", 50)
    listener.confirm("a", 50)
    assert listener.mark("a", ME, Stamp(1, 2, 20, 15), 60) == 0


def test_holes_duplicates_and_what_comes_too_late_are_told_apart(listener: Listener) -> None:
    listener.take("a", ME, Stamp(1, 1), 0)
    assert listener.take("a", ME, Stamp(1, 5), 0) == (News.FRESH, 3)
    assert listener.take("a", ME, Stamp(1, 5), 0) == (News.DUPLICATE, 0)
    assert listener.take("a", ME, Stamp(1, 1), 0) == (News.DUPLICATE, 0)
    assert [listener.take("a", ME, Stamp(1, number), 0) for number in (2, 3, 4)] == [(News.LATE, 0)] * 3
    assert listener.take("a", ME, Stamp(1, 6), 0) == (News.FRESH, 0)


def test_a_mark_tells_of_losses_at_the_end_once(listener: Listener) -> None:
    listener.take("a", ME, Stamp(1, 1), 0)
    assert listener.mark("a", ME, Stamp(1, 1), 0) == 0
    assert listener.mark("a", ME, Stamp(1, 4), 0) == 3
    assert listener.mark("a", ME, Stamp(1, 4), 0) == 0
    assert listener.mark("a", ME, Stamp(1, 2), 0) == 0
    assert listener.take("a", ME, Stamp(1, 4), 0) == (News.LATE, 0)
    assert listener.take("a", ME, Stamp(1, 5), 0) == (News.FRESH, 0)


def test_a_new_epoch_begins_at_one(listener: Listener) -> None:
    assert listener.take("a", ME, Stamp(1, 7), 0) == (News.FRESH, 6)
    assert listener.take("a", ME, Stamp(4, 1), 0) == (News.FRESH, 0)
    assert listener.take("a", ME, Stamp(9, 3), 0) == (News.FRESH, 2)
    assert listener.mark("a", ME, Stamp(11, 2), 0) == 2
    assert listener.take("a", ME, Stamp(9, 4), 0) == (News.LATE, 0)
    assert listener.mark("a", ME, Stamp(9, 9), 0) == 0


def test_a_publisher_that_stops_says_how_far_it_came_and_is_forgotten(listener: Listener) -> None:
    listener.take("a", ME, Stamp(1, 1), 0)
    assert listener.end("a", ME, Stamp(1, 3), 0) == 2
    assert listener.take("a", ME, Stamp(1, 1), 0) == (News.DUPLICATE, 0), "what it said last may come twice"
    assert listener.end("a", ME, Stamp(1, 3), 0) == 0
    assert listener.end("never heard of", ME, Stamp(2, 3), 0) == 3
    listener.expire(1 + ENDED_SECONDS)
    assert len(listener) == 0


def test_who_is_silent_for_long_is_forgotten_but_not_while_nobody_can_be_heard(listener: Listener) -> None:
    listener.take("a", ME, Stamp(1, 1), 0)
    listener.take("a", OTHER, Stamp(1, 1), 10)
    listener.take("a", ME, Stamp(1, 2), 20)
    for second in range(12 + int(KEEP_SECONDS)):
        listener.expire(second)
    assert len(listener) == 1
    listener.touch(1_000)
    listener.expire(1_000 + KEEP_SECONDS)
    assert listener.take("a", ME, Stamp(1, 4), 0) == (News.FRESH, 1)
    listener.forget("a")
    listener.forget("a")
    assert len(listener) == 0


def test_who_was_suspended_forgets_nobody_before_it_has_heard_what_came_meanwhile(listener: Listener) -> None:
    listener.take("a", ME, Stamp(1, 1), 0)
    listener.expire(1)
    listener.expire(10_000)
    assert listener.take("a", ME, Stamp(1, 2, 50, 50), 10_000) == (News.FRESH, 0)


TIMES = st.integers(0, 80).map(lambda quarters: quarters / 4)


@given(st.lists(TIMES, min_size=1, max_size=40), TIMES, st.integers(0, 40), st.booleans())
def test_of_what_is_never_heard_no_more_is_reported_than_was_said_since_and_something_if_anything_was(
    times: list[float], since: float, heard: int, is_mark: bool
) -> None:
    """A listener wants a channel in the midst of a series, and hears but one message of it, or one mark."""
    numbers, listener = Numbers(), Listener()
    listener.want("a", since)
    listener.confirm("a", since)
    times.sort()
    heard = min(heard, len(times) - 1)
    stamps = [numbers.next("a", time) for time in times]
    missed = max(0, heard + is_mark - bisect_left(times, since))
    if is_mark:
        now = times[heard] + 0.5
        lost = listener.mark("a", ME, Stamp(1, heard + 1, now - times[0], now - times[heard]), now)
    else:
        _, lost = listener.take("a", ME, stamps[heard], times[heard])
    assert lost <= missed
    assert (lost > 0) == (missed > 0)
    if times[0] >= since:
        assert lost == missed


Wire = list[tuple[bool, str, Stamp]]


@st.composite
def histories(draw: st.DrawFn) -> tuple[Wire, int]:
    """What a publisher sends on two channels, with time passing, and a final mark for each."""
    numbers, wire, now = Numbers(), Wire(), 0.0
    sent = 0
    for channel, pause in draw(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.floats(0, 120)), max_size=60)):
        if channel is None:
            now += pause
            wire += [(True, *mark) for mark in numbers.marks(now)]
        else:
            wire.append((False, channel, numbers.next(channel, now)))
            sent += 1
    wire += [(True, channel, stamp) for channel, stamp in numbers.all(now)]
    return wire, sent


def hear(wire: Wire) -> tuple[list[tuple[str, Stamp]], int]:
    """What a receiver gets of it, and what it believes to be lost."""
    listener, fresh, lost = Listener(), list[tuple[str, Stamp]](), 0
    for is_mark, channel, stamp in wire:
        if is_mark:
            lost += listener.mark(channel, ME, stamp, 0)
        else:
            news, missing = listener.take(channel, ME, stamp, 0)
            lost += missing
            if news is News.FRESH:
                fresh.append((channel, stamp))
    return fresh, lost


@given(histories(), st.data())
@settings(max_examples=some(of=150), deadline=None)
def test_what_is_reported_as_lost_is_what_was_lost(history: tuple[Wire, int], data: st.DataObject) -> None:
    wire, sent = history
    last = {channel: index for index, (_, channel, _) in enumerate(wire)}
    epochs = {(channel, stamp.epoch): index for index, (_, channel, stamp) in enumerate(wire)}
    kept = set(last.values()) | set(epochs.values())  # of each epoch its last word, which a mark repeats for minutes
    got = [one for index, one in enumerate(wire) if index in kept or data.draw(st.booleans())]
    fresh, lost = hear(got)
    assert fresh == sorted(set(fresh), key=fresh.index)
    assert len(fresh) + lost == sent


@given(histories(), st.data())
@settings(max_examples=some(of=150), deadline=None)
def test_what_is_sent_again_after_a_break_changes_nothing(history: tuple[Wire, int], data: st.DataObject) -> None:
    wire, _ = history
    breaks = data.draw(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=5))
    again = list(wire)
    for at, length in sorted(breaks, reverse=True):
        again[at:at] = again[max(0, at - length) : at]
    assert hear(again) == hear(wire)


@given(histories(), st.randoms(use_true_random=False))
@settings(max_examples=some(of=150), deadline=None)
def test_in_any_order_nothing_comes_twice_or_out_of_order(history: tuple[Wire, int], random: Random) -> None:
    wire, sent = history
    random.shuffle(wire)
    fresh, lost = hear(wire)
    for channel in "ab":
        stamps = [stamp for name, stamp in fresh if name == channel]
        assert stamps == sorted(set(stamps))
    assert len(fresh) + lost <= sent
