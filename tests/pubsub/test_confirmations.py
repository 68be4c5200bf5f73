"""Waiting for a subscription at the engine: who waits, who is woken, and how often; told by hand, without an engine."""

from collections import Counter
from collections.abc import Callable, Collection

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.confirmations import BATCH, TIMEOUT_CODE, Confirmations
from starlette_channels.pubsub.relay.subscriptions import Interests
from starlette_channels.wire.messages import Gap

pytestmark = pytest.mark.anyio


class Loop:
    """The confirmations of one event loop, whose later calls a test makes."""

    def __init__(self) -> None:
        self.in_force: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.calls: list[Callable[[], None]] = []
        self.confirmations = Confirmations(self.in_force.__contains__, self.calls.append, ErrorLog(self.counts))

    def confirm(self, *topics: str) -> None:
        self.in_force.update(topics)
        self.confirmations.confirm(topics)


class Waiter:
    """A join that waits."""

    def __init__(self, loop: Loop, *topics: str) -> None:
        self.loop, self.topics = loop, topics
        self.done = False
        self.gaps: list[Gap] = []

    async def wait(self, seconds: float = 60.0) -> None:
        await self.loop.confirmations.wait(self.topics, self, seconds)
        self.done = True

    def miss(self, gap: Gap) -> None:
        self.gaps.append(gap)


async def test_a_topic_in_force_is_not_waited_for() -> None:
    loop = Loop()
    loop.in_force.add("a")
    waiter = Waiter(loop, "a")
    coroutine = waiter.wait()
    with pytest.raises(StopIteration):
        coroutine.send(None)  # it ends without having waited for anything
    assert waiter.done
    assert not loop.confirmations.is_wanted


async def test_all_who_wait_for_a_topic_go_on_when_all_their_topics_are_in_force() -> None:
    loop = Loop()
    one, both, other = Waiter(loop, "a"), Waiter(loop, "a", "b"), Waiter(loop, "c")
    async with anyio.create_task_group() as tasks:
        for waiter in (one, both, other):
            tasks.start_soon(waiter.wait)
        await anyio.wait_all_tasks_blocked()
        assert loop.confirmations.is_wanted
        loop.confirm("a", "never heard of")
        await anyio.wait_all_tasks_blocked()
        assert [one.done, both.done, other.done] == [True, False, False]
        loop.confirm("b")
        await anyio.wait_all_tasks_blocked()
        assert [both.done, other.done] == [True, False]
        tasks.cancel_scope.cancel()
    assert not loop.confirmations.is_wanted
    assert loop.counts == {}


