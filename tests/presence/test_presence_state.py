"""The state of presence as three replicas see it: whatever happens to their messages, they come to agree."""

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlette_channels.presence.crdt.clock import ReplicaId, covers, worth_asking
from starlette_channels.presence.crdt.delta import Delta, Entry, Meta, Part, Window, Windows
from starlette_channels.presence.crdt.state import Changes, EntryPlace, State
from tests.support.effort import some

bounded = settings(max_examples=some(of=150), derandomize=True, database=None, deadline=None)
IDS = tuple(ReplicaId(name, 1) for name in "abc")
PLACES = [("room:1", member, key) for member in (1, 2) for key in ("x", "y")]


def meta(ref: str) -> Meta:
    return Meta(ref, "{}")


class Step(NamedTuple):
    """Somebody tracks (or untracks, if it is there and `track` is false) something."""

    who: int
    place: EntryPlace
    track: bool


steps = st.lists(st.builds(Step, st.integers(0, 2), st.sampled_from(PLACES), st.booleans()), max_size=25)


class Cluster:
    """Three states that believe in each other, and the deltas of all that they have done."""

    def __init__(self) -> None:
        self.states = [State(me) for me in IDS]
        for state in self.states:
            for other in IDS:
                state.up(other)
        self.deltas: list[Delta] = []
        self.metas = 0

    def do(self, step: Step) -> None:
        state = self.states[step.who]
        present = state.find(*step.place)
        if step.track:
            self.metas += 1
            self.deltas.append({state.me: state.add(*step.place, meta(str(self.metas)))})
        elif present is not None:
            self.deltas.append({state.me: state.remove(*step.place)})

    def heartbeat_round(self) -> None:
        """Everybody hears of everybody's clock, and asks those whom it is worth asking."""
        for state in self.states:
            clocks = {other.me: other.advertised for other in self.states if other is not state}
            for asked in worth_asking(state.clock, clocks):
                state.merge(self.states[IDS.index(asked)].extract(state.clock))

    def there(self) -> set[str]:
        entries = [state.find(*place) for state in self.states for place in PLACES]
        return {entry.meta.ref for entry in entries if entry is not None}


def metas(state: State) -> set[str]:
    topics = state.roster.topics.values()
    return {entry.meta.ref for keys in topics for group in keys.values() for entry in group.values()}


def own(state: State) -> dict[EntryPlace, Entry | None]:
    return {place: state.find(*place) for place in PLACES}


@bounded
@given(steps, st.data())
def test_any_order_duplication_and_loss_followed_by_a_heartbeat_round_converges(what: list[Step], data: Any) -> None:
    cluster = Cluster()
    for step in what:
        cluster.do(step)
    for state in cluster.states:
        for delta in data.draw(st.lists(st.sampled_from(cluster.deltas)) if cluster.deltas else st.just([])):
            state.merge(delta)
    cluster.heartbeat_round()
    assert [metas(state) for state in cluster.states] == [cluster.there()] * 3
    assert all(state.clock == cluster.states[0].clock for state in cluster.states)


@bounded
@given(steps, st.randoms())
def test_all_deltas_in_any_order_need_no_heartbeat(what: list[Step], random: Any) -> None:
    cluster = Cluster()
    for step in what:
        cluster.do(step)
    for state in cluster.states:
        random.shuffle(cluster.deltas)
        for delta in cluster.deltas:
            state.merge(delta)
    assert [metas(state) for state in cluster.states] == [cluster.there()] * 3


@bounded
@given(steps, st.data())
def test_merging_twice_changes_nothing_and_own_entries_are_never_touched(what: list[Step], data: Any) -> None:
    cluster = Cluster()
    for step in what:
        cluster.do(step)
    extracts = [state.extract({}) for state in cluster.states]
    for state in cluster.states:
        before = own(state)
        for delta in data.draw(st.permutations([*cluster.deltas, *extracts])):
            state.merge(delta)
            again = state.merge(delta)
            assert (again.joins, again.leaves) == ([], [])
        assert own(state) == before


@bounded
@given(steps, st.data())
def test_changes_tell_what_happens_to_the_roster(what: list[Step], data: Any) -> None:
    cluster = Cluster()
    for step in what:
        cluster.do(step)
    observer = cluster.states[0]
    told = metas(observer)
    for delta in data.draw(st.permutations(cluster.deltas)):
        changes = observer.merge(delta)
        joins, leaves = ({entry.meta.ref for entry in side} for side in (changes.joins, changes.leaves))
        assert not joins & told
        assert leaves <= told
        told = (told | joins) - leaves
        assert told == metas(observer)


MEANWHILE = st.sampled_from(["nothing", "nothing", "own", "down", "up", "forget"])


