"""What replicas say and when, told by the clock."""

import pytest

from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Meta
from starlette_channels.presence.timing import PresenceTiming
from starlette_channels.presence.tracker import Event, Goodbye, Heartbeat, MergeOutcome, Replica, Request, Transfer

TIMING = PresenceTiming()
TICK = TIMING.news_seconds
ANN, BEN, CID = (ReplicaId(name, 10) for name in ("ann", "ben", "cid"))


def kinds(outcome: MergeOutcome) -> list[type]:
    return [type(outgoing.message) for outgoing in outcome.outgoing]


def add(replica: Replica, key: str) -> None:
    """Let somebody be on the topic "t"."""
    replica.record(replica.state.add("t", 1, key, Meta(key, "{}")))


def exchange(one: Replica, other: Replica, now: float) -> None:
    """Both tick; what they say is heard, and answered, at once."""
    said = [*one.tick(now).outgoing, *other.tick(now).outgoing]
    while said:
        message = said.pop(0).message
        hearer = one if message.sender == other.state.me else other
        said += hearer.receive(message, now).outgoing


def acquainted() -> tuple[Replica, Replica]:
    ann, ben = Replica(ANN, TIMING), Replica(BEN, TIMING)
    exchange(ann, ben, 0.0)
    return ann, ben


def pass_time(replica: Replica, start: float, end: float) -> MergeOutcome:
    """Let a replica tick from after `start` to `end`; nobody speaks meanwhile."""
    outcome, now = MergeOutcome(), start
    while now < end:
        now = min(now + TICK, end)
        tick = replica.tick(now)
        outcome.events += tick.events
        outcome.changes.extend(tick.changes)
    return outcome


def seen(replica: Replica, topic: str = "t") -> list[str]:
    return sorted(replica.state.roster.on(topic))


def test_a_new_replica_announces_itself_with_its_first_tick_and_is_then_silent_until_its_heartbeat() -> None:
    ann = Replica(ANN, TIMING)
    said = [kinds(ann.tick(number * TICK)) for number in range(23)]
    assert [number for number, messages in enumerate(said) if messages] == [0, 6, 12, 18]


def test_a_change_goes_out_with_the_next_tick_and_once() -> None:
    ann, ben = acquainted()
    add(ann, "x")
    (outgoing,) = ann.tick(TICK).outgoing
    assert outgoing.to is None
    assert [entry.meta for entry in ben.receive(outgoing.message, TICK).changes.joins] == [Meta("x", "{}")]
    assert kinds(ann.tick(2 * TICK)) == []


def test_what_was_missed_is_asked_for_and_of_the_latest_changes_no_more_than_is_missing() -> None:
    ann, ben = acquainted()
    add(ann, "lost")
    ann.tick(TICK)
    add(ann, "heard")
    ben.receive(ann.tick(2 * TICK).outgoing[0].message, 2 * TICK)
    assert seen(ben) == ["heard"]
    (request,) = [one for number in (2, 3) for one in ben.tick(number * TICK).outgoing if one.to is not None]
    assert (request.to, type(request.message)) == (ANN, Request)
    (transfer,) = ann.receive(request.message, 3 * TICK).outgoing
    assert (transfer.to, type(transfer.message)) == (BEN, Transfer)
    ben.receive(transfer.message, 3 * TICK)
    assert seen(ben) == ["heard", "lost"]
    assert all(kinds(ben.tick(number * TICK)) in ([], [Heartbeat]) for number in range(4, 10))


def test_who_missed_more_than_is_kept_is_told_everything() -> None:
    ann, ben = Replica(ANN, TIMING, window_sizes=(2,)), Replica(BEN, TIMING)
    for number in range(9):
        add(ann, f"key {number}")
    exchange(ann, ben, 0.0)
    exchange(ann, ben, TICK)
    exchange(ann, ben, 2 * TICK)
    assert len(seen(ben)) == 9


