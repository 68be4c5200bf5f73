"""The fast lane's log: everybody gets everything, in order, in as few writes as can be."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlette_channels.transports.uvicorn_lane.frames import text_frame
from starlette_channels.transports.uvicorn_lane.write_batch import (
    BYTES_AT_ONCE,
    COALESCING_SECONDS,
    WRITES_AT_ONCE,
    WriteBatch,
)
from tests.support.effort import some


class Turns:
    """Stands for an event loop: what is to be called soon is called in the next turn."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def call_soon(self, function: Callable[[], None]) -> None:
        self.soon.append(function)

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for function in soon:
            function()

    def run(self) -> int:
        """Take turns until nothing is left to do, and return how many there were."""
        turns = 0
        while self.soon:
            self.turn()
            turns += 1
        return turns


class Client:
    """Keeps what is written to it, write by write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.write: Callable[[bytes], None] = self.writes.append

    @property
    def data(self) -> bytes:
        return b"".join(self.writes)


def make(clients: int, queues: Sequence[Sized] = ()) -> tuple[Turns, WriteBatch, list[Client]]:
    loop: Any = Turns()
    return loop, WriteBatch(loop, queues), [Client() for _ in range(clients)]


def writers(clients: list[Client]) -> tuple[Callable[[bytes], None], ...]:
    return tuple(client.write for client in clients)


def test_nothing_is_written_before_the_turn_is_over() -> None:
    loop, outlet, clients = make(2)
    outlet.spread(writers(clients), "hello")
    assert [client.writes for client in clients] == [[], []]
    loop.turn()
    assert [client.writes for client in clients] == [[text_frame(b"hello")]] * 2
    assert loop.soon == []


def test_broadcasts_to_the_same_clients_become_one_write_for_each() -> None:
    loop, outlet, clients = make(3)
    ready = writers(clients)
    for number in range(5):
        outlet.spread(ready, str(number))
    assert loop.run() == 1
    assert [len(client.writes) for client in clients] == [1, 1, 1]
    assert clients[0].data == b"".join(text_frame(str(number).encode()) for number in range(5))


def test_while_messages_wait_broadcasts_of_several_turns_become_one_write_but_not_for_long() -> None:
    waiting = ["a message"]
    loop, outlet, clients = make(2, [waiting])
    outlet.spread(writers(clients), "1")
    loop.turn()
    outlet.send(clients[0].write, b"own")
    outlet.spread(writers(clients), "2")
    loop.turn()
    assert [client.writes for client in clients] == [[], []]
    waiting.clear()
    loop.run()
    one, two = text_frame(b"1"), text_frame(b"2")
    assert [client.writes for client in clients] == [[one + b"own" + two], [one + two]]
    waiting.append("another")
    outlet.spread(writers(clients), "3")
    loop.turn()
    loop.now += COALESCING_SECONDS
    loop.turn()
    assert [len(client.writes) for client in clients] == [2, 2]


def test_replies_alone_do_not_wait_for_others() -> None:
    loop, outlet, clients = make(1, ["a message"])
    outlet.send(clients[0].write, b"reply")
    loop.turn()
    assert clients[0].writes == [b"reply"]


def test_a_binary_frame_keeps_its_kind() -> None:
    loop, outlet, clients = make(1)
    outlet.spread(writers(clients), b"\x02\xff")
    loop.run()
    assert clients[0].data == b"\x82\x02\x02\xff"


def test_a_reply_stays_behind_the_broadcast_before_it_and_in_front_of_the_one_after_it() -> None:
    loop, outlet, (one, other) = make(2)
    ready = writers([one, other])
    outlet.spread(ready, "a")
    outlet.send(one.write, b"-")
    outlet.spread(ready, "b")
    loop.run()
    assert one.data == text_frame(b"a") + b"-" + text_frame(b"b")
    assert other.data == text_frame(b"a") + text_frame(b"b")
    assert len(one.writes) == len(other.writes) == 1


def test_a_long_flush_lets_the_loop_do_other_things_and_others_do_not_wait_for_its_end() -> None:
    loop, outlet, clients = make(4 * WRITES_AT_ONCE)
    bystander = Client()
    outlet.spread(writers(clients), "to all")
    loop.turn()
    served = [client for client in clients if client.writes]
    assert len(served) == WRITES_AT_ONCE
    waiting = next(client for client in clients if not client.writes)
    for client in (bystander, served[0], waiting):
        outlet.send(client.write, b"reply")
        assert client.data.endswith(b"reply"), "at once"
    assert waiting.data == text_frame(b"to all") + b"reply", "and in order"
    loop.run()
    assert all(client.data.startswith(text_frame(b"to all")) for client in clients)
    assert sum(len(client.writes) for client in clients) == len(clients) + 1


def test_a_broadcast_to_few_during_a_long_flush_holds_nobody_up() -> None:
    loop, outlet, clients = make(4 * WRITES_AT_ONCE)
    bystanders = [Client() for _ in range(3)]
    outlet.spread(writers(clients), "to all")
    loop.turn()
    waiting = [client for client in clients if not client.writes][:3]
    outlet.spread(writers([*bystanders, *waiting]), "to some")
    outlet.send(bystanders[0].write, b"reply")
    assert bystanders[0].data == text_frame(b"to some") + b"reply", "at once"
    assert all(client.data == text_frame(b"to all") + text_frame(b"to some") for client in waiting), "and in order"
    loop.run()
    assert sum(len(client.writes) for client in clients) == len(clients)


def test_broadcasts_to_few_go_together_when_they_are_many() -> None:
    loop, outlet, clients = make(4 * WRITES_AT_ONCE)
    rooms = [writers(clients[start : start + 8]) for start in range(0, len(clients), 8)]
    for room in rooms:
        outlet.spread(room, "first")
    loop.turn()
    for text in ("second", "third"):
        for room in rooms:
            outlet.spread(room, text)
    loop.run()
    whole = b"".join(text_frame(text) for text in (b"first", b"second", b"third"))
    assert all(client.data == whole for client in clients)
    assert {len(client.writes) for client in clients} == {2}, "one for each flush"


@pytest.mark.parametrize("same", [True, False])
def test_large_broadcasts_are_written_to_few_clients_at_once(same: bool) -> None:
    loop, outlet, clients = make(10)
    ready, size = writers(clients), BYTES_AT_ONCE // 3
    outlet.spread(ready, "x" * size)
    outlet.spread(ready if same else writers(clients), "end")
    served = 0
    while served < 10:
        loop.turn()
        assert 0 < sum(bool(client.writes) for client in clients) - served <= 3
        served = sum(bool(client.writes) for client in clients)
    assert all(client.data == text_frame(b"x" * size) + text_frame(b"end") for client in clients)
    assert loop.soon == []


def test_what_is_logged_during_a_long_flush_comes_after_it() -> None:
    loop, outlet, clients = make(2 * WRITES_AT_ONCE)
    ready = writers(clients)
    outlet.spread(ready, "1")
    loop.turn()
    outlet.spread(ready, "2")
    outlet.send(clients[0].write, b"3")  # it must not overtake the second broadcast
    loop.run()
    assert clients[0].data == text_frame(b"1") + text_frame(b"2") + b"3"
    assert all(client.data == text_frame(b"1") + text_frame(b"2") for client in clients[1:])


def test_a_client_that_has_gone_meanwhile_is_no_harm_to_the_others() -> None:
    loop, outlet, clients = make(2 * WRITES_AT_ONCE)

    def gone(data: bytes) -> None:
        raise RuntimeError("the handler is closed")

    outlet.spread((clients[0].write, gone, clients[1].write), "few")
    loop.run()
    outlet.spread((gone, *writers(clients)), "many")
    loop.turn()
    outlet.send(gone, b"")
    loop.run()
    assert all(client.data.endswith(text_frame(b"many")) for client in clients)


def test_replies_of_one_turn_are_one_write_for_each_client_and_one_that_has_gone_is_no_harm() -> None:
    loop, outlet, clients = make(3)

    def gone(data: bytes) -> None:
        raise RuntimeError("the handler is closed")

    for write in (clients[0].write, gone, clients[1].write, clients[2].write):
        outlet.send(write, b"1")
    assert loop.run() == 1
    for write in (clients[0].write, gone, clients[1].write, clients[0].write):
        outlet.send(write, b"2")
    assert loop.run() == 1
    assert [client.writes for client in clients] == [[b"1", b"22"], [b"1", b"2"], [b"1"]]


def test_a_broadcast_does_not_make_the_replies_of_the_next_turn_wait() -> None:
    loop, outlet, clients = make(2)
    outlet.spread((clients[0].write,), "hello")
    loop.run()
    outlet.send(clients[1].write, b"1")
    outlet.send(clients[0].write, b"2")
    loop.run()
    assert [client.writes for client in clients] == [[text_frame(b"hello"), b"2"], [b"1"]]


def test_what_is_to_follow_follows_what_was_logged_before_it() -> None:
    loop, outlet, clients = make(2 * WRITES_AT_ONCE)
    seen: list[int] = []
    outlet.spread(writers(clients), "x")
    outlet.afterwards(lambda: seen.append(sum(len(client.writes) for client in clients)))
    loop.turn()
    assert seen == []
    loop.run()
    assert seen == [len(clients)]


def test_what_is_to_follow_a_long_flush_follows_though_its_last_client_was_brought_forward() -> None:
    loop, outlet, clients = make(WRITES_AT_ONCE + 1)
    seen: list[str] = []
    outlet.spread(writers(clients), "x")
    outlet.afterwards(lambda: seen.append("closed"))
    loop.turn()
    (last,) = [client for client in clients if not client.writes]
    outlet.send(last.write, b"reply")
    outlet.send(clients[0].write, b"more")
    loop.run()
    assert seen == ["closed"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("spread"), st.integers(0, 3)),
        st.tuples(st.just("send"), st.integers(0, 599)),
        st.tuples(st.just("turn"), st.just(0)),
        st.tuples(st.just("afterwards"), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=some(of=60), deadline=None)
@given(STEPS)
def test_whatever_happens_everybody_gets_everything_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    loop, outlet, clients = make(600)
    groups = [clients, clients[:300], clients[100:103], clients[590:]]
    ready = [writers(group) for group in groups]
    wanted: dict[int, list[str]] = {number: [] for number in range(600)}
    followed = asked = 0

    def follow() -> None:
        nonlocal followed
        followed += 1

    for step, (kind, number) in enumerate(steps):
        if kind == "spread":
            outlet.spread(ready[number], f"{step};")
            for client in groups[number]:
                wanted[clients.index(client)].append(f"{step};")
        elif kind == "send":
            outlet.send(clients[number].write, text_frame(f"{step};".encode()))
            wanted[number].append(f"{step};")
        elif kind == "afterwards":
            outlet.afterwards(follow)
            asked += 1
        else:
            loop.turn()
    loop.run()
    for number, client in enumerate(clients):
        assert client.data == b"".join(text_frame(text.encode()) for text in wanted[number])
    assert followed == asked


@pytest.fixture
def event_loop_of_its_own() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_a_real_event_loop_writes_once_a_turn(event_loop_of_its_own: asyncio.AbstractEventLoop) -> None:
    client = Client()

    async def talk() -> None:
        outlet = WriteBatch(asyncio.get_running_loop())
        for number in range(3):
            outlet.send(client.write, json.dumps(number).encode())
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    event_loop_of_its_own.run_until_complete(talk())
    assert client.writes == [b"012"]


def test_clients_that_keep_a_frame_of_one_turn_keep_the_same_bytes() -> None:
    loop, outlet, _ = make(0)
    frame = "x" * 1000
    kept = [outlet.shared_wire(frame) for _ in range(3)]
    assert kept[0] == text_frame(frame.encode())
    assert kept[0] is kept[1] is kept[2]
    assert outlet.shared_wire("another") == text_frame(b"another")
    loop.run()
    assert outlet._wire == b"", "and the outlet itself keeps nothing"  # pyright: ignore[reportPrivateUsage]
