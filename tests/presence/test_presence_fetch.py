"""What is looked up about those who are there, and who is told of the changes besides the clients."""

from typing import Any

import anyio
import pytest
from trio.testing import MockClock

from starlette_channels import Presence, PresenceDiff
from starlette_channels.testing import Client, Joined, connect
from tests.support.presence_lobby import Lobby, diff, shape

pytestmark = pytest.mark.anyio


class Library:
    """Knows a name for every key; it can be slow, and it can fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.gates: dict[str, anyio.Event] = {}
        self.broken = False
        self.answer: Any = None

    async def fetch(self, topic: str, presences: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        self.asked.append((topic, shape(presences)))
        for key in presences:
            if key in self.gates:
                await self.gates[key].wait()
        if self.broken:
            raise RuntimeError("the library is closed")
        return self.answer or {key: {"name": key.upper(), "metas": "not ours"} for key in presences}


async def arrive(client: Client, name: str) -> Joined:
    """Join as somebody, and read what comes of it."""
    room = await client.join("lobby:1", {"name": name})
    await room.receive("presence_state")
    await room.receive("presence_diff")
    return room


def names(presences: dict[str, Any]) -> dict[str, Any]:
    return {key: presence.get("name") for key, presence in presences.items()}


async def test_what_is_fetched_stands_beside_the_metas_everywhere() -> None:
    library = Library()
    lobby = Lobby(Presence(fetch=library.fetch))
    async with connect(lobby.channels) as one:
        ann = await one.join("lobby:1", {"name": "ann"})
        state = await ann.receive("presence_state")
        assert state["ann"]["name"] == "ANN"
        assert shape(state) == {"ann": [{}]}
        assert (await ann.receive("presence_diff"))["joins"] == state
        async with connect(lobby.channels) as other:
            await arrive(other, "ben")
            assert names(await lobby.presence.list("lobby:1")) == {"ann": "ANN", "ben": "BEN"}
            assert (await lobby.presence.get_by_key("lobby:1", "ben") or {})["name"] == "BEN"
            assert names((await ann.receive("presence_diff"))["joins"]) == {"ben": "BEN"}
        assert names((await ann.receive("presence_diff"))["leaves"]) == {"ben": "BEN"}


async def test_it_is_asked_once_for_all_keys_and_not_at_all_for_none() -> None:
    library = Library()
    lobby = Lobby(Presence(fetch=library.fetch))
    async with connect(lobby.channels) as client:
        room = await client.join("lobby:1", {"nobody": True})
        assert await room.receive("presence_state") == {}
        assert library.asked == []

        def task(socket: Any) -> None:
            for key in ("ann", "ben"):
                lobby.presence.track(socket, key, {"n": 1})

        await lobby.do(room, task)
        await room.receive("presence_diff")
        assert library.asked == [("lobby:1", {"ann": [{"n": 1}], "ben": [{"n": 1}]})]


@pytest.mark.parametrize("answer", [None, 5, {"ann": 5}, {"ann": {"name": object()}}])
async def test_a_fetch_that_fails_costs_its_fields_and_nothing_else(answer: Any) -> None:
    library = Library()
    library.broken, library.answer = answer is None, answer
    lobby = Lobby(Presence(fetch=library.fetch))
    async with connect(lobby.channels) as client:
        room = await client.join("lobby:1", {"name": "ann"})
        assert names(await room.receive("presence_state")) == {"ann": None}
        assert names((await room.receive("presence_diff"))["joins"]) == {"ann": None}
        assert lobby.presence.counts["fetch_failed"] == 2
        with pytest.raises((RuntimeError, TypeError, AttributeError)):
            await lobby.presence.list("lobby:1")


async def test_a_fetch_that_takes_too_long_is_given_up(virtual_clock: MockClock) -> None:
    library = Library()
    library.gates["ann"] = anyio.Event()
    lobby = Lobby(Presence(fetch=library.fetch, fetch_seconds=2))
    async with connect(lobby.channels) as client:
        start = anyio.current_time()
        room = await client.join("lobby:1", {"name": "ann"})
        assert names((await room.receive("presence_diff"))["joins"]) == {"ann": None}
        assert anyio.current_time() - start == pytest.approx(2)  # pyright: ignore[reportUnknownMemberType]
        with pytest.raises(TimeoutError):
            await lobby.presence.get_by_key("lobby:1", "ann")


async def test_what_is_fetched_for_a_stranger_is_left_out() -> None:
    library = Library()
    library.answer = {"stranger": {"name": "X"}}
    lobby = Lobby(Presence(fetch=library.fetch))
    async with connect(lobby.channels) as client:
        room = await client.join("lobby:1", {"name": "ann"})
        assert names(await room.receive("presence_state")) == {"ann": None}


async def test_diffs_of_a_topic_come_in_order_and_what_happens_during_a_fetch_is_one_diff() -> None:
    library = Library()
    lobby = Lobby(Presence(fetch=library.fetch))
    async with connect(lobby.channels) as client:
        room = await client.join("lobby:1", {"nobody": True})
        library.gates["slow"] = anyio.Event()
        for key in ("slow", "ann", "ben"):
            await lobby.do(room, lambda socket, key=key: lobby.presence.track(socket, key))
            await anyio.wait_all_tasks_blocked()
        await lobby.do(room, lambda socket: lobby.presence.untrack(socket, "slow"))
        assert await room.received_nothing("presence_diff")
        library.gates.pop("slow").set()
        assert await diff(room) == ({"slow": [{}]}, {})
        assert await diff(room) == ({"ann": [{}], "ben": [{}]}, {"slow": [{}]})


async def test_a_slow_fetch_for_one_topic_does_not_hold_up_another() -> None:
    library = Library()
    lobby = Lobby(Presence(fetch=library.fetch))
    async with connect(lobby.channels) as client:
        library.gates["slow"] = anyio.Event()
        await client.join("lobby:1", {"name": "slow"})
        quick = await client.join("lobby:2", {"name": "quick"})
        assert await diff(quick) == ({"quick": [{}]}, {})
        library.gates.pop("slow").set()


async def test_a_state_says_who_is_there_when_it_goes_and_not_when_it_was_asked_for() -> None:
    library = Library()
    lobby = Lobby(Presence(fetch=library.fetch))
    async with connect(lobby.channels) as one, connect(lobby.channels) as other:
        ann = await arrive(one, "ann")
        await arrive(other, "ben")
        await ann.receive("presence_diff")
        library.gates["ann"] = anyio.Event()
        await lobby.do(ann, lobby.presence.push_state)
        await anyio.wait_all_tasks_blocked()
        other.disconnect()
        assert await diff(ann) == ({}, {"ben": [{}]})
        lobby.presence.track(lobby.sockets[0], "cat")
        assert await diff(ann) == ({"cat": [{}]}, {})
        library.gates.pop("ann").set()
        assert names(await ann.receive("presence_state")) == {"ann": "ANN", "cat": "CAT"}


# Observers.


async def test_an_observer_is_told_of_each_diff_in_order() -> None:
    presence = Presence(fetch=Library().fetch)
    told: list[tuple[str, Any, Any]] = []

    @presence.on_diff
    async def changed(topic: str, diff: PresenceDiff) -> None:
        await anyio.lowlevel.checkpoint()
        told.append((topic, names(diff.joins), names(diff.leaves)))

    lobby = Lobby(presence)
    async with connect(lobby.channels) as client:
        room = await arrive(client, "ann")
        await lobby.do(room, lambda socket: presence.update(socket, "ann", {}))
        await room.receive("presence_diff")
        await room.leave()
        await anyio.wait_all_tasks_blocked()
    ann = {"ann": "ANN"}
    assert told == [("lobby:1", ann, {}), ("lobby:1", ann, ann), ("lobby:1", {}, ann)]
    assert changed in presence._publisher.observers  # pyright: ignore[reportPrivateUsage]


async def test_an_observer_that_raises_is_counted_and_the_others_are_told() -> None:
    presence = Presence()
    told: list[str] = []

    @presence.on_diff
    async def fails(topic: str, diff: PresenceDiff) -> None:
        raise RuntimeError("asked for by a test")

    @presence.on_diff
    async def works(topic: str, diff: PresenceDiff) -> None:
        told.append(topic)

    async with connect(Lobby(presence).channels) as client:
        await arrive(client, "ann")
        await anyio.wait_all_tasks_blocked()
        assert told == ["lobby:1"]
        assert presence.counts["observer_failed"] == 1