def test_a_third_one_passes_on_what_it_knows() -> None:
    ann, ben, cid = Replica(ANN, TIMING), Replica(BEN, TIMING), Replica(CID, TIMING)
    hello = ann.tick(0.0).outgoing[0].message
    for other in (ben, cid):
        other.receive(hello, 0.0)
    exchange(ben, cid, 0.0)
    add(ann, "x")
    exchange(ann, ben, TICK)
    for number in range(2, 20):
        exchange(ben, cid, number * TICK)
    assert seen(cid) == ["x"]


def test_a_silent_replica_is_down_and_its_presences_leave_until_it_speaks_again() -> None:
    ann, ben = acquainted()
    add(ann, "x")
    exchange(ann, ben, 0.0)
    assert pass_time(ben, 0.0, 30.0).events == []
    down = ben.tick(30.1)
    assert down.events == [Event("down", ANN)]
    assert [entry.key for entry in down.changes.leaves] == ["x"]
    assert ben.tick(31.6).events == []
    back = ben.receive(Heartbeat(ANN, ann.state.advertised, None), 100.0)
    assert back.events == [Event("up", ANN)]
    assert [entry.key for entry in back.changes.joins] == ["x"]


def test_a_replica_that_is_silent_for_long_is_forgotten() -> None:
    ann, ben = acquainted()
    add(ann, "x")
    exchange(ann, ben, 0.0)
    assert pass_time(ben, 0.0, 1200.0).events == [Event("down", ANN)]
    forgotten = ben.tick(1200.1)
    assert forgotten.events == [Event("forgotten", ANN)]
    assert forgotten.changes.leaves == []
    assert ANN not in ben.state.replicas


def test_a_node_that_starts_anew_replaces_its_earlier_life_at_once() -> None:
    ann, ben = acquainted()
    add(ann, "old")
    exchange(ann, ben, 0.0)
    reborn = ReplicaId("ann", 11)
    outcome = ben.receive(Heartbeat(reborn, {}, None), 1.0)
    assert outcome.events == [Event("down", ANN), Event("forgotten", ANN), Event("up", reborn)]
    assert [entry.key for entry in outcome.changes.leaves] == ["old"]


def test_a_late_message_of_an_earlier_life_brings_nobody_back() -> None:
    ann, ben = acquainted()
    late = Heartbeat(ANN, {}, None)
    ben.receive(Heartbeat(ReplicaId("ann", 11), {}, None), 1.0)
    assert ben.receive(late, 2.0).events == []
    assert ReplicaId("ann", 11) in ben.state.replicas
    assert ann.state.me not in ben.state.replicas


def test_a_node_whose_clock_went_back_is_believed_once_its_earlier_life_is_down() -> None:
    _, ben = acquainted()
    earlier = Heartbeat(ReplicaId("ann", 9), {}, None)
    assert ben.receive(earlier, 1.0).events == []
    pass_time(ben, 1.0, 31.0)
    assert ben.receive(earlier, 32.0).events == [Event("forgotten", ANN), Event("up", ReplicaId("ann", 9))]


def test_who_takes_leave_is_gone_at_once_and_stays_away() -> None:
    ann, ben = acquainted()
    add(ann, "x")
    exchange(ann, ben, 0.0)
    (goodbye,) = ann.leave().outgoing
    outcome = ben.receive(goodbye.message, 1.0)
    assert outcome.events == [Event("down", ANN), Event("forgotten", ANN)]
    assert [entry.key for entry in outcome.changes.leaves] == ["x"]
    assert ben.receive(Heartbeat(ANN, {}, None), 2.0).events == []
    assert ben.receive(Heartbeat(ReplicaId("ann", 11), {}, None), 3.0).events == [Event("up", ReplicaId("ann", 11))]


def test_the_entries_of_who_takes_leave_may_stay_for_a_grace() -> None:
    ann, ben = acquainted()
    add(ann, "x")
    exchange(ann, ben, 0.0)
    ann.record(ann.state.remove("t", 1, "x"))
    add(ann, "y")
    for outgoing in ann.leave(grace_seconds=5.0).outgoing:
        assert ben.receive(outgoing.message, 1.0).events == []
    assert ben.receive(Heartbeat(ANN, {}, None), 2.0) == MergeOutcome()
    assert (pass_time(ben, 1.0, 5.9).events, seen(ben)) == ([], ["y"])
    assert ben.tick(6.0).events == [Event("down", ANN), Event("forgotten", ANN)]
    assert seen(ben) == []


