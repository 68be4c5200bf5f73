"""What a client's messages mean, clause by clause, and against a model."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import Raw

from starlette_channels.wire.messages import Message
from starlette_channels.wire.protocol import Answer, ClientProtocol, Decision, Join, Leave, Push, Refresh, Stale
from tests.support.effort import some


class Member:
    """Stands for a taken topic."""

    def __init__(self, join_ref: Any) -> None:
        self.join_ref = join_ref


Protocol = ClientProtocol[Member, str]

REFS: list[Any] = [None, "1", "2", "", 1, 2, 1.0, True, False, 0, ["1"], {"a": 1}, {"a": 1.0}]
OTHER_TYPES: list[Any] = [None, 7, 1.5, True, ["room:a"], {"room": "a"}]


def route(topic: str) -> str | None:
    """The topics of this client are those that begin with `room:`, and one that is like the heartbeat's."""
    return f"route of {topic}" if topic.startswith("room:") or topic == "phoenix" else None


def message(join_ref: Any, topic: Any, event: Any, ref: Any = "9") -> Message:
    return Message(join_ref, ref, topic, event, Raw(b"{}"))


def joined(join_ref: Any, topic: str = "room:a", max_channels: int = 100) -> tuple[Protocol, Member]:
    """A client that has taken a topic."""
    protocol = Protocol(route, max_channels)
    decision = protocol.receive(message(join_ref, topic, "phx_join"))
    assert isinstance(decision, Join)
    member = Member(join_ref)
    protocol.members[topic] = member
    return protocol, member


class TestHeartbeat:
    @pytest.mark.parametrize("join_ref", REFS, ids=repr)
    def test_it_is_answered_ok_and_its_join_ref_is_not_echoed(self, join_ref: Any) -> None:
        assert Protocol(route, 100).receive(message(join_ref, "phoenix", "heartbeat")) == Answer(None, "ok")

    def test_it_is_answered_even_if_the_topic_phoenix_is_joined_under_another_join_ref(self) -> None:
        protocol, _ = joined("1", "phoenix")
        assert protocol.receive(message("2", "phoenix", "heartbeat")) == Answer(None, "ok")

    @pytest.mark.parametrize(
        ("topic", "event"), [("phoenix", "beat"), ("phoenix", ["heartbeat"]), ("room:a", "heartbeat")]
    )
    def test_anything_like_it_is_no_heartbeat(self, topic: str, event: Any) -> None:
        assert_unmatched(Protocol(route, 100).receive(message("1", topic, event)))


def assert_unmatched(decision: Decision[Member, str]) -> None:
    assert decision == Answer(None, "error", "unmatched topic", "unmatched_topic")


class TestUnjoinedTopic:
    def test_a_join_starts_the_channel_of_its_route(self) -> None:
        join = message("1", "room:a", "phx_join")
        assert Protocol(route, 100).receive(join) == Join("route of room:a", join, None)

    @pytest.mark.parametrize("topic", ["user:1", "room", "", "Room:a"])
    def test_a_join_without_a_route_is_unmatched_and_its_join_ref_is_not_echoed(self, topic: str) -> None:
        assert_unmatched(Protocol(route, 100).receive(message("1", topic, "phx_join")))

    @pytest.mark.parametrize("event", ["echo", "", "phx_reply", "phx_close", "phx_error", 7, None, ["e"], {"e": 1}])
    def test_an_event_is_unmatched_and_its_join_ref_is_not_echoed(self, event: Any) -> None:
        assert_unmatched(Protocol(route, 100).receive(message("1", "room:a", event)))

    @pytest.mark.parametrize("join_ref", REFS, ids=repr)
    def test_a_leave_is_answered_ok_and_its_join_ref_echoed(self, join_ref: Any) -> None:
        assert Protocol(route, 100).receive(message(join_ref, "room:a", "phx_leave")) == Answer(join_ref, "ok")

    @pytest.mark.parametrize("topic", OTHER_TYPES, ids=repr)
    def test_a_topic_that_is_no_string_is_an_unjoined_topic(self, topic: Any) -> None:
        protocol = Protocol(route, 100)
        assert_unmatched(protocol.receive(message("1", topic, "phx_join")))
        assert_unmatched(protocol.receive(message("1", topic, "echo")))
        assert protocol.receive(message("1", topic, "phx_leave")) == Answer("1", "ok")