def drawn_deltas(cluster: Cluster, data: Any) -> list[Delta]:
    """Deltas of what was done, and whole states, in any order, some twice."""
    said = [*cluster.deltas, *(state.extract({}) for state in cluster.states)]
    return data.draw(st.lists(st.sampled_from(said), max_size=8))


@bounded
@given(steps, st.integers(1, 4), st.data())
def test_a_delta_in_slices_has_the_effect_of_the_delta(what: list[Step], most: int, data: Any) -> None:
    cluster, other = Cluster(), Cluster()
    for step in what:
        cluster.do(step)
        if step.who == 0:
            other.do(step)
    whole, sliced = cluster.states[0], other.states[0]
    for delta in drawn_deltas(cluster, data):
        changes = whole.merge(delta)
        in_slices = [sliced.merge(piece) for piece in sliced.cut(delta, most)]
        assert sum(len(one.joins) for one in in_slices) == len(changes.joins)
        assert sum(len(one.leaves) for one in in_slices) == len(changes.leaves)
        assert all(len(one.joins) <= most and len(one.leaves) <= most for one in in_slices)
        assert sliced.clock == whole.clock
        others = [{me: part for me, part in state.extract({}).items() if me != state.me} for state in (whole, sliced)]
        assert others[0] == others[1]


@bounded
@given(steps, st.integers(1, 4), st.data())
def test_whatever_happens_between_slices_the_state_converges_and_changes_tell_it(
    what: list[Step], most: int, data: Any
) -> None:
    cluster = Cluster()
    for step in what:
        cluster.do(step)
    observer = cluster.states[0]
    told = metas(observer)

    def take(changes: Changes) -> None:
        nonlocal told
        joins, leaves = ({entry.meta.ref for entry in side} for side in (changes.joins, changes.leaves))
        assert not joins & told
        assert leaves <= told
        told = (told | joins) - leaves
        assert told == metas(observer)

    for delta in drawn_deltas(cluster, data):
        for piece in observer.cut(delta, most):
            take(observer.merge(piece))
            other = IDS[int(data.draw(st.integers(1, 2)))]
            match data.draw(MEANWHILE):
                case "own":
                    cluster.do(Step(0, data.draw(st.sampled_from(PLACES)), data.draw(st.booleans())))
                    told = metas(observer)
                case "down":
                    take(observer.down(other))
                case "up":
                    take(observer.up(other))
                case "forget":
                    take(observer.forget(other))
                case _:
                    pass
    for state in cluster.states:
        take(observer.up(state.me))
    cluster.heartbeat_round()
    assert [metas(state) for state in cluster.states] == [cluster.there()] * 3


def test_slices_have_additions_first_and_an_update_is_in_one() -> None:
    ann, ben = pair()
    for key in ("old", "same", "gone"):
        ann.add("t", 1, key, meta(key))
    ben.merge(ann.extract({}))
    ann.remove("t", 1, "gone")
    ann.remove("t", 1, "old")
    ann.add("t", 2, "old", meta("moved"))
    ann.add("t", 1, "same", meta("updated"))
    slices = [ben.merge(piece) for piece in ben.cut(ann.extract(ben.clock), 1)]
    told = [([one.meta.ref for one in part.joins], [one.meta.ref for one in part.leaves]) for part in slices]
    assert told[:2] == [(["moved"], []), (["updated"], ["same"])]
    assert sorted(told[2:]) == [([], []), ([], ["gone"]), ([], ["old"])]


def pair() -> tuple[State, State]:
    cluster = Cluster()
    return cluster.states[0], cluster.states[1]


def test_an_own_entry_survives_what_others_say_of_it() -> None:
    ann, ben = pair()
    ann.add("t", 1, "x", meta("meta"))
    changes = ben.merge({ann.me: Part(99, set(), {})})
    ann.merge({ann.me: Part(99, set(), {})})
    assert (changes.leaves, metas(ann)) == ([], {"meta"})


def test_the_presences_of_a_replica_that_is_down_leave_and_those_of_one_that_heals_are_back() -> None:
    ann, ben = pair()
    ben.merge({ann.me: ann.add("t", 1, "x", meta("one"))})
    assert [entry.meta.ref for entry in ben.down(ann.me).leaves] == ["one"]
    assert ben.down(ann.me).leaves == []
    assert not ben.roster.on("t")
    assert ann.me not in ben.advertised
    hidden = ben.merge({ann.me: ann.add("t", 1, "y", meta("two"))})
    assert hidden.joins == []
    assert ben.extract({}).get(ann.me) is None
    assert {entry.meta.ref for entry in ben.up(ann.me).joins} == {"one", "two"} == metas(ben)
    assert ben.up(ann.me).joins == []


