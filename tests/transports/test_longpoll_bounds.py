"""What the bodies of long-poll clients may cost: time, memory, and the patience of the session."""

import tracemalloc
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from starlette_channels import V2, Channels, Handshake, Limits, LongPoll, Rate, Socket, channel
from starlette_channels.transports.longpoll.batches import split
from starlette_channels.transports.longpoll.bodies import SMALL_BYTES, Bodies, Body, BodyRefused
from starlette_channels.transports.longpoll.transport import MOST_POSTS, SLICE_MESSAGES
from starlette_channels.wire.messages import Message as ClientMessage
from tests.conftest import until
from tests.support.polling import BEAT, BEATEN, Exchange, Poller

SLOW = 0.001
UNIT = 16_384
MEGABYTE = 1 << 20
NDJSON = "application/x-ndjson"


class CountingV2(V2):
    """Version 2, counting what it decodes."""

    decoded = 0

    def decode(self, frame: str | bytes) -> ClientMessage:
        self.decoded += 1
        return super().decode(frame)


class House:
    """Channels whose clients poll."""

    def __init__(self, longpoll: LongPoll | bool = True, **limits: Any) -> None:
        self.serializer = CountingV2()
        self.echoed: list[Any] = []

        async def enter(conn: Handshake) -> dict[str, Any]:
            return dict(conn.params)

        @channel("room:*")
        async def room(socket: Socket[dict[str, Any]], payload: Any) -> None:
            pass

        @room.on("note")
        async def note(socket: Socket[dict[str, Any]], payload: Any) -> None:
            self.echoed.append(payload)

        self.channels: Channels[Any] = Channels(
            [room],
            connect=enter,
            socket_id=lambda assigns: assigns.get("user"),
            serializers=[self.serializer],
            longpoll=longpoll,
            limits=Limits(**limits),
        )

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.channels.statistics().counts)

    async def open(self, **params: str) -> Poller:
        return await Poller(self.channels, **params).open()

    @property
    def bodies(self) -> Bodies:
        longpoll = self.channels._longpoll  # pyright: ignore[reportPrivateUsage]
        assert longpoll is not None
        return longpoll._bodies  # pyright: ignore[reportPrivateUsage]


def chunks_of(body: bytes, size: int = 65_536) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def note(size: int) -> bytes:
    return b'["1",null,"room:a","note","' + b"x" * size + b'"]'


def reason(answer: Exchange) -> str:
    return msgspec.json.decode(answer.body)["reason"]


async def stall(client: Poller, *chunks: bytes, **headers: str) -> Exchange:
    """A request whose body goes on after these chunks, but does not come."""
    request = client.request("POST", *chunks, **headers)
    request.unfinished = True
    return request


# Rates.


@pytest.mark.anyio
@pytest.mark.parametrize("content_type", [NDJSON, "application/json"])
async def test_the_bytes_of_a_body_draw_from_the_rate_before_they_are_decoded(content_type: str) -> None:
    house = House(message_rate=Rate(SLOW, burst=4))
    client = await house.open()
    answer = await client.request("POST", *chunks_of(note(5 * UNIT), 1000), content_type=content_type)()
    assert answer.status == 200  # nothing counts as more than a full bucket
    answer = await client.request("POST", *chunks_of(note(2 * UNIT), 1000), content_type=content_type)()
    assert (answer.status, reason(answer)) == (429, "rate limited")
    assert int(answer.headers["retry-after"]) > 1
    assert house.serializer.decoded == 1
    assert house.counts["too_many_messages"] >= 1


@pytest.mark.anyio
async def test_a_body_beyond_the_rate_is_not_read_to_its_end() -> None:
    house = House(message_rate=Rate(SLOW, burst=4))
    client = await house.open()
    await client.request("POST", note(5 * UNIT))()
    request = client.request("POST", *chunks_of(note(MEGABYTE - 100)))
    assert (await request()).status == 429
    assert len(request._chunks) >= 14  # pyright: ignore[reportPrivateUsage]


@pytest.mark.anyio
async def test_the_rate_is_shared_by_all_sessions_of_a_user() -> None:
    house = House(identity_message_rate=Rate(SLOW, burst=4))
    one, two, bob = await house.open(user="ann"), await house.open(user="ann"), await house.open(user="bob")
    assert (await one.request("POST", note(5 * UNIT))()).status == 200
    assert (await two.request("POST", note(2 * UNIT))()).status == 429
    assert (await bob.request("POST", note(2 * UNIT))()).status == 200
    assert house.counts["too_many_identity_messages"] >= 1


@pytest.mark.anyio
async def test_a_small_body_counts_as_its_messages_and_no_more() -> None:
    house = House(message_rate=Rate(SLOW, burst=10))
    client = await house.open()
    for _ in range(5):
        assert await client.post(BEAT, BEAT) == 200
    assert (await client.poll()).frames == [BEATEN] * 10
    assert not house.counts


