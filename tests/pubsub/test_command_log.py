"""The commands of the last hour, in the hands of several processes: whoever was deaf gets them, once, in time."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlette_channels.pubsub.relay.command_log import (
    DIGEST_SECONDS,
    KEEP_SECONDS,
    MAX_BYTES,
    OVERHEAD,
    CommandLog,
    HeardCommand,
)
from starlette_channels.pubsub.relay.number_ranges import NumberRanges
from tests.support.effort import some


class Cluster:
    """Processes on a wire, which loses what is sent to or by those who are cut off."""

    def __init__(self, names: str = "abc", max_bytes: int = MAX_BYTES) -> None:
        self.now = 0.0
        self.max_bytes = max_bytes
        self.logs: dict[str, CommandLog] = {}
        self.cut: set[str] = set()
        self.obeyed: dict[str, list[str]] = {}
        self.lost: dict[str, list[float]] = {}
        self.ages: list[float] = []
        self.said_at: list[float] = []
        self.sent = 0
        self.sent_bytes = 0
        for name in names:
            self.come(name)

    def come(self, name: str, *, keeps: bool = True) -> None:
        log = CommandLog(name.encode() * 8, Random(name).random, max_bytes=self.max_bytes)
        if keeps:
            log.begin_to_keep(self.now)
        self.logs[name] = log
        self.obeyed[name], self.lost[name] = [], []

    def say(self, name: str, *socket_ids: str, slot: str = "disconnect") -> None:
        for socket_id in socket_ids:
            self.logs[name].say(socket_id.encode(), slot.encode(), f"{slot} {socket_id}".encode(), self.now)

    def heal(self) -> None:
        for name in self.cut:
            self.logs[name].connected(self.now)
        self.cut = set()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            for name, log in list(self.logs.items()):
                if name in self.cut:
                    continue
                messages, number = log.outgoing(self.now)
                log.sent(number)
                for message in messages:
                    self.send(name, message)
            dues = [log.due() for name, log in self.logs.items() if name not in self.cut]
            due = min((due for due in dues if due is not None), default=end)
            self.now = min(end, max(self.now + 0.01, due))

    def send(self, sender: str, message: bytes) -> None:
        self.sent += 1
        self.sent_bytes += len(message)
        for name, log in self.logs.items():
            if name != sender and name not in self.cut:
                for news in log.take(message, self.now, self.now):
                    if isinstance(news, HeardCommand):
                        self.obeyed[name].append(news.socket_id.decode())
                        self.ages.append(self.now - news.said_at)
                        self.said_at.append(news.said_at)
                    else:
                        self.lost[name].append(news.said_at)


def test_a_command_is_heard_once_by_everybody_at_once() -> None:
    cluster = Cluster()
    cluster.run(1)
    cluster.say("a", "ann", "bob")
    cluster.run(0.05)
    assert cluster.obeyed == {"a": [], "b": ["ann", "bob"], "c": ["ann", "bob"]}
    cluster.run(60)
    assert cluster.obeyed == {"a": [], "b": ["ann", "bob"], "c": ["ann", "bob"]}


def test_who_was_deaf_gets_what_was_said_as_soon_as_it_is_back_and_its_age() -> None:
    cluster = Cluster()
    cluster.run(1)
    cluster.cut = {"b"}
    cluster.say("a", "ann")
    cluster.run(3_500)
    assert cluster.obeyed["b"] == []
    cluster.heal()
    cluster.run(1)
    assert cluster.obeyed["b"] == ["ann"]
    assert cluster.ages[-1] == pytest.approx(3_500, abs=1)  # pyright: ignore[reportUnknownMemberType]


@pytest.mark.parametrize(("age", "doubt"), [(0, 0.03), (3_500, 0.5)])
def test_who_comes_after_a_command_is_taken_for_who_was_there_only_as_long_as_clocks_may_differ(
    age: float, doubt: float
) -> None:
    cluster = Cluster()
    cluster.run(1)
    cluster.cut = {"b"}
    cluster.say("a", "ann")
    said_at = cluster.now
    cluster.run(age)
    cluster.heal()
    cluster.run(1)
    assert cluster.obeyed["b"] == ["ann"]
    assert said_at < cluster.said_at[-1] < said_at + doubt


def test_who_was_deaf_without_knowing_it_finds_out_by_the_next_digest() -> None:
    cluster = Cluster()
    cluster.run(1)
    cluster.cut = {"b"}
    cluster.say("a", "ann")
    cluster.run(1)
    cluster.cut = set()
    cluster.run(2 * DIGEST_SECONDS)
    assert cluster.obeyed["b"] == ["ann"]


def test_a_command_outlives_its_speaker_when_somebody_has_heard_it() -> None:
    cluster = Cluster()
    cluster.run(1)
    cluster.cut = {"b"}
    cluster.say("a", "ann")
    cluster.run(1)
    del cluster.logs["a"]
    cluster.come("d")
    cluster.run(1)
    assert cluster.obeyed["d"] == ["ann"]
    del cluster.logs["c"]
    cluster.heal()
    cluster.run(1)
    assert cluster.obeyed["b"] == ["ann"]


def test_what_is_said_while_the_engine_is_away_for_all_is_heard_when_it_is_back() -> None:
    cluster = Cluster()
    cluster.run(1)
    cluster.cut = {"a", "b", "c"}
    cluster.say("a", "ann")
    cluster.say("b", "bob")
    cluster.run(100)
    assert cluster.logs["a"].unsent() == 1
    cluster.heal()
    cluster.run(1)
    assert cluster.obeyed == {"a": ["bob"], "b": ["ann"], "c": ["ann", "bob"]}
    assert cluster.logs["a"].unsent() == 0


def test_repeats_for_one_identity_take_no_room_and_the_last_does_for_all() -> None:
    cluster = Cluster()
    cluster.run(1)
    cluster.cut = {"b"}
    cluster.say("a", *["ann"] * 1_000)
    cluster.say("a", "ann", slot="kick room:a")
    cluster.run(1)
    assert len(cluster.logs["a"]) == len(cluster.logs["c"]) == 2
    cluster.heal()
    cluster.run(1)
    assert cluster.obeyed["b"] == ["ann", "ann"]


def test_beyond_the_bound_who_was_deaf_is_told_that_something_is_lost_and_when_it_was_said() -> None:
    cluster = Cluster(max_bytes=20 * (OVERHEAD + 50))
    cluster.run(1)
    cluster.cut = {"b"}
    for number in range(100):
        cluster.say("a", f"user {number}")
        cluster.run(0.1)
    assert cluster.logs["a"].given_up > 50
    assert cluster.lost == {"a": [], "b": [], "c": []}, "who has heard it all does not mind"
    cluster.heal()
    cluster.run(1)
    (lost_at,) = cluster.lost["b"]
    assert 6 < lost_at < 11
    assert cluster.obeyed["b"] == [f"user {number}" for number in range(100 - len(cluster.obeyed["b"]), 100)]
    cluster.run(10)
    assert len(cluster.lost["b"]) == 1


def test_what_is_older_than_an_hour_is_forgotten_by_everybody_and_all_is_quiet_then() -> None:
    cluster = Cluster()
    cluster.say("a", "ann")
    cluster.run(10)
    cluster.say("b", "bob")
    cluster.run(KEEP_SECONDS - 5)
    assert [len(log) for log in cluster.logs.values()] == [1, 1, 1]
    cluster.run(20)
    assert [len(log) for log in cluster.logs.values()] == [0, 0, 0]
    before = cluster.sent
    cluster.run(100)
    assert cluster.sent == before
    assert cluster.obeyed == {"a": ["bob"], "b": ["ann"], "c": ["ann", "bob"]}


def test_a_speaker_that_keeps_nothing_says_it_again_until_it_is_acknowledged() -> None:
    cluster = Cluster()
    cluster.come("p", keeps=False)
    cluster.cut = {"a", "b", "c"}
    cluster.say("p", "ann")
    cluster.run(2)
    assert cluster.logs["p"].unheard() == 1
    cluster.heal()
    cluster.run(0.6)
    assert cluster.logs["p"].unheard() == 0
    assert cluster.obeyed == {"a": ["ann"], "b": ["ann"], "c": ["ann"], "p": []}
    assert len(cluster.logs["p"]) == 0


def test_a_speaker_that_takes_a_command_back_does_not_say_it_any_more() -> None:
    cluster = Cluster("a")
    cluster.come("p", keeps=False)
    cluster.cut = {"a", "p"}
    cluster.logs["p"].withdraw(cluster.logs["p"].say(b"ann", b"", b"", 0))
    cluster.say("p", "bob")
    cluster.heal()
    cluster.run(1)
    assert cluster.obeyed["a"] == ["bob"]
    assert cluster.logs["p"].unheard() == 0


def test_what_is_said_in_a_peaceful_hour_is_little_however_many_there_are() -> None:
    cluster = Cluster("abcdefghijklmnop")
    cluster.run(1)
    cluster.say("a", *[f"user {number}" for number in range(1_000)])
    cluster.run(10)
    before = cluster.sent, cluster.sent_bytes
    cluster.run(300)
    assert cluster.sent - before[0] < 4 * 300 / DIGEST_SECONDS
    assert cluster.sent_bytes - before[1] < 350 * (cluster.sent - before[0])


def test_many_who_have_what_one_lacks_do_not_all_say_it() -> None:
    cluster = Cluster("abcdefghijklmnop")
    cluster.run(1)
    cluster.cut = {"b"}
    cluster.say("a", *[f"user {number}" for number in range(1_000)])
    cluster.run(10)
    before = cluster.sent_bytes
    cluster.heal()
    cluster.run(2)
    assert len(cluster.obeyed["b"]) == 1_000
    assert cluster.sent_bytes - before < 150_000


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x91\x01", b"\x92\x02\xc0", b"\x91" * 100_000])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError, match="no commands of ours"):
        Cluster("a").logs["a"].take(junk, 0, 0)


@given(st.randoms(use_true_random=False))
@settings(max_examples=some(of=40), deadline=None)
def test_whatever_is_cut_everybody_has_obeyed_everything_once_when_it_is_over(random: Random) -> None:
    cluster = Cluster("abcd")
    said: list[tuple[str, str]] = []
    for number in range(random.randint(1, 30)):
        cluster.cut ^= {random.choice("abcd")}
        for name in set("abcd") - cluster.cut:
            if random.random() < 0.3:
                cluster.logs[name].connected(cluster.now)
        speaker = random.choice("abcd")
        said.append((speaker, f"user {number}"))
        cluster.say(speaker, f"user {number}")
        cluster.run(random.choice((0.02, 0.5, 5)))
    cluster.heal()
    cluster.run(3 * DIGEST_SECONDS)
    for name in "abcd":
        assert sorted(cluster.obeyed[name]) == sorted(socket_id for speaker, socket_id in said if speaker != name)


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])))


def numbers(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


@given(RANGES, RANGES, st.integers(0, 70), st.integers(0, 70))
def test_ranges_are_sets_of_numbers(ones: list[tuple[int, int]], others: list[tuple[int, int]], a: int, b: int) -> None:
    one, other = NumberRanges(ones), NumberRanges(others)
    assert numbers(list(one)) == numbers(ones)
    assert numbers(list(one.without(other))) == numbers(ones) - numbers(others)
    assert numbers(list(one.within(a, b))) == {number for number in numbers(ones) if a <= number <= b}
    assert len(one) == len(numbers(ones))
    assert bool(one) == bool(numbers(ones))
    assert [number in one for number in range(80)] == [number in numbers(ones) for number in range(80)]
    parts = list(one)
    assert all(first <= last for first, last in parts)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(parts)), "they do not touch"
    if one:
        assert (one.smallest(), one.largest()) == (min(numbers(ones)), max(numbers(ones)))
