"""What travels between processes: any broadcast arrives as it was, and junk is told from it."""

import logging
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.relay.channel_names import (
    as_bytes,
    as_short_bytes,
    as_token,
    from_bytes,
    line_channel,
    name_of,
    topic_channel,
)
from starlette_channels.pubsub.relay.command_log import CommandLog
from starlette_channels.pubsub.relay.envelope import (
    CHECKSUM_BYTES,
    Envelope,
    Kind,
    checked,
    payload_kind,
    payload_of,
    seal,
    unseal,
)
from starlette_channels.pubsub.relay.receiver import Receiver
from starlette_channels.wire.messages import Gap

ME, OTHER = b"12345678", b"87654321"
LOG = CommandLog(ME, lambda: 0.5)
NUMBERS = st.integers(1, 2**63 - 1)


SECONDS = st.floats(0, allow_nan=False)


@given(st.sampled_from(Kind), NUMBERS, NUMBERS, st.text(), st.text(), st.binary(), SECONDS, SECONDS, SECONDS)
def test_what_is_sealed_is_unsealed_as_it_was(
    kind: Kind, epoch: int, number: int, channel: str, event: str, body: bytes, sent: float, age: float, quiet: float
) -> None:
    envelope = unseal(seal(kind, ME, epoch, number, channel, event, body, sent, age, quiet))
    assert envelope == Envelope(1, kind, ME, epoch, number, channel, event, body, sent, age, quiet)


def test_payloads_keep_their_kind() -> None:
    for body in (Raw(b'{"a":1}'), b"\x00"):
        found = payload_of(unseal(seal(payload_kind(body), ME, 1, 1, "t:t", "e", body)))
        assert (type(found), bytes(found)) == (type(body), bytes(body))


VALID = seal(Kind.JSON, OTHER, 1, 1, "t:a", "e", Raw(b"{}"))


def test_a_later_version_may_add_fields_but_must_not_change_them() -> None:
    fields = msgspec.msgpack.decode(VALID[CHECKSUM_BYTES:])
    later, now = unseal(checked(msgspec.msgpack.encode([*fields, "more"]))), unseal(VALID)
    assert repr(later) == repr(now)  # it does not say when it was sent, and that is not a number
    earlier = unseal(checked(msgspec.msgpack.encode(fields[:8])))
    assert repr(earlier) == repr(now), "what has no ages is read as well"
    with pytest.raises(ValueError, match="no message of ours"):
        unseal(checked(msgspec.msgpack.encode([2, *fields[1:]])))


@given(st.integers(0, len(VALID) - 1), st.integers(1, 255))
def test_what_is_damaged_on_its_way_is_noticed(at: int, change: int) -> None:
    with pytest.raises(ValueError, match="the checksum is wrong"):
        unseal(VALID[:at] + bytes([VALID[at] ^ change]) + VALID[at + 1 :])


JUNK = st.one_of(
    st.binary(),
    st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)).map(
        lambda place: VALID[: place[0]] + bytes([place[1]]) + VALID[place[0] + 1 :]
    ),
    st.integers(0, len(VALID) - 1).map(lambda length: VALID[:length]),
    st.recursive(st.none() | st.integers(-5, 5) | st.binary(max_size=9) | st.text(max_size=9), st.lists).map(
        msgspec.msgpack.encode
    ),
    st.just(b"\x91" * 100_000),
)


@given(JUNK, st.booleans())
def test_junk_never_raises_and_is_counted(junk: bytes, is_checked: bool) -> None:
    junk = checked(junk) if is_checked else junk
    counts: Counter[str] = Counter()
    receiver = Receiver(ME, ErrorLog(counts), lambda: 0.0, LOG)
    receiver.want({"t:a": 0.0})
    arrivals = receiver.take([VALID, junk, seal(Kind.JSON, OTHER, 1, 2, "t:a", "last", Raw(b"{}"))])
    if counts["relay_junk"]:
        assert [arrival.event for arrival in arrivals if isinstance(arrival, Envelope)] == ["e", "last"]


def receiver(*channels: str) -> tuple[Receiver, Counter[str]]:
    counts: Counter[str] = Counter()
    one = Receiver(ME, ErrorLog(counts, lambda: 0.0), lambda: 0.0, LOG)
    one.want(dict.fromkeys(channels, 0.0))
    return one, counts


