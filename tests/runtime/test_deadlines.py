"""Deadlines: what is due, and when the next is, compared with a plain dict."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from starlette_channels.runtime.deadlines import Deadlines
from tests.support.effort import some

THINGS = st.integers(0, 5)
TIMES = st.floats(0, 20, allow_nan=False)


class LikeADict(RuleBasedStateMachine):
    """Whatever is put and removed, the same is due as if all were looked at each time."""

    def __init__(self) -> None:
        super().__init__()
        self.deadlines: Deadlines[int] = Deadlines()
        self.when: dict[int, int] = {}

    @rule(thing=THINGS, when=TIMES)
    def put(self, thing: int, when: float) -> None:
        """A thing has one deadline, the last that it was given."""
        self.deadlines.put(thing, when)
        self.when[thing] = math.ceil(when)

    @rule(thing=THINGS)
    def remove(self, thing: int) -> None:
        """What is removed is never due; removing it again is no error."""
        self.deadlines.remove(thing)
        self.when.pop(thing, None)

    @rule(now=TIMES)
    def take_due(self, now: float) -> None:
        """Each is due once, never too early, the earliest first."""
        due = self.deadlines.take_due(now)
        assert sorted(due) == sorted(thing for thing, when in self.when.items() if when <= now)
        assert [self.when[thing] for thing in due] == sorted(self.when[thing] for thing in due)
        self.when = {thing: when for thing, when in self.when.items() if when > now}

    @invariant()
    def the_next_is_the_earliest(self) -> None:
        """There is always somebody to wait for, if there is anybody."""
        assert self.deadlines.next == min(self.when.values(), default=None)
        assert len(self.deadlines) == len(self.when)


LikeADict.TestCase.settings = settings(max_examples=some(of=50))
test_deadlines_behave_like_a_dict_that_is_searched = LikeADict.TestCase


@given(st.lists(TIMES))
def test_nothing_is_kept_of_what_has_come_and_gone(times: list[float]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    for thing, when in enumerate(times):
        deadlines.put(thing, when)
        deadlines.remove(thing)
    assert deadlines.next is None
    assert not deadlines._seconds  # pyright: ignore[reportPrivateUsage]
    assert not deadlines._things  # pyright: ignore[reportPrivateUsage]
