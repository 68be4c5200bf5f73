"""What one client sends at once is dealt with in turns, so that others wait for a turn of it, and never for all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_channels.runtime.turn_budget import EVENTS_AT_ONCE
from starlette_channels.transports.uvicorn_lane.frames import SLICE_BYTES, Event, FrameReader
from starlette_channels.transports.uvicorn_lane.read_buffer import ReadBuffer
from tests.fuzzing.wire import CLOSE, PING, TEXT, frame
from tests.support.lanes import Client

HEARTBEAT = '[null,"1","phoenix","heartbeat",{}]'


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def answers(client: Client) -> int:
    """How many answers have been written."""
    return b"".join(client.pipe.written).count(b"phx_reply")


@pytest.mark.anyio
@pytest.mark.parametrize("pings", [0, 2_000], ids=["short", "long"])
async def test_a_client_has_a_few_messages_handled_in_each_turn_and_is_not_read_from_meanwhile(pings: int) -> None:
    client = Client()
    number = 3 * EVENTS_AT_ONCE
    client.lane.data_received(frame(HEARTBEAT) * number + frame(b"", PING) * pings)
    turns: list[int] = []
    assert not client.pipe.reading
    while sum(turns) < number:
        client.loop.turn()
        turns.append(answers(client) - sum(turns))
    client.loop.pass_time(0)
    assert client.pipe.reading
    assert max(turns) <= 2 * EVENTS_AT_ONCE, "those of the turn in which they came, and of the next"
    assert len(turns) > 1
    client.lane.data_received(frame(HEARTBEAT))
    client.loop.turn()
    assert answers(client) == number + 1


@pytest.mark.anyio
async def test_as_many_as_fit_into_one_turn_are_handled_at_once() -> None:
    client = Client()
    client.lane.data_received(frame(HEARTBEAT) * EVENTS_AT_ONCE)
    assert client.pipe.reading
    client.loop.turn()
    assert answers(client) == EVENTS_AT_ONCE


@pytest.mark.anyio
async def test_a_client_whose_handlers_are_behind_goes_on_where_it_stopped() -> None:
    client = Client()
    client.lane.pause()
    client.lane.data_received(frame(HEARTBEAT) * (2 * EVENTS_AT_ONCE))
    client.lane.data_received(frame(HEARTBEAT))
    client.loop.turn()
    assert answers(client) == 0
    client.lane.resume()
    client.lane.pause()
    client.lane.resume()
    for _ in range(4):
        client.loop.turn()
    assert answers(client) == 2 * EVENTS_AT_ONCE + 1
    assert client.pipe.reading


@pytest.mark.anyio
async def test_who_was_told_to_go_for_what_it_did_is_listened_to_no_longer_if_it_goes_on() -> None:
    client = Client()
    client.lane.data_received(frame("no message") + frame(HEARTBEAT) * (2 * EVENTS_AT_ONCE))
    client.loop.turn()
    client.loop.turn()
    assert client.connection.counts == {"malformed_message": 1}
    assert answers(client) == 0
    assert client.pipe.reading  # for its answer, or for what was on its way
    client.lane.data_received(frame(HEARTBEAT) * SLICE_BYTES)
    assert not client.pipe.reading


@pytest.mark.anyio
@pytest.mark.parametrize("ignored", [2 * SLICE_BYTES, 2 * SLICE_BYTES + 9], ids=["at once", "one after the other"])
async def test_what_comes_behind_ignored_bytes_is_ignored_and_no_broken_frame(ignored: int) -> None:
    client = Client()
    client.lane.data_received(frame("no message") + (frame(HEARTBEAT) * 2_000)[: ignored - 9])
    client.lane.data_received((frame(HEARTBEAT) * 2_000)[ignored - 9 : ignored])
    client.lane.data_received(b"x" * SLICE_BYTES)
    client.loop.turn()
    assert client.connection.counts == {"malformed_message": 1}
    assert client.counts == {}


@pytest.mark.anyio
async def test_the_answer_of_who_was_told_to_go_is_heard_however_much_it_sent_before() -> None:
    client = Client()
    client.lane.data_received(frame("no message"))
    client.lane.data_received(frame(b"", CLOSE))
    client.loop.turn()
    client.loop.turn()
    assert client.pipe.closed
    other = Client()
    other.lane.data_received(frame(HEARTBEAT) * (2 * EVENTS_AT_ONCE) + frame("no message"))
    for _ in range(4):
        other.loop.turn()
    assert other.connection.counts == {"malformed_message": 1}
    other.lane.data_received(frame(b"", CLOSE))
    other.loop.turn()
    other.loop.turn()
    assert other.pipe.closed


@pytest.mark.anyio
async def test_the_answer_of_a_client_that_has_to_go_is_found_behind_what_it_had_sent_before() -> None:
    client = Client()
    client.lane.data_received(frame(HEARTBEAT) * SLICE_BYTES)
    client.lane.close(1012, "restart")
    client.lane.data_received(frame((1012).to_bytes(2), CLOSE))
    client.loop.pass_time(0)
    assert client.pipe.closed


@given(
    st.lists(st.sampled_from([frame("a"), frame("b" * 200), frame(b"c"), frame("d" * SLICE_BYTES), frame("", TEXT)])),
    st.data(),
)
def test_what_comes_out_is_what_came_in_whatever_the_pieces(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frames)
    cut = data.draw(st.integers(0, len(stream)))
    reader, intake = FrameReader(1 << 20), ReadBuffer(data=stream[:cut])
    events: list[Event] = []

    def take_everything() -> None:
        while not intake.is_empty:
            intake.read(reader)
            events.extend(intake.events)
            intake.events.clear()

    if data.draw(st.booleans()):
        take_everything()
    intake.add(stream[cut:])
    take_everything()
    assert events == FrameReader(1 << 20).feed(stream)


@pytest.mark.anyio
async def test_a_client_that_half_closes_behind_a_broken_frame_is_told_why_before_it_is_let_go() -> None:
    client = Client()
    client.lane.data_received(b"\xff\x80" + bytes(4))  # reserved bits
    assert client.lane.eof_received()
    assert not client.pipe.closed
    client.loop.turn()
    client.loop.turn()
    assert client.pipe.closed
    assert b"".join(client.pipe.written)[2:4] == (1002).to_bytes(2)