MALFORMED = [b"", b"{", b"\n", b"[]", b"\xff", b"[" * 1000, b'["1",[' + b"[]," * 1000 + b']],"room:a","x",{}]']


@pytest.mark.anyio
@pytest.mark.parametrize("content_type", [NDJSON, "application/json"])
@pytest.mark.parametrize("body", MALFORMED)
async def test_a_client_that_sends_what_is_malformed_again_and_again_loses_its_session(
    body: bytes, content_type: str
) -> None:
    house = House(refusal_rate=Rate(SLOW, burst=5))
    client = await house.open()
    statuses: list[int] = []
    for _ in range(7):
        answer = await client.request("POST", body, content_type=content_type)()
        statuses.append(answer.status if answer.status != 200 else answer.json["status"])
    assert statuses == [400] * 6 + [410]
    assert house.counts == {"malformed_message": 6, "flooding": 1}
    await until(lambda: house.channels.statistics().connections == 0)


@pytest.mark.anyio
async def test_large_malformed_bodies_end_it_sooner() -> None:
    house = House(refusal_rate=Rate(SLOW, burst=100))
    client = await house.open()
    for _ in range(2):
        assert (await client.request("POST", b"[" * (50 * UNIT))()).status == 400
    assert await client.post(BEAT) == 410
    assert house.counts["flooding"] == 1


@pytest.mark.anyio
async def test_so_do_bodies_that_are_beyond_the_rates_or_too_big() -> None:
    house = House(LongPoll(body_bytes=1000), refusal_rate=Rate(SLOW, burst=5))
    client = await house.open()
    for _ in range(6):
        assert (await client.request("POST", b"x", content_length="1001")()).status == 400
    assert await client.post(BEAT) == 410
    assert house.counts == {"body_too_big": 6, "flooding": 1}


# Work.


@pytest.mark.anyio
async def test_nothing_is_decoded_twice() -> None:
    house = House()
    client = await house.open()
    assert await client.post(["1", "1", "room:a", "phx_join", {}], *[BEAT] * 50) == 200
    assert house.serializer.decoded == 51


@pytest.mark.anyio
@pytest.mark.parametrize("line", [b"\n", b"\r\n", b"[]\n", b"x", b"[", b"AAAA\n"])
async def test_eight_megabytes_of_nothing_cost_their_bytes_and_are_refused(line: bytes) -> None:
    house = House()
    client = await house.open()
    body = (line * 8_000_000)[:7_999_999]
    await client.request("POST", b"[]", content_type=NDJSON)()  # whatever is made once
    tracemalloc.start()
    try:
        answer = await client.request("POST", *chunks_of(body), content_type=NDJSON)()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status == 400
    assert peak < 2.2 * len(body) + 9_000_000  # the chunks of this test, what is kept, and one line


@pytest.mark.anyio
async def test_what_is_beyond_the_lines_that_are_read_is_counted_and_not_kept() -> None:
    house = House(LongPoll(batch_lines=10))
    client = await house.open()
    beat = msgspec.json.encode(BEAT) + b"\n"
    body = beat * 10 + b"\n" * 4_000_000
    tracemalloc.start()
    try:
        assert (await client.request("POST", *chunks_of(body), content_type=NDJSON)()).json["status"] == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(body) + 1_000_000
    assert house.counts == {"batch_too_long": 4_000_001}


@pytest.mark.anyio
@pytest.mark.parametrize("content_type", [NDJSON, "application/json"])
async def test_a_message_that_is_too_big_is_refused_before_it_is_decoded(content_type: str) -> None:
    house = House(message_bytes=1000)
    client = await house.open()
    request = client.request("POST", *chunks_of(note(MEGABYTE)), content_type=content_type)
    answer = await request()
    assert (answer.status, reason(answer)) == (400, "a message of over 1000 bytes")
    assert house.serializer.decoded == 0


@pytest.mark.anyio
async def test_others_have_their_turn_while_a_large_batch_is_handed_over() -> None:
    house = House()
    client = await house.open()
    await client.join("room:a")
    seen: list[int] = []

    async def others() -> None:
        while len(house.echoed) < 100:
            seen.append(len(house.echoed))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        await anyio.lowlevel.checkpoint()
        assert await client.post(*[["1", None, "room:a", "note", number] for number in range(100)]) == 200
    await until(lambda: len(house.echoed) == 100)
    assert house.echoed == list(range(100))
    steps = [after - before for before, after in zip(seen, [*seen[1:], 100], strict=True)]
    assert max(steps) <= 3 * SLICE_MESSAGES  # on trio, tasks of a turn run in any order: two slices may come late