def test_a_replica_that_is_forgotten_is_not_believed_in_until_it_is_up_again() -> None:
    ann, ben = pair()
    ben.merge({ann.me: ann.add("t", 1, "x", meta("one"))})
    assert [entry.meta.ref for entry in ben.forget(ann.me).leaves] == ["one"]
    assert ben.forget(ann.me).leaves == []
    assert ben.merge(ann.extract({})).joins == []
    assert ann.me not in ben.replicas
    assert ben.up(ann.me).joins == []
    assert [entry.meta.ref for entry in ben.merge(ann.extract(ben.clock)).joins] == ["one"]


def test_of_two_entries_for_one_place_the_later_is_right_whichever_comes_first() -> None:
    ann, ben = pair()
    first, removal = ann.add("t", 1, "x", meta("one")), ann.remove("t", 1, "x")
    second = ann.add("t", 1, "x", meta("two"))
    assert [entry.meta.ref for entry in ben.merge({ann.me: second}).joins] == ["two"]
    assert ben.merge({ann.me: first}).joins == []
    assert ben.merge({ann.me: removal}).leaves == []
    assert metas(ben) == {"two"}


def test_an_update_is_one_change_with_a_join_and_a_leave() -> None:
    ann, ben = pair()
    ben.merge({ann.me: ann.add("t", 1, "x", meta("old"))})
    changes = ben.merge({ann.me: ann.add("t", 1, "x", meta("new"))})
    assert [entry.meta.ref for entry in changes.joins] == ["new"]
    assert [entry.meta.ref for entry in changes.leaves] == ["old"]


def test_removing_what_is_not_there_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        pair()[0].remove("t", 1, "x")


def test_who_takes_another_name_keeps_its_entries_and_others_know_only_the_new_one() -> None:
    ann, ben = pair()
    ben.merge({ann.me: ann.add("t", 1, "x", meta("one"))})
    ann.remove("t", 1, "x")
    ann.add("t", 1, "y", meta("two"))
    former, me = ann.me, ReplicaId("ann", 2)
    renamed = ann.rename(me)
    assert (ann.me, metas(ann), former in ann.replicas) == (me, {"two"}, False)
    ben.forget(former)
    ben.up(me)
    assert [entry.meta.ref for entry in ben.merge({me: renamed}).joins] == ["two"]
    assert ben.merge(ann.extract(ben.clock)) == Changes()
    ann.remove("t", 1, "y")
    assert not ann.roster.topics


def test_what_is_empty_is_gone() -> None:
    ann, _ = pair()
    ann.add("t", 1, "x", meta("one"))
    ann.add("t", 2, "x", meta("two"))
    assert list(ann.roster.on("t")) == ["x"]
    ann.remove("t", 1, "x")
    assert [entry.meta.ref for entry in ann.roster.on("t")["x"].values()] == ["two"]
    ann.remove("t", 2, "x")
    assert not ann.roster.topics


def test_a_clock_covers_another_if_it_is_nowhere_behind() -> None:
    a, b, c = IDS
    assert covers({a: 2, b: 1}, {a: 2})
    assert not covers({a: 2, b: 1}, {a: 1, c: 1})
    assert covers({}, {a: 0})


def test_only_those_are_asked_who_know_something_that_nobody_else_knows() -> None:
    a, b, c = IDS
    assert worth_asking({a: 1}, {b: {a: 1}, c: {a: 1}}) == []
    assert worth_asking({a: 1}, {b: {a: 2, c: 1}, c: {a: 2}}) == [b]
    assert len(worth_asking({}, {b: {a: 2}, c: {a: 2}})) == 1
    assert set(worth_asking({}, {b: {a: 2}, c: {b: 2}})) == {b, c}


@bounded
@given(st.lists(st.sampled_from(PLACES), min_size=1, max_size=30), st.integers(0, 60))
def test_a_window_tells_all_that_happened_since(places: list[EntryPlace], since: int) -> None:
    ann, ben = pair()
    windows, everything = Windows((3, 10)), Window()
    for number, place in enumerate(places):
        part = ann.remove(*place) if ann.find(*place) else ann.add(*place, meta(str(number)))
        windows.record(part)
        everything.record(part)
        if ann.clock[ann.me] <= since:
            ben.merge({ann.me: part})
    assert dict(everything.part.entries) == dict(ann.extract({})[ann.me].entries)
    latest = windows.since(ben.clock[ann.me])
    if latest is not None:
        ben.merge({ann.me: latest})
        assert metas(ben) == metas(ann)
        assert ben.clock == ann.clock