async def test_what_is_lost_again_before_the_waiter_has_gone_on_is_waited_for_again() -> None:
    loop = Loop()
    waiter = Waiter(loop, "a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter.wait)
        await anyio.wait_all_tasks_blocked()
        loop.confirm("a")
        loop.in_force.clear()
        await anyio.wait_all_tasks_blocked()
        assert not waiter.done
        loop.confirm("a")
    assert waiter.done


async def test_who_has_waited_too_long_goes_on_and_is_told_of_a_gap_once_it_is_in_force() -> None:
    loop = Loop()
    waiter, gone = Waiter(loop, "a", "b"), Waiter(loop, "a")
    loop.in_force.add("b")
    await waiter.wait(0.01)
    await gone.wait(0.01)
    assert loop.counts == {TIMEOUT_CODE: 2}
    await waiter.wait()  # the same again: it does not wait again
    assert loop.counts == {TIMEOUT_CODE: 2}
    assert loop.confirmations.is_wanted
    loop.confirmations.forget(["a"], gone)
    assert (waiter.gaps, gone.gaps) == ([], [])
    loop.confirm("a")
    assert (waiter.gaps, gone.gaps) == ([Gap("a", 0, "")], [])
    assert not loop.confirmations.is_wanted


async def test_those_who_are_forgotten_take_no_memory() -> None:
    loop = Loop()
    waiters = [Waiter(loop, "a"), Waiter(loop, "a"), Waiter(loop, "b")]
    for waiter in waiters:
        await waiter.wait(0.001)
        loop.confirmations.forget(["never heard of", *waiter.topics], waiter)
    assert not loop.confirmations.is_wanted


async def test_many_are_woken_in_turns() -> None:
    loop = Loop()
    number = 3 * BATCH + 1
    waiters, turns = [Waiter(loop, str(topic)) for topic in range(number)], 1
    async with anyio.create_task_group() as tasks:
        for waiter in waiters:
            tasks.start_soon(waiter.wait)
        await anyio.wait_all_tasks_blocked()
        loop.confirm(*map(str, range(number)))
        while loop.calls:
            await anyio.wait_all_tasks_blocked()
            assert sum(waiter.done for waiter in waiters) == turns * BATCH
            (call,) = loop.calls
            loop.calls.clear()
            turns += 1
            call()
    assert turns == 4
    assert all(waiter.done for waiter in waiters)


# Interests: which subscriptions are in force, whatever is wanted and given up meanwhile.


class Relay:
    """What a relay does with interests, step by step, and what the engine then delivers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[set[str]] = []
        self.interests = Interests(lambda: None, self.note, lambda: self.now)
        self.delivered: set[str] = set()
        self.leaving: set[str] = set()
        self.connection = object()
        self.interests.begin(self.connection)

    def note(self, channels: Collection[str]) -> None:
        self.told.append(set(channels))

    def follow(self) -> None:
        wanted, unwanted = self.interests.take()
        self.leaving = (self.leaving | unwanted & self.delivered) - wanted.keys()
        new = wanted.keys() - self.delivered
        self.delivered |= new
        self.interests.confirm(self.connection, new)

    def unsubscribe(self) -> None:
        gone = self.interests.release(self.leaving)
        self.leaving = set()
        self.delivered -= gone

    def reconnect(self) -> None:
        self.interests.lose(self.connection)
        self.delivered, self.leaving, self.connection = set(), set(), object()
        self.interests.begin(self.connection)

    def hear_everything(self) -> None:
        self.reconnect()
        self.delivered = set(self.interests.all())
        self.interests.confirm(self.connection, self.delivered)


@given(st.lists(st.sampled_from(["add", "remove", "follow", "unsubscribe", "reconnect", "hear_everything"])))
def test_what_is_in_force_is_delivered_and_what_is_wanted_is_in_force_in_the_end(steps: list[str]) -> None:
    relay, wanted = Relay(), Counter[str]()
    for number, step in enumerate(steps):
        relay.now += 1.0
        channel = "ab"[number % 2]
        if step == "add":
            relay.interests.add(channel)
            wanted[channel] += 1
        elif step == "remove" and wanted[channel]:
            relay.interests.remove(channel)
            wanted[channel] -= 1
        elif step not in ("add", "remove"):
            getattr(relay, step)()
        for name in "ab":
            assert not relay.interests.is_in_force(name) or name in relay.delivered
    relay.hear_everything()
    relay.follow()
    for name in "ab":
        assert relay.interests.is_in_force(name) == (wanted[name] > 0)


def test_a_channel_that_is_wanted_again_at_the_last_moment_stays_in_force() -> None:
    relay = Relay()
    relay.interests.add("a")
    relay.follow()
    relay.interests.remove("a")
    relay.follow()
    relay.interests.add("a")  # before the relay has unsubscribed, and after it has made up its mind
    relay.unsubscribe()
    assert relay.delivered == {"a"}
    assert relay.interests.is_in_force("a")
    relay.interests.remove("a")
    relay.follow()
    relay.unsubscribe()
    relay.interests.add("a")
    assert not relay.interests.is_in_force("a")


def test_the_time_since_when_a_channel_is_wanted_is_that_of_the_first_who_wants_it() -> None:
    relay = Relay()
    interests = relay.interests
    interests.add("a")
    relay.now = 1.0
    interests.add("a")
    assert interests.take() == ({"a": 0.0}, set())
    interests.confirm(relay.connection, {"a"})
    relay.now = 2.0
    interests.remove("a")
    interests.remove("a")
    interests.add("a")  # it was in force all the time
    assert interests.take() == ({"a": 0.0}, set())
    interests.remove("a")
    assert interests.release(["a"]) == {"a"}
    interests.add("a")
    assert interests.all() == {"a": 2.0}


def test_channels_that_come_and_go_before_the_relay_looks_leave_nothing_behind() -> None:
    interests = Interests(lambda: None)
    interests.add("a")
    interests.remove("a")
    assert interests.take() == ({}, {"a"})
    assert interests.all() == {}


def test_what_a_connection_says_that_has_a_successor_means_nothing() -> None:
    interests = Interests(lambda: None)
    old, new = object(), object()
    interests.add("a")
    interests.begin(old)
    interests.begin(new)
    interests.confirm(old, {"a"})
    assert not interests.is_in_force("a")
    interests.confirm(new, {"a"})
    interests.complete(new)
    interests.lose(old)
    assert (interests.is_in_force("a"), interests.is_complete) == (True, True)
    interests.lose(new)
    assert (interests.is_in_force("a"), interests.is_complete) == (False, False)