@pytest.mark.anyio
async def test_many_large_batches_together_have_one_slice_in_each_turn() -> None:
    house = House()
    clients = [await house.open() for _ in range(20)]
    for client in clients:
        await client.join("room:a")
    seen: list[int] = []

    async def others() -> None:
        while len(house.echoed) < 1000:
            seen.append(len(house.echoed))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        for client in clients:
            tasks.start_soon(client.post, *[["1", None, "room:a", "note", number] for number in range(50)])
    steps = [after - before for before, after in zip(seen, [*seen[1:], 1000], strict=True)]
    assert max(steps) <= 3 * SLICE_MESSAGES  # on trio, tasks of a turn run in any order: two slices may come late


# Memory.


@pytest.mark.anyio
async def test_one_body_of_a_session_is_read_at_a_time(virtual_clock: MockClock) -> None:
    house = House(LongPoll(window_seconds=10.0), idle_seconds=30.0)
    client = await house.open()
    stalled = [await stall(client, *chunks_of(b"[" * 800_000)) for _ in range(MOST_POSTS + 5)]
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for request in stalled:
            tasks.start_soon(request)
            await anyio.wait_all_tasks_blocked()
        refused = [request for request in stalled if request.status == 429]
        assert len(refused) == 5  # at once
        unread = [request for request in stalled if len(request._chunks) == 13]  # pyright: ignore[reportPrivateUsage]
        assert len(unread) == MOST_POSTS + 4
        assert house.bodies.bytes < 800_000
        tasks.start_soon(client.poll)
        await anyio.sleep(10.0)
        tasks.start_soon(client.poll)
        await anyio.sleep(10.0)
        tasks.start_soon(client.poll)
    assert anyio.current_time() - start == pytest.approx(30.0)
    assert stalled[0].status == 408
    assert house.bodies.bytes == 0
    assert house.counts["too_many_posts"] == 5
    assert await client.post(BEAT) == 200


@pytest.mark.anyio
async def test_the_bodies_of_all_sessions_together_are_bounded_and_the_largest_has_to_go() -> None:
    house = House(LongPoll(held_bytes=3_000_000))
    honest = await house.open()
    await honest.join("room:a")
    slow = await stall(honest, note(100_000)[:50_000])
    attacks = [await stall(await house.open(), *chunks_of(b"[" * 900_000)) for _ in range(20)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slow)
        for request in attacks:
            tasks.start_soon(request)
        await until(lambda: sum(request.status == 503 for request in attacks) >= 17)
        assert house.bodies.bytes <= 3_000_000
        assert slow.status == 0  # it is none of the largest
        other = await house.open()
        assert await other.post(BEAT) == 200  # a small one needs no room
        assert (await (await house.open()).request("POST", *chunks_of(note(200_000)))()).status == 200
        tasks.cancel_scope.cancel()
    assert house.bodies.bytes == 0
    assert house.counts["bodies_too_big"] >= 17


@pytest.mark.anyio
async def test_a_session_that_ends_does_not_wait_for_bodies_that_do_not_come() -> None:
    house = House()
    client = await house.open(user="ann")
    stalled = [await stall(client, b"[" * 1000) for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for request in stalled:
            tasks.start_soon(request)
        await anyio.wait_all_tasks_blocked()
        house.channels.disconnect("ann")
    assert [request.json for request in stalled] == [{"status": 410}] * 3
    await until(lambda: house.channels.statistics().connections == 0)


@pytest.mark.anyio
async def test_a_poll_that_waits_is_told_410_when_its_client_has_sent_too_much() -> None:
    house = House(refusal_rate=Rate(SLOW, burst=1))
    client = await house.open()
    polling = client.polling()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(polling)
        await anyio.wait_all_tasks_blocked()
        for _ in range(2):
            await client.request("POST", b"nonsense")()
    assert polling.json["status"] == 410


# The parts that are pure.


@given(
    st.lists(st.sampled_from([b"\n", b"\r\n", b"[]", b"x", b"AA==", b""]), max_size=30).map(b"".join),
    st.integers(1, 8),
    st.data(),
)
def test_a_body_is_the_same_however_it_comes(body: bytes, most: int, data: st.DataObject) -> None:
    fed = Body(Bodies(1_000_000), most)
    rest = body
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        fed.feed(rest[:size])
        rest = rest[size:]
    lines, beyond = split(body, most)
    assert fed.lines_beyond == beyond
    assert fed.size == len(body)
    kept = fed._data  # pyright: ignore[reportPrivateUsage]
    assert split(kept, most)[0] == lines


@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=30), st.integers(0, 500_000))
def test_the_bound_holds_whatever_comes_and_what_goes_is_the_largest(sizes: list[int], most: int) -> None:
    bodies = Bodies(most)
    held: list[Body] = []
    for size in sizes:
        body = Body(bodies, None)
        held.append(body)
        try:
            body.feed(bytes(size))
        except BodyRefused:
            assert all(body.is_evicted or one.is_evicted or one.size <= body.size for one in held)
        assert bodies.bytes <= most
        assert bodies.bytes == sum(max(0, one.size - SMALL_BYTES) for one in held if not one.is_evicted)
    for body in held:
        bodies.release(body)
    assert bodies.bytes == 0