def test_the_goodbye_of_somebody_unknown_or_of_an_earlier_life_changes_nothing() -> None:
    _, ben = acquainted()
    pass_time(ben, 0.0, 31.0)
    assert ben.receive(Goodbye(CID, 0.0), 32.0).events == []
    assert ben.receive(Goodbye(ReplicaId("ann", 9), 0.0), 32.0).events == []


def test_that_somebody_took_leave_is_not_remembered_for_ever() -> None:
    _, ben = acquainted()
    ben.receive(Goodbye(ANN, 0.0), 1.0)
    pass_time(ben, 1.0, 1300.0)
    assert ben.receive(Heartbeat(ANN, {}, None), 1300.0).events == [Event("up", ANN)]


@pytest.mark.parametrize("message", [Heartbeat(ANN, {}, None), Request(ANN, {}), Transfer(ANN, {}), Goodbye(ANN, 0.0)])
def test_what_comes_back_to_its_sender_changes_nothing(message: Heartbeat | Request | Transfer | Goodbye) -> None:
    ann = Replica(ANN, TIMING)
    outcome = ann.receive(message, 0.0)
    assert (outcome.outgoing, outcome.events) == ([], [])


def test_what_was_removed_leaves_with_the_next_tick() -> None:
    ann, ben = acquainted()
    add(ann, "x")
    exchange(ann, ben, TICK)
    ann.record(ann.state.remove("t", 1, "x"))
    heartbeat = ann.tick(2 * TICK).outgoing[0].message
    assert [entry.key for entry in ben.receive(heartbeat, 2 * TICK).changes.leaves] == ["x"]
    assert seen(ben) == []


def test_who_is_new_to_others_is_told_of_them_with_their_next_tick() -> None:
    ann, ben = acquainted()
    cid = Replica(CID, TIMING)
    (hello,) = cid.tick(TICK).outgoing
    for known in (ann, ben):
        known.receive(hello.message, TICK)
        assert kinds(known.tick(2 * TICK)) == [Heartbeat]
        assert kinds(known.tick(3 * TICK)) == []


def test_who_has_slept_blames_nobody_for_the_silence() -> None:
    ann, ben = acquainted()
    add(ann, "x")
    exchange(ann, ben, TICK)
    woken = ben.tick(100.0)
    assert (woken.events, seen(ben)) == ([], ["x"])
    assert pass_time(ben, 100.0, 128.0).events == []
    assert pass_time(ben, 128.0, 131.0).events == [Event("down", ANN)]


