"""Presence on topics of many: everybody is told of all, but not of each change by itself."""

import contextlib
import json
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from starlette_channels import Channels, Presence, Socket, channel
from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Entry, Meta
from starlette_channels.presence.crdt.index import Roster
from starlette_channels.presence.diffs import MANY, REST_SECONDS
from starlette_channels.testing import Client, Joined, connect
from tests.support.effort import some

pytestmark = pytest.mark.anyio


class Square:
    """A place where clients are present under names of their own, and come and go as they are told."""

    def __init__(self, *, observed: bool) -> None:
        self.presence = Presence()
        self.diffs: list[tuple[int, int]] = []

        @channel("square")
        async def square(socket: Socket, payload: dict[str, str]) -> None:
            """Let everybody in."""

        @square.on("come")
        async def come(socket: Socket, payload: dict[str, Any]) -> dict[str, Any]:
            self.presence.track(socket, payload["name"])
            return {}

        if observed:

            @self.presence.on_diff
            async def changed(topic: str, diff: Any) -> None:
                self.diffs.append((len(diff.joins), len(diff.leaves)))

        self.channels = Channels([square])


async def diff(room: Joined) -> list[str]:
    """The names in the next diff."""
    return sorted((await room.receive("presence_diff"))["joins"])


@pytest.mark.parametrize("observed", [False, True])
async def test_on_a_topic_of_many_a_change_is_told_at_once_and_those_of_the_moment_after_it_together(
    observed: bool, virtual_clock: MockClock
) -> None:
    square = Square(observed=observed)
    async with contextlib.AsyncExitStack() as stack:
        rooms: list[Joined] = []
        for _ in range(MANY):
            client: Client = await stack.enter_async_context(connect(square.channels))
            rooms.append(await client.join("square"))
        began = anyio.current_time()
        await rooms[0].push("come", {"name": "first"})
        assert await diff(rooms[-1]) == ["first"]
        assert anyio.current_time() == began
        for number in range(1, 4):
            await rooms[number].push("come", {"name": f"later {number}"})
        assert await diff(rooms[-1]) == ["later 1", "later 2", "later 3"]
        assert anyio.current_time() - began == pytest.approx(MANY * REST_SECONDS)  # pyright: ignore
        await rooms[4].push("come", {"name": "last"})
        assert await diff(rooms[-1]) == ["last"]
        assert await rooms[-1].received_nothing("presence_diff")
    if observed:
        assert square.diffs[:3] == [(1, 0), (3, 0), (1, 0)]


async def test_on_a_topic_of_few_nobody_waits(virtual_clock: MockClock) -> None:
    square = Square(observed=False)
    async with connect(square.channels) as ann, connect(square.channels) as ben:
        rooms = [await ann.join("square"), await ben.join("square")]
        for number, room in enumerate(rooms):
            await room.push("come", {"name": str(number)})
            assert await diff(rooms[0]) == [str(number)]
        assert anyio.current_time() == 0


NAMES = st.sampled_from(["ann", "ben", 'a "quoted" name', "größe 🙂", "\u2028"])


@settings(max_examples=some(of=200))
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), NAMES), max_size=30))
def test_the_state_that_is_kept_encoded_is_always_that_of_the_entries(steps: list[tuple[bool, int, str]]) -> None:
    roster, me = Roster(), ReplicaId("", 0)
    there: dict[tuple[int, str], Entry] = {}
    for number, (comes, member, key) in enumerate(steps):
        if comes:
            entry = there[member, key] = Entry("t", member, key, Meta(str(number), json.dumps({"n": number})))
            roster.put(me, entry)
        elif (member, key) in there:
            roster.take(me, there.pop((member, key)))
        state = json.loads(bytes(roster.json("t")))
        wanted = sorted((one.key, json.loads(one.meta.json)["n"]) for one in there.values())
        assert sorted((name, meta["n"]) for name, found in state.items() for meta in found["metas"]) == wanted