def test_own_messages_and_those_of_channels_that_nobody_wants_are_nothing() -> None:
    one, counts = receiver("t:a")
    assert one.take([seal(Kind.JSON, ME, 1, 1, "t:a"), seal(Kind.JSON, OTHER, 1, 1, "t:b")]) == []
    assert not counts


def test_the_gaps_of_a_batch_are_one_in_front_of_it_and_late_ones_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    one, counts = receiver("t:a")
    batch = [seal(Kind.JSON, OTHER, 1, number, "t:a") for number in (1, 3, 6, 4, 6)]
    gap, *arrivals = one.take([*batch, seal(Kind.MARK, OTHER, 1, 7, "t:a")])
    assert gap == Gap("a", 4, OTHER.hex())
    assert [arrival.number for arrival in arrivals if isinstance(arrival, Envelope)] == [1, 3, 6]
    assert counts == {"relay_lost": 4, "relay_gap": 1, "relay_late": 1, "relay_duplicate": 1}
    assert [record.getMessage() for record in caplog.records] == [f"4 of {OTHER.hex()} on 'a' are lost"]


def test_what_is_lost_on_a_line_is_counted_and_no_gap_of_a_topic_that_has_its_name() -> None:
    line = line_channel("presence")
    one, counts = receiver(line, topic_channel("presence"))
    arrivals = one.take([seal(Kind.LINE, OTHER, 1, number, line) for number in (1, 4)])
    assert [arrival.number for arrival in arrivals if isinstance(arrival, Envelope)] == [1, 4]
    assert len(arrivals) == 2
    assert counts == {"relay_lost": 2, "relay_gap": 1}


def test_a_first_message_that_never_comes_is_a_gap_if_the_channel_was_wanted_when_it_was_said() -> None:
    now = 100.0
    counts: Counter[str] = Counter()
    one = Receiver(ME, ErrorLog(counts, lambda: now), lambda: now, LOG)
    one.want({"t:before": 0.0, "t:a": 100.0})
    one.confirm({"t:before", "t:a"})
    now = 110.0
    one.want({"t:b": 109.0})
    one.confirm({"t:b"})
    for channel, lost in (("t:before", 0), ("t:a", 2), ("t:b", 0)):
        age = 10.5 if channel == "t:before" else 5.0  # this one began before there was this receiver
        mark = seal(Kind.MARK, OTHER, 1, 2, channel, sent=7_000.0, age=age, quiet=4.0 if lost else age)
        assert one.take([mark]) == ([Gap(name_of(channel), lost, OTHER.hex())] if lost else [])


def test_what_was_held_up_on_its_way_is_no_younger_for_that() -> None:
    now = 100.0
    one = Receiver(ME, ErrorLog(Counter(), lambda: now), lambda: now, LOG)
    one.want({"t:other": 100.0})
    now = 101.0
    one.take([seal(Kind.MARK, OTHER, 1, 1, "t:other", sent=5_000.9, age=9.0, quiet=9.0)])  # it took 0.1 seconds
    one.want({"t:a": 101.0})
    now = 111.0
    held_up = seal(Kind.JSON, OTHER, 2, 2, "t:a", sent=5_001.0, age=2.0, quiet=2.0)
    assert [type(arrival) for arrival in one.take([held_up])] == [Envelope]


def test_a_bad_hour_is_a_few_lines_and_then_one_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    counts: Counter[str] = Counter()
    errors = ErrorLog(counts, lambda: now)
    for second in range(3600):
        now = float(second)
        errors.note("relay_junk", logging.getLogger("starlette_channels.broker"), "Junk %d", second)
    assert counts == {"relay_junk": 3600}
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:22] == [f"Junk {second}" for second in range(22)]
    assert lines[-1].startswith("Junk 3590") or "(and 9 like it that were not logged)" in lines[-1]
    assert len(lines) <= 20 + 360


@given(st.sets(st.text(st.characters(), max_size=200), max_size=5))
def test_names_are_safe_and_different_on_every_engine(topics: set[str]) -> None:
    channels = {topic_channel(topic) for topic in topics} | {line_channel(topic) for topic in topics}
    assert {name_of(channel) for channel in channels} == topics
    assert len({as_short_bytes(channel) for channel in channels}) == len(channels)
    assert {from_bytes(as_bytes(channel)) for channel in channels} == channels
    tokens = {as_token(channel) for channel in channels}
    assert len(tokens) == len(channels)
    assert all(token.replace("-", "").replace("_", "").replace("=", "").isalnum() for token in tokens)
    assert all(token.isascii() and len(token) <= 100 for token in tokens)
