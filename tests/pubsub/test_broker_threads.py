"""Fan-out between threads: broadcasts from outside the event loop, and several event loops."""

import gc
import json
import logging
import queue
import sys
import threading
import time
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from starlette_channels import V1, V2
from starlette_channels.pubsub.broker import Broker, Hub, Publication
from tests.pubsub.test_broker import Listener

if TYPE_CHECKING:
    from starlette_channels.wire.messages import Frame

pytestmark = pytest.mark.anyio
SECONDS = 10
PATIENCE = 60


@pytest.fixture
def broker() -> Broker:
    return Broker()


async def test_another_thread_broadcasts_in_order_and_delivery_stays_in_the_loop(broker: Broker) -> None:
    done = anyio.Event()
    listener = Listener(then=lambda publication: done.set() if publication.event == "last" else None)
    broker.hub().subscribe("t", listener)

    def broadcast_many() -> None:
        for number in range(500):
            broker.broadcast("t", "e", {"n": number})
        broker.broadcast("t", "last", {"n": 500})

    await anyio.to_thread.run_sync(broadcast_many)
    with anyio.fail_after(SECONDS):
        await done.wait()
    assert listener.numbers == list(range(501))
    assert listener.threads == {threading.get_ident()}


async def test_many_threads_broadcast_at_once_while_subscribers_come_and_go(broker: Broker) -> None:
    hub = broker.hub()
    heard: list[tuple[int, int]] = []
    done = anyio.Event()

    def hear(publication: Publication) -> None:
        payload = json.loads(publication.frame(v2))[4]
        heard.append((payload["thread"], payload["n"]))
        passer_by = Listener(v2)
        hub.subscribe("t", passer_by)
        hub.unsubscribe("t", passers_by.pop() if passers_by else passer_by)
        passers_by.append(passer_by)
        if len(heard) == 4 * 200:
            done.set()

    v2, passers_by = V2(), list[Listener]()
    steady = Listener(v2, then=hear)
    hub.subscribe("t", steady)

    def broadcast_many(thread: int) -> None:
        for number in range(200):
            broker.broadcast("t", "e", {"thread": thread, "n": number})

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            for thread in range(4):
                tasks.start_soon(anyio.to_thread.run_sync, broadcast_many, thread)
        await done.wait()
    for thread in range(4):
        assert [number for sender, number in heard if sender == thread] == list(range(200))


async def test_what_no_wire_can_express_is_no_error_in_another_thread_but_counted(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    hub, done = broker.hub(), anyio.Event()
    hub.subscribe("t", Listener(V1()))
    await anyio.to_thread.run_sync(broker.broadcast, "t", "e", b"\xff")
    await anyio.to_thread.run_sync(hub.run, done.set)
    with anyio.fail_after(SECONDS):
        await done.wait()
    assert broker.counts == {"inexpressible_broadcast": 1}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_sender_is_left_out_in_its_own_loop_when_another_thread_broadcasts(broker: Broker) -> None:
    done = anyio.Event()
    sender, other = Listener(), Listener(then=lambda _: done.set())
    broker.hub().subscribe("t", sender)
    broker.hub().subscribe("t", other)
    await anyio.to_thread.run_sync(lambda: broker.broadcast("t", "e", {}, sender=sender))
    with anyio.fail_after(SECONDS):
        await done.wait()
    assert sender.frames == []


class Loop:
    """An event loop in a thread of its own, with one subscriber that passes on what it gets."""

    def __init__(self, broker: Broker, backend: str) -> None:
        self.frames: queue.Queue[tuple[int, Frame]] = queue.Queue()
        self.hub: Hub
        self.listener: Listener
        self._over: anyio.Event
        self._started = threading.Event()
        self._broker, self._backend = broker, backend
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._started.wait(SECONDS)

    def _run(self) -> None:
        anyio.run(self._main, backend=self._backend)

    async def _main(self) -> None:
        self.hub, self._over = self._broker.hub(), anyio.Event()
        self.listener = Listener(
            then=lambda publication: self.frames.put((threading.get_ident(), publication.frame(V2())))
        )
        self.hub.subscribe("t", self.listener)
        self._started.set()
        await self._over.wait()

    @property
    def thread(self) -> int:
        assert self._thread.ident is not None
        return self._thread.ident

    def next(self) -> tuple[int, list[Any]]:
        thread, frame = self.frames.get(timeout=SECONDS)
        return thread, json.loads(frame)

    def end(self) -> None:
        """End the loop as a crash would: nobody unsubscribes."""
        if self._thread.is_alive():
            self.hub.run(self._over.set)
            self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@contextmanager
def loops(broker: Broker, *backends: str) -> Generator[list[Loop]]:
    running = [Loop(broker, backend) for backend in backends]
    try:
        yield running
    finally:
        for loop in running:
            loop.end()


@pytest.mark.parametrize("backends", [("asyncio", "asyncio"), ("asyncio", "trio"), ("trio", "trio")], ids="-".join)
def test_the_loops_of_two_threads_get_the_broadcasts_of_a_third_each_in_its_own(
    broker: Broker, backends: tuple[str, str]
) -> None:
    with loops(broker, *backends) as running:
        assert broker.topics == 2
        for number in range(50):
            broker.broadcast("t", "e", {"n": number})
        for loop in running:
            for number in range(50):
                assert loop.next() == (loop.thread, [None, None, "t", "e", {"n": number}])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_broadcast_of_one_loop_reaches_the_other(broker: Broker, backend: str) -> None:
    with loops(broker, backend, "asyncio") as (here, there):
        here.hub.run(broker.broadcast, "t", "e", {"n": 1})
        expected = [None, None, "t", "e", {"n": 1}]
        assert here.next() == (here.thread, expected)
        assert there.next() == (there.thread, expected)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_hub_of_a_loop_that_has_ended_is_dropped_and_the_others_go_on(broker: Broker, backend: str) -> None:
    with loops(broker, backend, "asyncio") as (dying, living):
        dying.end()
        gone = weakref.ref(dying.listener)
        broker.broadcast("t", "e", {"n": 1})
        assert living.next()[1][4] == {"n": 1}
        assert dying.frames.empty()
        assert broker.topics == 1
        broker.broadcast("t", "e", {"n": 2})
        assert living.next()[1][4] == {"n": 2}
        del dying.listener, dying.hub
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_new_loop_in_the_same_thread_begins_with_a_new_hub(broker: Broker, backend: str) -> None:
    old, new = Listener(), Listener()

    async def leave_behind() -> Hub:
        broker.hub().subscribe("t", old)
        return broker.hub()

    async def begin() -> Hub:
        broker.hub().subscribe("t", new)
        broker.broadcast("t", "e", {})
        return broker.hub()

    first = anyio.run(leave_behind, backend=backend)
    second = anyio.run(begin, backend=backend)
    assert first is not second
    assert (len(old.frames), len(new.frames)) == (0, 1)
    assert broker.topics == 1


def test_topics_can_be_counted_while_loops_come(broker: Broker) -> None:
    over, threads = threading.Event(), list[threading.Thread]()

    async def add_hub() -> None:
        broker.hub().subscribe("t", Listener())
        over.wait(PATIENCE)

    def add_hubs() -> None:
        for _ in range(30):
            threads.append(threading.Thread(target=anyio.run, args=(add_hub,)))
            threads[-1].start()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places as often as they can, so it takes its time
    adder = threading.Thread(target=add_hubs)
    adder.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while broker.topics < 30:
            assert time.monotonic() < deadline, broker.topics
    finally:
        sys.setswitchinterval(interval)
        over.set()
        for thread in (adder, *threads):
            thread.join(PATIENCE)