class TestJoinedTopic:
    @pytest.mark.parametrize("event", ["echo", "", "phx_reply", "phx_close", "phx_error", "heartbeat", 7, None, ["e"]])
    def test_an_event_goes_to_its_channel(self, event: Any) -> None:
        protocol, member = joined("1")
        push = message("1", "room:a", event)
        decision = protocol.receive(push)
        assert isinstance(decision, Push)
        assert decision.member is member
        assert decision.message is push

    def test_a_leave_goes_to_its_channel_and_the_topic_stays_taken_until_it_has_ended(self) -> None:
        protocol, member = joined("1")
        for _ in range(2):
            leave = protocol.receive(message("1", "room:a", "phx_leave"))
            assert isinstance(leave, Leave)
            assert leave.member is member
        assert isinstance(protocol.receive(message("1", "room:a", "echo")), Push)
        protocol.free("room:a", member)
        assert_unmatched(protocol.receive(message("1", "room:a", "echo")))
        assert protocol.receive(message("1", "room:a", "phx_leave")) == Answer("1", "ok")

    @pytest.mark.parametrize("taken", REFS, ids=repr)
    @pytest.mark.parametrize("sent", REFS, ids=repr)
    @pytest.mark.parametrize("event", ["echo", "phx_leave"])
    def test_a_join_ref_must_be_null_or_equal_in_type_and_value(self, taken: Any, sent: Any, event: str) -> None:
        protocol, _ = joined(taken)
        decision = protocol.receive(message(sent, "room:a", event))
        fits = sent is None or (type(sent) is type(taken) and json.dumps(sent) == json.dumps(taken))
        assert isinstance(decision, (Leave if event == "phx_leave" else Push) if fits else Stale)

    def test_the_ref_of_a_join_without_join_ref_does_not_count(self) -> None:
        protocol, _ = joined(None)
        assert isinstance(protocol.receive(message("9", "room:a", "echo")), Stale)
        assert isinstance(protocol.receive(message(None, "room:a", "echo")), Push)

    def test_topics_do_not_concern_each_other(self) -> None:
        protocol, _ = joined("1")
        assert_unmatched(protocol.receive(message("1", "room:b", "echo")))
        assert protocol.receive(message("1", "room:b", "phx_leave")) == Answer("1", "ok")


class TestSecondJoin:
    @pytest.mark.parametrize("join_ref", REFS, ids=repr)
    def test_it_replaces_the_channel_whatever_its_join_ref(self, join_ref: Any) -> None:
        protocol, first = joined("1")
        join = message(join_ref, "room:a", "phx_join")
        decision = protocol.receive(join)
        assert isinstance(decision, Join)
        assert decision.replaces is first
        assert decision.message is join

    def test_the_end_of_the_first_channel_does_not_free_the_topic_of_the_second(self) -> None:
        protocol, first = joined("1")
        second = Member("2")
        protocol.members["room:a"] = second
        protocol.free("room:a", first)
        assert isinstance(protocol.receive(message("1", "room:a", "echo")), Stale)
        decision = protocol.receive(message("2", "room:a", "echo"))
        assert isinstance(decision, Push)
        assert decision.member is second
        protocol.free("room:a", second)
        assert_unmatched(protocol.receive(message("2", "room:a", "echo")))


class TestLimit:
    def full(self) -> Protocol:
        protocol = Protocol(route, 3)
        for name in "abc":
            protocol.members[f"room:{name}"] = Member("1")
        return protocol

    def test_one_more_join_is_refused_and_its_join_ref_echoed(self) -> None:
        refusal = Answer("7", "error", "too many channels joined", "too_many_channels")
        assert self.full().receive(message("7", "room:d", "phx_join")) == refusal

    def test_a_second_join_of_a_topic_is_no_further_channel(self) -> None:
        assert isinstance(self.full().receive(message("7", "room:a", "phx_join")), Join)

    def test_a_topic_without_route_is_unmatched_before_the_limit_counts(self) -> None:
        assert_unmatched(self.full().receive(message("7", "user:1", "phx_join")))

    def test_a_channel_that_has_ended_makes_room(self) -> None:
        protocol = self.full()
        protocol.free("room:b", protocol.members["room:b"])
        assert isinstance(protocol.receive(message("7", "room:d", "phx_join")), Join)

    def test_a_channel_that_is_leaving_makes_no_room_yet(self) -> None:
        protocol = self.full()
        protocol.receive(message("1", "room:b", "phx_leave"))
        assert isinstance(protocol.receive(message("7", "room:d", "phx_join")), Answer)

    def test_nothing_else_is_refused_at_the_limit(self) -> None:
        protocol = self.full()
        assert protocol.receive(message(None, "phoenix", "heartbeat")) == Answer(None, "ok")
        assert isinstance(protocol.receive(message("1", "room:a", "echo")), Push)
        assert protocol.receive(message("1", "room:d", "phx_leave")) == Answer("1", "ok")

    def test_a_limit_of_nothing_refuses_every_join(self) -> None:
        assert isinstance(Protocol(route, 0).receive(message("1", "room:a", "phx_join")), Answer)