@pytest.mark.parametrize(
    ("times", "what"),
    [
        ({"news_seconds": 0}, "news_seconds"),
        ({"news_seconds": 2, "heartbeat_seconds": 1}, "heartbeat_seconds"),
        ({"down_seconds": 21}, "down_seconds"),
        ({"forget_seconds": 20}, "forget_seconds"),
    ],
)
def test_times_that_do_not_go_together_are_refused(times: dict[str, float], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        PresenceTiming(**times)


# Large messages.


def with_a_crowd(number: int = 10) -> tuple[Replica, Replica, Transfer]:
    """Two replicas; of the first one's entries the other knows nothing, and merges three at once."""
    ann, ben = Replica(ANN, TIMING), Replica(BEN, TIMING, slice_changes=3)
    exchange(ann, ben, 0.0)
    for key in range(number):
        add(ann, f"{key}")
    (answer,) = ann.receive(Request(BEN, {}), 0.0).outgoing
    assert isinstance(answer.message, Transfer)
    return ann, ben, answer.message


def merge_all(replica: Replica) -> list[int]:
    """The numbers of joins and leaves in each slice that waits."""
    numbers: list[int] = []
    while replica.is_merging:
        changes = replica.merge_next().changes
        numbers.append(len(changes.joins) + len(changes.leaves))
    return numbers


def test_a_large_message_is_merged_in_slices() -> None:
    ann, ben, transfer = with_a_crowd()
    assert len(ben.receive(transfer, 0.0).changes.joins) == 3
    assert ben.is_merging
    assert merge_all(ben) == [3, 3, 1]
    assert seen(ben) == seen(ann)
    assert ben.state.clock == ann.state.clock


def test_removals_are_merged_in_slices_as_well() -> None:
    ann, ben, transfer = with_a_crowd()
    ben.receive(transfer, 0.0)
    merge_all(ben)
    for key in range(8):
        ann.record(ann.state.remove("t", 1, f"{key}"))
    (answer,) = ann.receive(Request(BEN, {}), 0.0).outgoing
    assert len(ben.receive(answer.message, 0.0).changes.leaves) == 3
    assert merge_all(ben) == [3, 2]
    assert seen(ben) == ["8", "9"]


def test_what_comes_during_a_merge_is_merged_after_it_in_order() -> None:
    ann, ben, transfer = with_a_crowd()
    ann.tick(0.0)
    ben.receive(transfer, 0.0)
    ann.record(ann.state.remove("t", 1, "9"))
    first = ann.tick(TICK).outgoing[0].message
    add(ann, "late")
    second = ann.tick(2 * TICK).outgoing[0].message
    for heartbeat in (first, second):
        outcome = ben.receive(heartbeat, TICK)
        assert (outcome.changes.joins, outcome.changes.leaves) == ([], [])
    assert merge_all(ben) == [3, 3, 1, 1, 1]
    assert seen(ben) == seen(ann)
    assert ben.state.clock == ann.state.clock


def test_what_is_being_merged_is_not_asked_for_again() -> None:
    ann, ben, transfer = with_a_crowd()
    heartbeat = ann.tick(0.0).outgoing[0].message
    assert isinstance(heartbeat, Heartbeat)
    ben.receive(transfer, 0.0)
    ben.receive(Heartbeat(ANN, heartbeat.clock, None), 0.0)
    requests = [kind for number in (1, 2, 3) for kind in kinds(ben.tick(number * TICK)) if kind is Request]
    assert requests == []
    merge_all(ben)
    assert not [kind for number in (4, 5) for kind in kinds(ben.tick(number * TICK)) if kind is Request]


def test_who_leaves_in_the_middle_of_a_merge_is_gone_and_stays_away() -> None:
    ann, ben, transfer = with_a_crowd()
    ben.receive(transfer, 0.0)
    (*_, goodbye) = ann.leave().outgoing
    assert len(ben.receive(goodbye.message, 0.0).changes.leaves) == 3
    assert sum(merge_all(ben)) == 0
    assert seen(ben) == []
    assert ben.state.replicas == {BEN}


def test_who_is_down_in_the_middle_of_a_merge_is_back_with_all_entries() -> None:
    ann, ben, transfer = with_a_crowd()
    ben.receive(transfer, 0.0)
    assert len(pass_time(ben, 0.0, 31.0).changes.leaves) == 3
    assert sum(merge_all(ben)) == 0
    back = ben.receive(Heartbeat(ANN, ann.state.advertised, None), 32.0)
    assert len(back.changes.joins) == 10
    assert seen(ben) == seen(ann)


def test_who_is_forgotten_in_the_middle_of_a_merge_and_comes_back_is_known_with_the_next_transfer() -> None:
    ann, ben, transfer = with_a_crowd()
    ben.receive(transfer, 0.0)
    pass_time(ben, 0.0, 1201.0)
    assert ben.state.replicas == {BEN}
    ben.receive(Heartbeat(ANN, ann.state.advertised, None), 1202.0)
    merge_all(ben)
    for outgoing in ann.receive(Request(BEN, ben.state.clock), 1202.0).outgoing:
        ben.receive(outgoing.message, 1202.0)
    merge_all(ben)
    assert seen(ben) == seen(ann)


def test_who_takes_leave_merges_no_more() -> None:
    _, ben, transfer = with_a_crowd()
    ben.receive(transfer, 0.0)
    assert len(ben.leave().changes.leaves) == 3
    assert not ben.is_merging
    assert seen(ben) == []
