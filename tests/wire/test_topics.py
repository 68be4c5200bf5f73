"""Topic patterns: which topics fit, what a pattern hands on, and what is no pattern."""

import re
import time
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from starlette_channels import Limits, Socket, channel
from starlette_channels.connection.registry import Service
from starlette_channels.pubsub.broker import Broker
from starlette_channels.wire.topics import Match, Pattern
from tests.support.effort import some

bounded = settings(
    max_examples=some(of=150),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize(
    ("pattern", "topic", "match"),
    [
        ("room:lobby", "room:lobby", Match("", {})),
        ("room:*", "room:lobby", Match("lobby", {})),
        ("room:*", "room:", Match("", {})),
        ("room:*", "room:a:b*\n", Match("a:b*\n", {})),
        ("foo*", "foo", Match("", {})),
        ("foo*", "foobar", Match("bar", {})),
        ("*", "", Match("", {})),
        ("*", "whatever:it is", Match("whatever:it is", {})),
        ("room:{room_id}", "room:7", Match("7", {"room_id": "7"})),
        ("room:{room_id}", "room:*", Match("*", {"room_id": "*"})),
        ("room:{room_id}", "room:a\nb", Match("a\nb", {"room_id": "a\nb"})),
        ("{kind}", "räume", Match("räume", {"kind": "räume"})),
        ("{kind}:{id}", "room:7", Match("room:7", {"kind": "room", "id": "7"})),
        ("org:{org}:room:{room}", "org:a:room:b", Match("a:room:b", {"org": "a", "room": "b"})),
        ("room:{room_id}:*", "room:7:x:y", Match("7:x:y", {"room_id": "7"})),
        ("room:{room_id}*", "room:7:x", Match("7:x", {"room_id": "7"})),
        ("room:{room_id}:*", "room:7:x\ny", Match("7:x\ny", {"room_id": "7"})),
        ("room-{room_id}.x", "room-7.x", Match("7.x", {"room_id": "7"})),
    ],
)
def test_a_topic_that_fits_yields_its_rest_and_its_segments(pattern: str, topic: str, match: Match) -> None:
    assert Pattern(pattern).match(topic) == match


@pytest.mark.parametrize(
    ("pattern", "topic"),
    [
        ("room:lobby", "room:lobby2"),
        ("room:lobby", "Room:lobby"),
        ("room:lobby", ""),
        ("room:*", "room"),
        ("room:*", "Room:a"),
        ("room:*", "xroom:a"),
        ("room:{room_id}", "room:"),
        ("room:{room_id}", "room:7:8"),
        ("room:{room_id}", "room:7\n:"),
        ("room:{room_id}", "xroom:7"),
        ("room-{room_id}.x", "room-7yx"),
        ("org:{org}:room:{room}", "org::room:b"),
        ("room:{room_id}:*", "room:7"),
    ],
)
def test_a_topic_that_does_not_fit_is_no_match(pattern: str, topic: str) -> None:
    assert Pattern(pattern).match(topic) is None


@pytest.mark.parametrize(
    ("pattern", "fix"),
    [
        ("", "it would match no topic; name one, as in 'room:*', or '*' for all"),
        ("**", "only at the end, as in 'room:*'"),
        ("room:*:x", "only at the end, as in 'room:*'"),
        ("*room", "only at the end, as in 'room:*'"),
        ("room:{room-id}", "write a segment as {name}"),
        ("room:{}", "write a segment as {name}"),
        ("room:{7}", "write a segment as {name}"),
        ("room:{room_id", "write a segment as {name}"),
        ("room:room_id}", "write a segment as {name}"),
        ("room:{{room_id}}", "write a segment as {name}"),
        ("{a}:{a}", "two segments have the same name"),
        ("dm:{low}-{high}", "colon between"),
        ("dm:{low}{high}", "colon between"),
    ],
)
def test_what_is_no_pattern_is_refused_with_the_fix(pattern: str, fix: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fix)) as caught:
        Pattern(pattern)
    assert repr(pattern) in str(caught.value)


