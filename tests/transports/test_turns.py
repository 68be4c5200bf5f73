"""All clients of an event loop share the time of each turn, so that however many send at once, others are served."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from starlette_channels.connection.rate_limiter import HEAVY
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.runtime.turn_budget import (
    EVENTS_AT_ONCE,
    MOST_AT_ONCE,
    SELDOM_BURST,
    SELDOM_SECONDS,
    TURN_SECONDS,
    Pace,
    Turns,
)
from starlette_channels.transports.asgi_websocket import serve_websocket
from starlette_channels.transports.uvicorn_lane.frames import FRAMES_AT_ONCE, SLICE_BYTES
from starlette_channels.transports.uvicorn_lane.idle_sweep import IdleSweep
from tests.fuzzing.wire import BINARY, CONTINUATION, PING, PONG, TEXT, frame
from tests.support.effort import some
from tests.support.lanes import Client, Loop

HEARTBEAT = '[null,"1","phoenix","heartbeat",{}]'
CLIENTS = 300
EACH = 50


class House:
    """Clients of one event loop, each with a network of its own."""

    def __init__(self, clients: int) -> None:
        self.loop = Loop()
        loop: Any = self.loop
        self.turns = Turns(self.loop.call_soon, lambda: self.loop.now)  # time that messages take is none
        self.pulse = IdleSweep(loop, self.turns)
        self.clients = [self.new_client() for _ in range(clients)]

    def new_client(self) -> Client:
        return Client(self.loop, self.pulse)

    def answers(self) -> list[int]:
        """How many answers each of the clients has got."""
        return [answers(client) for client in self.clients]


def answers(client: Client) -> int:
    return b"".join(client.pipe.written).count(b"phx_reply")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize("segments", ["one segment", "a segment for each message"])
async def test_clients_that_send_at_once_are_served_in_turns_in_order_and_alike(segments: str) -> None:
    house = House(CLIENTS)
    messages = [frame(HEARTBEAT.replace("1", str(ref))) for ref in range(EACH)]
    for segment in messages if segments != "one segment" else [b"".join(messages)]:
        for client in house.clients:
            client.lane.data_received(segment)
    served, turns = 0, 0
    while served < CLIENTS * EACH:
        house.loop.turn()
        now, turns = house.answers(), turns + 1
        assert sum(now) - served <= 2 * MOST_AT_ONCE, "the direct ones of a turn, and those that waited"
        assert max(now) - min(now) <= 3 * EVENTS_AT_ONCE
        served = sum(now)
        assert turns < 2 * CLIENTS * EACH
    for client in house.clients:
        refs = [part.split(b'"')[0] for part in b"".join(client.pipe.written).split(b'[null,"')[1:]]
        assert refs == [str(ref).encode() for ref in range(EACH)]
        house.loop.turn()
        assert client.pipe.reading


@pytest.mark.anyio
async def test_a_client_that_sends_seldom_goes_before_those_that_have_much_to_send() -> None:
    house = House(CLIENTS)
    honest = house.new_client()
    for client in house.clients:
        client.lane.data_received(frame(HEARTBEAT) * EACH)
    for number in range(1, 10):
        house.loop.now += 0.01
        honest.lane.data_received(frame(HEARTBEAT))
        for _ in range(3):
            house.loop.turn()
        assert answers(honest) == number
    assert sum(house.answers()) < CLIENTS * EACH


@pytest.mark.anyio
async def test_single_messages_of_thousands_share_the_turn_as_well() -> None:
    house = House(some(of=2_000))
    for client in house.clients:
        client.lane.data_received(frame(HEARTBEAT))
    served, turns = 0, 0
    while served < len(house.clients):
        house.loop.turn()
        turns += 1
        assert sum(house.answers()) - served <= 2 * MOST_AT_ONCE
        assert turns < 2 * len(house.clients)
        served = sum(house.answers())
    assert all(client.pipe.reading for client in house.clients), "a message that waits does not stop anybody"


@pytest.mark.anyio
async def test_large_messages_of_many_clients_are_dealt_with_two_in_a_turn_at_most() -> None:
    house = House(20)
    for client in house.clients:
        client.lane.data_received(frame(HEARTBEAT.replace("{}", '{"x":"' + "x" * 50 * HEAVY + '"}')))
    before, most = 0, 0
    for _ in range(20 * 100):
        house.loop.turn()
        now = sum(house.answers())
        before, most = now, max(most, now - before)
    assert before == 20
    assert most <= 2, "one that waited, and one that has just come"


class Costly:
    """A client each of whose messages takes some time."""

    def __init__(self, loop: Loop, turns: Turns, messages: int, seconds: float) -> None:
        self.loop, self.turns, self.messages, self.seconds = loop, turns, messages, seconds

    def visit(self, most: int) -> int:
        done = min(most, self.messages)
        self.messages -= done
        self.loop.now += done * self.seconds
        if self.messages:
            self.turns.enter(self, fresh=False)
        return done


@pytest.mark.parametrize("seconds", [1e-6, 1e-5, 2e-4, 1e-3, 0.1])
def test_a_turn_is_as_long_whatever_messages_cost_unless_one_is_longer(seconds: float) -> None:
    loop = Loop()
    turns = Turns(loop.call_soon, lambda: loop.now)
    clients = [Costly(loop, turns, 40, seconds) for _ in range(50)]
    for client in clients:
        turns.enter(client, fresh=False)
    number, longest = 0, list[float]()
    while any(client.messages for client in clients):
        before = loop.now
        loop.turn()
        number += 1
        longest.append(loop.now - before)
    assert max(longest) <= (EVENTS_AT_ONCE + 1) * seconds + TURN_SECONDS, "nothing is known about the first"
    assert max(longest[number // 2 :]) <= TURN_SECONDS / 2 + 2 * seconds


def test_what_messages_start_counts_as_well_although_it_comes_later() -> None:
    loop = Loop()
    turns = Turns(loop.call_soon, lambda: loop.now)

    class Starting(Costly):
        def visit(self, most: int) -> int:
            before = self.loop.now
            done = super().visit(most)
            cost, self.loop.now = self.loop.now - before, before
            self.loop.call_soon(self.pass_time, cost)
            return done

        def pass_time(self, seconds: float) -> None:
            self.loop.now += seconds

    clients = [Starting(loop, turns, 40, 2e-4) for _ in range(50)]
    for client in clients:
        turns.enter(client, fresh=False)
    lengths: list[float] = []
    while any(client.messages for client in clients):
        before = loop.now
        loop.turn()
        lengths.append(loop.now - before)
    assert max(lengths[len(lengths) // 2 :]) <= TURN_SECONDS


@pytest.mark.parametrize("elsewhere", [0.0, 0.005, 0.02, 0.06])
def test_who_waits_waits_no_longer_because_turns_are_long_for_other_reasons(elsewhere: float) -> None:
    loop = Loop()
    turns = Turns(loop.call_soon, lambda: loop.now)
    clients = [Costly(loop, turns, 1, 2e-4) for _ in range(500)]
    for client in clients:
        turns.enter(client, fresh=True)
    work, number = 500 * 2e-4, 0
    while any(client.messages for client in clients):
        loop.turn()
        loop.now += elsewhere  # what servers parse, and what applications compute
        number += 1
    assert loop.now <= 6 * work + 4 * elsewhere
    assert number <= 2 * work / TURN_SECONDS + 20


def test_a_client_that_fails_stops_nobody_else() -> None:
    loop = Loop()
    turns = Turns(loop.call_soon, lambda: loop.now)

    class Failing(Costly):
        def visit(self, most: int) -> int:
            raise IndexError

    turns.enter(Failing(loop, turns, 1, 0), fresh=True)
    other = Costly(loop, turns, 1, 0)
    turns.enter(other, fresh=False)
    with pytest.raises(IndexError):
        loop.turn()
    for _ in range(3):
        loop.turn()
    assert other.messages == 0


def test_when_nobody_waits_nothing_is_scheduled() -> None:
    loop = Loop()
    turns = Turns(loop.call_soon, lambda: loop.now)
    for _ in range(1_000):
        turns.left -= 1
        assert turns.left >= 0 or turns.goes_on()
        loop.turn()
    for _ in range(3):
        loop.turn()
    assert not loop.timers


def test_who_sends_seldom_is_fresh_and_who_sends_more_is_so_now_and_then() -> None:
    pace = Pace()
    assert [pace.is_fresh(100.0) for _ in range(SELDOM_BURST + 3)] == [True] * SELDOM_BURST + [False] * 3
    assert all(pace.is_fresh(101 + number * 1.01 * SELDOM_SECONDS) for number in range(100))


FLOODS = {
    "pings": frame(b"", PING),
    "long pings": frame(b"x" * 125, PING),
    "pongs": frame(b"", PONG),
    "empty fragments": frame(b"", CONTINUATION, final=False),
    "small fragments": frame(b"x", CONTINUATION, final=False),
    "pings between fragments": frame(b"", PING) + frame(b"", CONTINUATION, final=False),
}


@pytest.mark.anyio
@pytest.mark.parametrize("opening", [TEXT, BINARY])
@pytest.mark.parametrize("name", FLOODS)
async def test_frames_that_are_no_messages_count_as_messages_and_are_dealt_with_slice_by_slice(
    name: str, opening: int
) -> None:
    client = Client()
    flood = (frame(b"x", opening, final=False) if "fragments" in name else b"") + FLOODS[name] * 100_000
    client.lane.data_received(flood)
    assert not client.pipe.reading
    turns = 0
    while not client.pipe.reading:
        client.loop.turn()
        turns += 1
    for _ in range(3):
        client.loop.turn()
    counted = client.connection.counts
    assert counted["flooding"] == 1
    assert 0 < counted["too_many_messages"] < 2_000
    assert turns > 3_000 / FRAMES_AT_ONCE, "never more than a slice in a turn"
    assert b"".join(client.pipe.written).endswith(b"\x03\xf0flooding")


@pytest.mark.anyio
@pytest.mark.parametrize("piece", [1, 3, 7, SLICE_BYTES])
async def test_a_message_in_some_fragments_with_pings_between_is_a_message(piece: int) -> None:
    client = Client()
    parts = [frame(HEARTBEAT[:5], TEXT, final=False), frame(b"p", PING), frame(b"", CONTINUATION, final=False)]
    stream = b"".join([*parts, frame(HEARTBEAT[5:], CONTINUATION)]) * 20
    for at in range(0, len(stream), piece):
        client.lane.data_received(stream[at : at + piece])
        client.loop.turn()
    for _ in range(100):
        client.loop.turn()
    assert answers(client) == 20
    assert b"".join(client.pipe.written).count(b"\x8a\x01p") == 20
    assert not client.connection.counts


class Endpoint:
    """What the portable transport needs of a connection: each message takes a millisecond."""

    def __init__(self, note: Callable[[], object]) -> None:
        self.note = note

    def receive(self, message: object) -> None:
        self.note()

    def hold(self) -> None: ...

    def flow(self) -> None: ...

    def abort(self) -> None: ...

    async def end(self) -> None: ...


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_the_portable_transport_serves_in_turns_what_servers_have_in_store(anyio_backend: str) -> None:
    handled: Counter[int] = Counter()
    turn, in_turn, most_in_turn = 0, 0, 0
    clients, each = 40, 20

    def work(number: int) -> Callable[[], None]:
        def note() -> None:
            nonlocal in_turn
            handled[number] += 1
            in_turn += 1
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass

        return note

    async def serve(number: int) -> None:
        store = [{"type": "websocket.receive", "text": "x"}] * each + [{"type": "websocket.disconnect"}]

        async def receive() -> Any:
            return store.pop(0)

        async def send(message: Any) -> None: ...

        endpoint: Any = Endpoint(work(number))
        await serve_websocket(receive, send, lambda transport: endpoint, Bounds(), ErrorLog(Counter()))

    async def count_turns() -> None:
        nonlocal turn, in_turn, most_in_turn
        while sum(handled.values()) < clients * each:
            most_in_turn, in_turn, turn = max(most_in_turn, in_turn), 0, turn + 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count_turns)
        for number in range(clients):
            tasks.start_soon(serve, number)
    assert handled == dict.fromkeys(range(clients), each)
    assert most_in_turn <= MOST_AT_ONCE / 2, f"{most_in_turn} of {clients} clients were served in one turn"
