"""Presence of several processes, which know each other only over a real engine: all clients see the same people."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from starlette_channels import Broker, Channels, Presence, PresenceDiff, PresenceTiming
from starlette_channels.presence.codec import PIECE_BYTES
from starlette_channels.presence.diffs import Fetch
from starlette_channels.presence.tracker import SLICE_CHANGES
from starlette_channels.testing import JoinRefused, connect
from tests.support.engines import ENGINES, EngineServer, engine
from tests.support.presence_lobby import Lobby, diff, shape, state

pytestmark = pytest.mark.anyio

QUICK = PresenceTiming(news_seconds=0.05, heartbeat_seconds=0.2, down_seconds=5.0)
PATIENT = PresenceTiming(news_seconds=0.05, heartbeat_seconds=0.2, down_seconds=1000.0)
PATIENCE = 15.0


@pytest.fixture(scope="module", params=list(ENGINES))
def server(request: pytest.FixtureRequest) -> Generator[EngineServer]:
    with engine(request.param) as running:
        yield running


@contextlib.asynccontextmanager
async def process(
    server: EngineServer, timing: PresenceTiming = QUICK, fetch: Fetch | None = None, grace_seconds: float = 0.0
) -> AsyncGenerator[Lobby]:
    """What one process has; its presence is attached from the start, and says goodbye at the end."""
    lobby = Lobby(Presence(timing=timing, fetch=fetch, grace_seconds=grace_seconds), Broker(server.url))
    lobby.channels = Channels([lobby.lobby], broker=lobby.broker, presence=lobby.presence)
    async with lobby.channels.lifespan():
        yield lobby


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process has said."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is no event for what another process has said
            await anyio.sleep(0.01)


async def acquainted(*lobbies: Lobby) -> None:
    """Wait until these have heard of each other."""
    for number, lobby in enumerate(lobbies):
        async with connect(lobby.channels) as client:
            await client.join("lobby:0", {"name": f"process {number}"})
            for other in lobbies:
                await until(lambda other=other: other.presence.count("lobby:0") == 1)
    for lobby in lobbies:
        await until(lambda lobby=lobby: lobby.presence.count("lobby:0") == 0)


async def test_clients_are_told_of_those_who_come_to_and_leave_other_processes_once(server: EngineServer) -> None:
    async with process(server) as one, process(server) as two:
        await acquainted(one, two)
        async with connect(one.channels, timeout=PATIENCE) as here:
            ann = await here.join("lobby:1", {"name": "ann", "meta": {"n": 1}})
            assert await state(ann) == {"ann": [{"n": 1}]}
            assert await diff(ann) == ({"ann": [{"n": 1}]}, {})
            await until(lambda: two.presence.count("lobby:1") == 1)
            async with connect(two.channels, timeout=PATIENCE) as there:
                ben = await there.join("lobby:1", {"name": "ben"})
                assert await state(ben) == {"ann": [{"n": 1}], "ben": [{}]}
                assert await diff(ben) == await diff(ann) == ({"ben": [{}]}, {})
                assert one.presence.count("lobby:1") == two.presence.count("lobby:1") == 2
                assert await one.presence.list("lobby:1") == await two.presence.list("lobby:1")
                await two.do(ben, lambda socket: two.presence.update(socket, "ben", {"n": 2}))
                assert await diff(ben) == await diff(ann) == ({"ben": [{"n": 2}]}, {"ben": [{}]})
            assert await diff(ann) == ({}, {"ben": [{"n": 2}]})
            assert await ann.received_nothing()
            assert shape(await two.presence.list("lobby:1")) == {"ann": [{"n": 1}]}


async def test_one_key_in_two_processes_has_two_metas_and_is_there_until_both_have_left(server: EngineServer) -> None:
    async with process(server) as one, process(server) as two:
        await acquainted(one, two)
        async with connect(one.channels, timeout=PATIENCE) as here:
            watcher = await here.join("lobby:1", {"nobody": True})
            async with connect(two.channels) as there:
                await there.join("lobby:1", {"name": "ann", "meta": {"on": "phone"}})
                assert await diff(watcher) == ({"ann": [{"on": "phone"}]}, {})
                async with connect(one.channels) as again:
                    await again.join("lobby:1", {"name": "ann", "meta": {"on": "desk"}})
                    assert await diff(watcher) == ({"ann": [{"on": "desk"}]}, {})
                    assert (
                        one.presence.count("lobby:1"),
                        len((await one.presence.list("lobby:1"))["ann"]["metas"]),
                    ) == (
                        1,
                        2,
                    )
                assert await diff(watcher) == ({}, {"ann": [{"on": "desk"}]})
                assert one.presence.count("lobby:1") == 1
            assert await diff(watcher) == ({}, {"ann": [{"on": "phone"}]})


async def test_who_starts_later_soon_knows_who_is_there_even_without_a_socket(server: EngineServer) -> None:
    async with process(server) as one, connect(one.channels) as client:
        await client.join("lobby:1", {"name": "ann"})
        async with process(server, timing=PATIENT) as late:
            await until(lambda: late.presence.count("lobby:1") == 1)
            assert shape(await late.presence.list("lobby:1")) == {"ann": [{}]}
            assert late.channels.statistics().connections == 0


async def test_a_process_without_channels_can_look_on(server: EngineServer) -> None:
    broker, presence = Broker(server.url), Presence(timing=QUICK)
    async with process(server) as one, connect(one.channels) as client:
        await client.join("lobby:1", {"name": "ann"})
        presence.attach(broker)
        presence.attach(broker)
        await until(lambda: presence.count("lobby:1") == 1)
        await broker.close()
        assert presence.count("lobby:1") == 0


async def test_the_presences_of_a_process_that_stops_leave_at_once(server: EngineServer) -> None:
    async with process(server, timing=PATIENT) as one, connect(one.channels, timeout=PATIENCE) as here:
        watcher = await here.join("lobby:1", {"nobody": True})
        async with process(server) as two, connect(two.channels) as there:
            await there.join("lobby:1", {"name": "ann"})
            await there.join("lobby:2", {"name": "ann"})
            assert await diff(watcher) == ({"ann": [{}]}, {})
            await two.broker.close()  # without a word of the connection that is still there
            assert await diff(watcher) == ({}, {"ann": [{}]})
        await until(lambda: one.presence.count("lobby:2") == 0)
        assert dict(one.presence.counts) == {}


async def test_with_a_grace_those_of_a_process_that_stops_may_come_to_another_meanwhile(server: EngineServer) -> None:
    async with process(server, timing=PATIENT) as one, connect(one.channels, timeout=PATIENCE) as here:
        watcher = await here.join("lobby:1", {"nobody": True})
        async with process(server, grace_seconds=2.0) as two, connect(two.channels) as there:
            for name in ("ann", "ben"):
                await there.join("lobby:1" if name == "ann" else "lobby:2", {"name": name, "meta": {"n": 1}})
            assert await diff(watcher) == ({"ann": [{"n": 1}]}, {})
        async with connect(one.channels) as again:
            await again.join("lobby:1", {"name": "ann", "meta": {"n": 2}})
            assert await diff(watcher) == ({"ann": [{"n": 2}]}, {})
            assert one.presence.count("lobby:2") == 1
            assert await diff(watcher) == ({}, {"ann": [{"n": 1}]})
            assert (one.presence.count("lobby:1"), one.presence.count("lobby:2")) == (1, 0)


async def test_a_process_that_begins_anew_is_believed_anew(server: EngineServer) -> None:
    async with process(server, timing=PATIENT) as one:
        lobby = Lobby(Presence(timing=QUICK), Broker(server.url))
        for name in ("ann", "ben"):
            async with lobby.channels.lifespan(), connect(lobby.channels) as client:
                await client.join("lobby:1", {"name": name})
                await until(lambda: one.presence.count("lobby:1") == 1)
                assert list(await one.presence.list("lobby:1")) == [name]
            await until(lambda: one.presence.count("lobby:1") == 0)


async def test_who_is_still_there_when_a_broker_closes_is_there_again_when_it_is_used_again(
    server: EngineServer,
) -> None:
    async with process(server, timing=PATIENT) as one, process(server) as two, connect(two.channels) as client:
        await client.join("lobby:1", {"name": "ann"})
        await until(lambda: one.presence.count("lobby:1") == 1)
        await two.broker.close()
        await until(lambda: one.presence.count("lobby:1") == 0)
        assert two.presence.count("lobby:1") == 1
        await client.join("lobby:2", {"nobody": True})
        await until(lambda: one.presence.count("lobby:1") == 1)


async def test_observers_and_fetch_know_of_other_processes_as_well(server: EngineServer) -> None:
    async def fetch(topic: str, presences: dict[str, Any]) -> dict[str, Any]:
        return {key: {"name": key.title()} for key in presences}

    async with process(server) as one, process(server, fetch=fetch) as two:
        await acquainted(one, two)
        seen: list[tuple[str, list[str], list[str]]] = []

        @two.presence.on_diff
        async def changed(topic: str, changes: PresenceDiff) -> None:
            seen.append((topic, list(changes.joins), list(changes.leaves)))

        async with connect(two.channels, timeout=PATIENCE) as there:
            watcher = await there.join("lobby:1", {"nobody": True})
            async with connect(one.channels) as here:
                await here.join("lobby:1", {"name": "ann"})
                assert (await watcher.receive("presence_diff"))["joins"]["ann"]["name"] == "Ann"
                assert (await two.presence.get_by_key("lobby:1", "ann") or {})["name"] == "Ann"
            await watcher.receive("presence_diff")
        await until(lambda: len(seen) == 2)
        assert seen == [("lobby:1", ["ann"], []), ("lobby:1", [], ["ann"])]


async def test_a_state_that_is_larger_than_an_engine_takes_at_once_arrives(server: EngineServer) -> None:
    async with process(server) as one, connect(one.channels) as client:
        room = await client.join("lobby:1", {"nobody": True})
        (socket,) = one.sockets

        def crowd(_: object) -> None:
            for number in range(1_000):
                one.presence.track(socket, number, {"text": "x" * 1_000})

        await one.do(room, crowd)
        async with process(server, timing=PATIENT) as late:
            await until(lambda: late.presence.count("lobby:1") == 1_000)
            assert await late.presence.list("lobby:1") == await one.presence.list("lobby:1")
    assert 3 * PIECE_BYTES < 1_000 * 1_000


async def test_while_a_large_state_of_another_process_is_merged_the_event_loop_goes_on(server: EngineServer) -> None:
    """Whoever looks in each turn of the event loop sees a slice or two of it arrive; trio shuffles the turns."""
    total = 5 * SLICE_CHANGES + 1
    async with process(server) as one, connect(one.channels) as client:
        room = await client.join("lobby:1", {"nobody": True})

        def crowd(_: object) -> None:
            for number in range(total):
                one.presence.track(one.sockets[0], number)

        await one.do(room, crowd)
        async with process(server, timing=PATIENT) as late, connect(late.channels, timeout=PATIENCE) as there:
            watcher = await there.join("lobby:1", {"nobody": True})
            counts = {late.presence.count("lobby:1")}
            with anyio.fail_after(PATIENCE):
                while late.presence.count("lobby:1") < total:
                    await anyio.lowlevel.checkpoint()
                    counts.add(late.presence.count("lobby:1"))
            assert max(after - before for before, after in pairwise(sorted(counts))) <= 2 * SLICE_CHANGES
            keys = set(await watcher.receive("presence_state"))
            while len(keys) < total:
                keys.update((await watcher.receive("presence_diff"))["joins"])
            assert await late.presence.list("lobby:1") == await one.presence.list("lobby:1")


# Mistakes, and junk.


async def test_two_of_one_name_on_one_broker_are_a_mistake_and_two_names_are_not(server: EngineServer) -> None:
    async with process(server) as one:
        with pytest.raises(ValueError, match=r"two Presence objects of the name 'presence'.*name=\.\.\."):
            Presence().attach(one.broker)
        other = Lobby(Presence(), one.broker)
        async with connect(other.channels) as client:
            with pytest.raises(JoinRefused, match="join crashed"):
                await client.join("lobby:1", {"name": "ann"})
        own = Lobby(Presence(name="other"), one.broker)
        async with connect(own.channels) as client:
            assert await state(await client.join("lobby:1", {"name": "ann"})) == {"ann": [{}]}
            assert one.presence.count("lobby:1") == 0


async def test_a_presence_of_two_brokers_is_a_mistake_while_the_first_is_in_use(server: EngineServer) -> None:
    other = Broker(server.url)
    async with process(server) as one:
        with pytest.raises(ValueError, match="must have one broker"):
            one.presence.attach(other)
    one.presence.attach(other)
    await other.close()


def test_without_an_event_loop_nobody_can_be_heard() -> None:
    with pytest.raises(RuntimeError, match="event loop"):
        Presence().attach(Broker())


async def test_junk_is_counted_and_changes_nothing(server: EngineServer) -> None:
    async with process(server) as one, process(server) as two:
        await acquainted(one, two)
        junk = one.broker.exchange("presence:presence", lambda _: None)
        junk.send(b"junk")
        junk.send(b"")
        await until(lambda: two.presence.counts.get("presence_message_malformed") == 2)
        assert two.channels.statistics().counts["presence_message_malformed"] == 2
        await acquainted(one, two)


# Event loops and threads.


async def test_over_memory_there_is_no_task_more(count_tasks: Callable[[], int]) -> None:
    lobby = Lobby()
    lobby.channels = Channels([lobby.lobby], broker=lobby.broker, presence=[lobby.presence])
    before = count_tasks()
    async with lobby.channels.lifespan():
        lobby.presence.attach(lobby.broker)
        assert count_tasks() == before


def test_an_event_loop_that_anyio_has_not_started_will_do(server: EngineServer) -> None:
    async def play() -> None:
        async with process(server) as one, process(server) as two:
            await acquainted(one, two)

    asyncio.run(play())


def test_the_next_event_loop_takes_over_from_one_that_ended(server: EngineServer) -> None:
    presence, broker = Presence(timing=QUICK), Broker(server.url)

    async def play(name: str) -> None:
        async with process(server, timing=PATIENT) as watching:
            lobby = Lobby(presence, broker)
            async with connect(lobby.channels) as client:
                room = await client.join("lobby:1", {"name": name})
                assert list(await room.receive("presence_state")) == [name]
                await until(lambda: watching.presence.count("lobby:1") == 1)
                assert list(await watching.presence.list("lobby:1")) == [name]

    for number, backend in enumerate(("asyncio", "trio", "asyncio")):
        anyio.run(play, f"name {number}", backend=backend)
    anyio.run(broker.close)


async def test_an_event_loop_in_another_thread_goes_on_when_the_first_has_ended(server: EngineServer) -> None:
    presence, broker = Presence(timing=QUICK), Broker(server.url)

    async def first() -> None:
        lobby = Lobby(presence, broker)
        async with connect(lobby.channels) as client:
            await client.join("lobby:1", {"name": "ann"})

    thread = threading.Thread(target=anyio.run, args=(first,))
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    async with process(server, timing=PATIENT) as watching:
        lobby = Lobby(presence, broker)
        async with connect(lobby.channels) as client:
            await client.join("lobby:1", {"name": "ben"})
            await until(lambda: watching.presence.count("lobby:1") == 1)
            assert list(await watching.presence.list("lobby:1")) == ["ben"]
    await broker.close()


async def test_clients_in_two_event_loops_of_one_process_are_told_once(server: EngineServer) -> None:
    presence, broker = Presence(timing=QUICK), Broker(server.url)
    told: list[tuple[Any, Any]] = []
    ready = threading.Event()

    async def elsewhere() -> None:
        lobby = Lobby(presence, broker)
        async with connect(lobby.channels, timeout=PATIENCE) as client:
            room = await client.join("lobby:1", {"nobody": True})
            ready.set()
            told.extend([await diff(room), await diff(room)])
            assert await room.received_nothing("presence_diff")

    async with process(server) as other:
        presence.attach(broker)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, lambda: anyio.run(elsewhere))
            await anyio.to_thread.run_sync(ready.wait)
            async with connect(other.channels) as client:
                await client.join("lobby:1", {"name": "ann"})
                await until(lambda: presence.count("lobby:1") == 1)
            await until(lambda: presence.count("lobby:1") == 0)
    assert told == [({"ann": [{}]}, {}), ({}, {"ann": [{}]})]
    await broker.close()