def test_a_pattern_names_its_segments_in_order_and_shows_itself() -> None:
    pattern = Pattern("org:{org}:room:{room}")
    assert pattern.names == ("org", "room")
    assert repr(pattern) == "Pattern('org:{org}:room:{room}')"


def test_the_first_channel_that_fits_wins_in_the_order_of_declaration() -> None:
    async def join(socket: Socket, payload: dict[str, Any]) -> None: ...

    lobby = channel("room:lobby", "room:*")(join)
    everything = channel("*")(join)
    rooms = channel("room:hall")(join)
    match = Service([lobby, everything, rooms], Broker(), Limits()).match
    assert match("room:lobby") == (lobby, Match("", {}))
    assert match("room:hall") == (lobby, Match("hall", {}))
    assert match("user:1") == (everything, Match("user:1", {}))
    assert Service([lobby, rooms], Broker(), Limits()).match("user:1") is None


@pytest.mark.parametrize(
    ("pattern", "topic"),
    [
        ("{a}:{b}:{c}:*", "x" * 1_000_000),
        ("{a}:{b}:{c}", "::" * 500_000),
        ("{a}:{b}:{c}:x", "y:" * 500_000),
        ("room-{a}-room", "room-" * 200_000 + ":"),
        ("{a}*", ":" * 1_000_000),
    ],
)
def test_a_long_hostile_topic_is_decided_in_linear_time(pattern: str, topic: str) -> None:
    began = time.process_time()
    assert Pattern(pattern).match(topic) is None
    assert time.process_time() - began < 1


class Example(NamedTuple):
    pattern: str
    topic: str
    prefix: str
    params: dict[str, str]


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """Pieces between colons, each a text or a segment, and at the end perhaps `*`: a pattern and a topic that fits."""
    texts = st.text(st.characters(exclude_characters="{}*:", codec="utf-8"), max_size=5)
    pieces: list[tuple[str, str]] = []
    params: dict[str, str] = {}
    for name in draw(st.permutations(["a", "room_id", "ü", "class", "_0"])):
        pieces.append(draw(st.tuples(texts, st.just("")).map(lambda pair: (pair[0], pair[0]))))
        if draw(st.booleans()):
            value = draw(st.text(st.characters(exclude_characters=":", codec="utf-8"), min_size=1))
            params[name] = value
            pieces.append((f"{{{name}}}", value))
    pattern = ":".join(written for written, _ in pieces)
    topic = ":".join(meant for _, meant in pieces)
    if draw(st.booleans()):
        pattern, topic = pattern + ":*", topic + ":" + draw(st.text())
    return Example(pattern, topic, pattern.partition("{")[0].removesuffix("*"), params)


@bounded
@given(examples())
def test_a_topic_made_from_a_pattern_matches_it_and_yields_its_parts(example: Example) -> None:
    match = Pattern(example.pattern).match(example.topic)
    assert match is not None
    assert match.params == example.params
    is_exact = not example.params and not example.pattern.endswith("*")
    assert match.subtopic == ("" if is_exact else example.topic.removeprefix(example.prefix))


@bounded
@given(st.text(st.sampled_from("ab:"), min_size=1), st.text(st.sampled_from("ab:")))
def test_a_pattern_without_segments_compares_texts(text: str, topic: str) -> None:
    assert Pattern(text).match(topic) == (Match("", {}) if text == topic else None)
    wild = Pattern(text + "*").match(topic)
    assert wild == (Match(topic.removeprefix(text), {}) if topic.startswith(text) else None)


@bounded
@given(st.text(st.sampled_from("a1_:é{}*\n.[(")), st.text(st.sampled_from("a1_:é{}*\n.[(")))
def test_any_text_is_a_pattern_or_a_value_error(text: str, topic: str) -> None:
    try:
        pattern = Pattern(text)
    except ValueError:
        return
    match = pattern.match(topic)
    assert match is None or set(match.params) == set(pattern.names)
