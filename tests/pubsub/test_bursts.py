"""Bursts: messages in a row on one channel travel in one envelope, and arrive as if each had its own."""

from collections import Counter
from collections.abc import Iterable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.relay.channel_names import COMMANDS
from starlette_channels.pubsub.relay.command_log import CommandLog
from starlette_channels.pubsub.relay.envelope import Envelope, Following, Kind, seal, unseal
from starlette_channels.pubsub.relay.publish_queue import RUN, RUN_BYTES, PublishQueue, QueuedMessage, runs
from starlette_channels.pubsub.relay.receiver import Receiver
from starlette_channels.wire.messages import Gap
from tests.support.effort import some

ME, OTHER = b"me------", b"other---"
CHANNEL = "t:a"


def envelope(numbers: Sequence[int], epoch: int = 1) -> bytes:
    """Seal messages with successive numbers; their bodies are the numbers."""
    first, *rest = [Following(Kind.JSON, f"e{number}", b"%d" % number) for number in numbers]
    head = (Kind.JSON, OTHER, epoch, numbers[0], CHANNEL, first.event, first.body)
    return seal(*head, sent=0.0, age=0.0, quiet=0.0, following=tuple(rest))


class Hearer:
    """A receiver, and what it hands on: the numbers of messages, and how many are lost."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        log = CommandLog(ME, lambda: 0.5)
        self._receiver = Receiver(ME, ErrorLog(self.counts, lambda: 0.0), lambda: 0.0, log)
        self._receiver.want({CHANNEL: 0.0})
        self.heard: list[tuple[str, bytes]] = []
        self.lost = 0

    def take(self, batch: Iterable[bytes], *, has_room: bool = True) -> None:
        for arrival in self._receiver.take(batch, has_room=has_room):
            if isinstance(arrival, Gap):
                self.lost += arrival.lost
            elif isinstance(arrival, Envelope):
                self.heard += [(one.event, one.body) for one in (arrival, *arrival.following)]


def test_a_burst_arrives_in_order_with_all_that_is_in_it() -> None:
    hearer = Hearer()
    hearer.take([envelope([1]), envelope([2, 3, 4]), envelope([5, 6])])
    assert hearer.heard == [(f"e{number}", b"%d" % number) for number in range(1, 7)]
    assert (hearer.lost, hearer.counts) == (0, {})


def test_a_burst_that_is_lost_is_as_many_lost_as_are_in_it() -> None:
    hearer = Hearer()
    hearer.take([envelope([1]), envelope([5, 6])])
    assert hearer.lost == hearer.counts["relay_lost"] == 3


def test_a_burst_without_room_is_dropped_whole_and_its_loss_is_known_from_the_next() -> None:
    hearer = Hearer()
    hearer.take([envelope([1])])
    hearer.take([envelope([2, 3, 4])], has_room=False)
    assert hearer.counts["relay_overflow"] == 3
    hearer.take([envelope([5, 6])])
    assert [body for _, body in hearer.heard] == [b"1", b"5", b"6"]
    assert hearer.lost == 3


def test_a_process_that_knows_no_bursts_yet_counts_all_but_the_first_as_lost() -> None:
    def without_following(data: bytes) -> bytes:
        old = unseal(data)
        return seal(old.kind, old.publisher, old.epoch, old.number, old.channel, old.event, old.body, 0.0, 0.0, 0.0)

    hearer = Hearer()
    hearer.take(map(without_following, [envelope([1, 2, 3]), envelope([4])]))
    assert [body for _, body in hearer.heard] == [b"1", b"4"]
    assert hearer.lost == 2


SERIES = st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.integers(0, 2)), max_size=12)
"""How many messages a burst has, whether it gets lost, and how many bursts before it come once more behind it."""


@given(SERIES, st.integers(1, 3))
@settings(max_examples=some(of=300), deadline=None)
def test_bursts_tell_the_same_as_the_messages_one_by_one(series: list[tuple[int, bool, int]], shift: int) -> None:
    bursts: list[list[int]] = []
    sent: list[list[int]] = []
    number = 1
    for size, is_lost, again in series:
        bursts.append(list(range(number, number + size)))
        number += size
        if not is_lost:
            sent.append(bursts[-1])
        for burst in bursts[len(bursts) - again :]:  # published again, perhaps divided in another way
            sent += [part for part in (burst[:shift], burst[shift:]) if part]
    together, alone = Hearer(), Hearer()
    together.take([envelope(burst) for burst in sent])
    alone.take([envelope([number]) for burst in sent for number in burst])
    assert together.heard == alone.heard
    assert together.lost == alone.lost
    assert together.counts == alone.counts


MESSAGES = st.lists(
    st.tuples(st.sampled_from(["t:a", "t:b", COMMANDS]), st.sampled_from([1, 10, RUN_BYTES])), max_size=200
)


def queued(messages: Iterable[tuple[str, int]]) -> list[QueuedMessage]:
    queue = PublishQueue(10_000, 1_000_000_000, lambda: 0.0)
    for channel, size in messages:
        queue.put(Kind.JSON, channel, "e", Raw(b"1" * size))
    return queue.take()


@given(MESSAGES)
@settings(max_examples=some(of=100), deadline=None)
def test_runs_keep_all_messages_in_their_order_and_are_bounded(messages: list[tuple[str, int]]) -> None:
    waiting = queued(messages)
    divided = list(runs(waiting))
    assert [one for run in divided for one in run] == waiting
    for run in divided:
        assert len({(one.channel, one.stamp.epoch) for one in run}) == 1
        assert [one.stamp.number for one in run] == list(range(run[0].stamp.number, run[0].stamp.number + len(run)))
        assert len(run) <= RUN
        assert len(run) == 1 or sum(one.size for one in run) <= RUN_BYTES


def test_a_burst_on_one_channel_is_few_runs() -> None:
    assert [len(run) for run in runs(queued([("t:a", 10)] * 150))] == [64, 64, 22]
    assert [len(run) for run in runs(queued([("t:a", 10), ("t:b", 10)] * 3))] == [1] * 6


def test_marks_are_alone() -> None:
    now = 0.0
    queue = PublishQueue(10_000, 1_000_000, lambda: now)
    for _ in range(2):
        queue.put(Kind.JSON, "t:a", "e", Raw(b"1"))
    now = 1.0
    queue.put_marks()
    queue.put(Kind.JSON, "t:a", "e", Raw(b"1"))
    assert [[one.kind for one in run] for run in runs(queue.take())] == [[Kind.JSON] * 2, [Kind.MARK], [Kind.JSON]]