topics = st.sampled_from(["room:a", "room:b", "room:c", "phoenix", "user:1", 7, ["room:a"]])
events = st.sampled_from(["echo", "heartbeat", "refresh", "phx_join", "phx_leave", "phx_close", 7, ["phx_join"]])
refs = st.sampled_from(REFS)


class ModelledClient(RuleBasedStateMachine):
    """A client that sends what it likes, beside a model: a list of (topic, join_ref as JSON text, member), the newest
    last.
    """

    LIMIT = 2

    def __init__(self) -> None:
        super().__init__()
        self.protocol = Protocol(route, self.LIMIT)
        self.taken: list[tuple[str, str, Member]] = []
        self.replaced: list[tuple[str, Member]] = []

    @rule(topic=topics, event=events, join_ref=refs, ref=refs)
    def send(self, topic: Any, event: Any, join_ref: Any, ref: Any) -> None:
        sent = message(join_ref, topic, event, ref)
        decision = self.protocol.receive(sent)
        assert self.described(decision, sent) == self.expected(topic, event, join_ref)
        if isinstance(decision, Join):
            old = [entry for entry in self.taken if entry[0] == topic]
            self.replaced += [(name, member) for name, _, member in old]
            member = Member(join_ref)
            self.taken = [entry for entry in self.taken if entry[0] != topic]
            self.taken.append((topic, json.dumps(join_ref), member))
            self.protocol.members[topic] = member

    @rule(data=st.data())
    def a_channel_ends(self, data: st.DataObject) -> None:
        if self.taken:
            entry = data.draw(st.sampled_from(self.taken))
            self.taken.remove(entry)
            self.protocol.free(entry[0], entry[2])

    @rule(data=st.data())
    def a_replaced_channel_has_ended(self, data: st.DataObject) -> None:
        if self.replaced:
            entry = data.draw(st.sampled_from(self.replaced))
            self.replaced.remove(entry)
            self.protocol.free(*entry)

    @invariant()
    def the_taken_topics_are_those_of_the_model(self) -> None:
        assert self.protocol.members == {topic: member for topic, _, member in self.taken}

    def described(self, decision: Decision[Member, str], sent: Message) -> tuple[Any, ...]:
        """Write a decision in the model's words: what, and for whom."""
        match decision:
            case Answer():
                return "answer", json.dumps(decision.join_ref), decision.status, decision.reason
            case Stale():
                return ("nothing",)
            case Refresh():
                return ("refresh",)
            case Join():
                assert decision.message is sent
                return "join", decision.route, decision.replaces
            case Push() | Leave():
                assert decision.message is sent
                return "leave" if isinstance(decision, Leave) else "event", decision.member

    def expected(self, topic: Any, event: Any, join_ref: Any) -> tuple[Any, ...]:
        """The rules for messages and joins, written as questions."""
        mine = [(ref, member) for name, ref, member in self.taken if name == topic]
        unmatched = ("answer", "null", "error", "unmatched topic")
        if (topic, event) == ("phoenix", "heartbeat"):
            return "answer", "null", "ok", ""
        if (topic, event) == ("phoenix", "refresh"):
            return ("refresh",)
        if event == "phx_join":
            if topic not in ("room:a", "room:b", "room:c", "phoenix"):
                return unmatched
            if not mine and len(self.taken) == self.LIMIT:
                return "answer", json.dumps(join_ref), "error", "too many channels joined"
            return "join", f"route of {topic}", mine[0][1] if mine else None
        if not mine:
            return ("answer", json.dumps(join_ref), "ok", "") if event == "phx_leave" else unmatched
        ref, member = mine[0]
        if join_ref is not None and json.dumps(join_ref) != ref:
            return ("nothing",)
        return ("leave" if event == "phx_leave" else "event"), member


TestAgainstTheModel: Any = ModelledClient.TestCase
TestAgainstTheModel.settings = settings(
    max_examples=some(of=60),
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
