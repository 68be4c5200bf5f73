"""What replicas say to each other arrives as it was said, in pieces if need be, or not at all."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlette_channels.presence.codec import PIECE_BYTES, STEP_ENTRIES, Assembler, Splitter
from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Entry, Meta, Part
from starlette_channels.presence.meta import make_meta
from starlette_channels.presence.tracker import Goodbye, Heartbeat, Request, TrackerMessage, Transfer
from tests.support.effort import some

bounded = settings(max_examples=some(of=100), derandomize=True, database=None, deadline=None)
ANN, BEN = ReplicaId("ann", 1), ReplicaId("ben", 2)


def meta(ref: str, text: str) -> Meta:
    return Meta(ref, msgspec.json.encode({"text": text, "phx_ref": ref}).decode())


dots = st.integers(0, 2**40)
texts = st.text(max_size=5)
metas = st.builds(meta, texts, texts)
entries = st.builds(Entry, texts, dots, texts, metas)
parts = st.builds(Part, dots, st.frozensets(dots, max_size=5), st.dictionaries(dots, entries, max_size=5))
replicas = st.sampled_from([ANN, BEN])
clocks = st.dictionaries(replicas, dots)
messages: st.SearchStrategy[TrackerMessage] = st.one_of(
    st.builds(Heartbeat, replicas, clocks, st.none() | parts),
    st.builds(Request, replicas, clocks),
    st.builds(Transfer, replicas, st.dictionaries(replicas, parts)),
    st.builds(Goodbye, replicas, st.floats(0, 9)),
)


def taken(assembler: Assembler, piece: bytes) -> TrackerMessage | None:
    """The message that a piece completes."""
    return next((message for message in assembler.take(piece) if message is not None), None)


def large(size: int) -> Transfer:
    """A message that takes more than one piece."""
    return Transfer(ANN, {ANN: Part(1, frozenset(), {1: Entry("t", 1, "x", make_meta({"text": "x" * size}))})})


@bounded
@given(st.lists(messages, max_size=5))
def test_what_is_said_arrives(said: list[TrackerMessage]) -> None:
    splitter, assembler = Splitter(ANN), Assembler()
    assert [taken(assembler, piece) for message in said for piece in splitter.split(message)] == said


def test_large_messages_travel_in_pieces_that_engines_take() -> None:
    message = large(3 * PIECE_BYTES)
    pieces = list(Splitter(ANN).split(message))
    assert len(pieces) == 4
    assert max(map(len, pieces)) < PIECE_BYTES + 100
    assembler = Assembler()
    assert [taken(assembler, piece) for piece in pieces] == [None, None, None, message]


def test_a_message_with_many_entries_is_decoded_in_steps() -> None:
    number = 2 * STEP_ENTRIES + 1
    part = Part(number, frozenset(), {dot: Entry("t", dot, "x", meta(str(dot), "")) for dot in range(number)})
    message = Transfer(ANN, {ANN: part, BEN: part})
    assembler = Assembler()
    steps = [step for piece in Splitter(ANN).split(message) for step in assembler.take(piece)]
    assert steps == [*[None] * 4, message]


@bounded
@given(st.data())
def test_a_message_that_lacks_a_piece_does_not_arrive_and_the_next_one_does(data: st.DataObject) -> None:
    ann, ben, assembler = Splitter(ANN), Splitter(BEN), Assembler()
    said = [list(ann.split(large(2 * PIECE_BYTES))), list(ann.split(large(PIECE_BYTES)))]
    lost = data.draw(st.integers(0, 2))
    del said[0][lost]
    hers = [piece for pieces in said for piece in pieces]
    his = list(ben.split(large(PIECE_BYTES)))
    for piece in his:  # what somebody else says in between makes no difference
        hers.insert(data.draw(st.integers(0, len(hers))), piece)
    hers = [piece for piece in hers if piece not in his] + his
    assert [message for piece in hers if (message := taken(assembler, piece))] == [large_like(said[1]), large_like(his)]


def large_like(pieces: list[bytes]) -> TrackerMessage | None:
    assembler = Assembler()
    return [taken(assembler, piece) for piece in pieces][-1]


def test_the_beginning_of_a_message_is_not_kept_when_its_sender_is_gone() -> None:
    first, *rest = Splitter(ANN).split(large(PIECE_BYTES))
    assembler = Assembler()
    taken(assembler, first)
    assembler.forget(ANN)
    assembler.forget(BEN)
    assert [taken(assembler, piece) for piece in rest] == [None]


def piece(data: bytes, version: int = 1) -> bytes:
    return msgspec.msgpack.encode((version, ANN, 1, 0, 0, data))


def heartbeat(json: str) -> bytes:
    part = Part(1, frozenset(), {1: Entry("t", 1, "x", Meta("r", json))})
    return msgspec.msgpack.encode(Heartbeat(ANN, {}, part))


JUNK = {
    "empty": b"",
    "text": b"junk",
    "a list": msgspec.msgpack.encode([1]),
    "deep": b"\x91" * 100_000,
    "of another version": piece(heartbeat('{"phx_ref":"r"}'), version=2),
    "an empty piece": piece(b""),
    "no message": piece(msgspec.msgpack.encode({"type": "Unknown"})),
    "a meta without its ref": piece(heartbeat("{}")),
    "a meta with another ref": piece(heartbeat('{"phx_ref":"s"}')),
    "a meta that is no JSON": piece(heartbeat('{"phx_ref":"r"')),
    "a meta that is no object": piece(heartbeat('["r"]')),
    "a meta that is no UTF-8": piece(heartbeat('{"phx_ref":"r","a":"?"}').replace(b"?", b"\xff")),
    "two metas": piece(heartbeat('{"phx_ref":"r"},{}')),
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError, match="no message between presences"):
        taken(Assembler(), junk)


@bounded
@given(st.binary(max_size=60))
def test_whatever_arrives_is_a_message_or_refused(data: bytes) -> None:
    try:
        taken(Assembler(), data)
    except ValueError:
        return
