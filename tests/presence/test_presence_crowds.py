"""Presence on topics of many: everybody is told of all, but not of each change by itself."""

import contextlib
import json
from collections.abc import AsyncGenerator
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
from starlette_channels.presence.states import WAIT_SECONDS
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


# States.


class Following:
    """What a client makes of states and diffs, by the rules of phoenix.js: the refs of each key."""

    def __init__(self) -> None:
        self.refs: dict[str, set[str]] = {}
        self.has_state = False
        self.pending: list[Any] = []

    def take(self, event: str, payload: Any) -> None:
        if event == "presence_state":
            self.refs = {key: {meta["phx_ref"] for meta in one["metas"]} for key, one in payload.items()}
            self.has_state = True
            for diff in self.pending:
                self.apply(diff)
            self.pending = []
        elif event == "presence_diff" and self.has_state:
            self.apply(payload)
        elif event == "presence_diff":
            self.pending.append(payload)

    def apply(self, diff: Any) -> None:
        for key, one in diff["joins"].items():
            self.refs.setdefault(key, set()).update(meta["phx_ref"] for meta in one["metas"])
        for key, one in diff["leaves"].items():
            left = self.refs.get(key, set()) - {meta["phx_ref"] for meta in one["metas"]}
            self.refs.pop(key, None)
            if left:
                self.refs[key] = left


class Crowd:
    """A hall with many keys, whose clients are present under a name of their own and get the state."""

    def __init__(self, present: int = MANY) -> None:
        self.presence = Presence()
        self.sockets: list[Socket[Any]] = []

        @channel("hall")
        async def hall(socket: Socket, payload: dict[str, Any]) -> None:
            self.sockets.append(socket)
            for number in range(payload.get("others", 0)):
                self.presence.track(socket, f"other {number}")
            self.presence.track(socket, payload["name"])
            self.presence.push_state(socket)

        @hall.on("again")
        async def again(socket: Socket, payload: dict[str, Any]) -> dict[str, Any]:
            self.presence.push_state(socket)
            self.presence.update(socket, payload["name"], {"again": True})
            return {}

        self.channels = Channels([hall])
        self.present = present

    @contextlib.asynccontextmanager
    async def gathered(self) -> AsyncGenerator[Joined]:
        async with connect(self.channels) as client:
            yield await client.join("hall", {"name": "first", "others": self.present})


async def test_on_a_topic_of_many_a_client_finds_itself_and_all_others_in_its_state(virtual_clock: MockClock) -> None:
    crowd = Crowd()
    async with crowd.gathered() as first, connect(crowd.channels) as client:
        began = anyio.current_time()
        assert len(await first.receive("presence_state")) == MANY + 1
        room = await client.join("hall", {"name": "second"})
        assert len(await room.receive("presence_state")) == MANY + 2
        assert anyio.current_time() - began <= 2 * WAIT_SECONDS * (MANY + 2) + REST_SECONDS


async def test_clients_that_join_together_get_one_state_which_has_all_of_them(virtual_clock: MockClock) -> None:
    crowd = Crowd()
    async with crowd.gathered() as first, contextlib.AsyncExitStack() as stack:
        await first.receive("presence_state")
        clients: list[Client] = [await stack.enter_async_context(connect(crowd.channels)) for _ in range(5)]
        for number, client in enumerate(clients):
            client.send("1", "1", "hall", "phx_join", {"name": f"late {number}"})
        states: list[Any] = []
        for client in clients:
            while (message := await client.receive()).event != "presence_state":
                pass
            states.append(message.payload)
        assert states == [states[0]] * 5
        assert len(states[0]) == MANY + 6


async def test_who_leaves_while_the_state_is_on_its_way_does_not_get_it(virtual_clock: MockClock) -> None:
    crowd = Crowd()
    async with crowd.gathered() as first:
        await first.receive("presence_state")
        for how in ("leaves", "disconnects"):
            async with connect(crowd.channels) as client:
                client.send("1", "1", "hall", "phx_join", {"name": how})
                if how == "leaves":
                    client.send("1", "2", "hall", "phx_leave", {})
                    await client.reply("2")
        room = await first.received_nothing("presence_state")
        assert room
        async with connect(crowd.channels) as client:
            state = await (await client.join("hall", {"name": "last"})).receive("presence_state")
        assert set(state) == {"first", "last", *(f"other {number}" for number in range(MANY))}
    assert crowd.channels.statistics().counts.keys() <= {"pushed_after_end"}


@settings(max_examples=some(of=20), deadline=None)
@given(st.lists(st.sampled_from(["join", "leave", "again"]), min_size=1, max_size=25), st.randoms())
def test_whoever_comes_goes_and_asks_again_all_lists_are_right_in_the_end(steps: list[str], random: Any) -> None:
    async def play() -> None:
        crowd = Crowd()
        async with crowd.gathered() as first, contextlib.AsyncExitStack() as stack:
            await first.receive("presence_state")
            clients: dict[str, Client] = {}
            for number, step in enumerate(steps):
                if step == "join" or not clients:
                    client = await stack.enter_async_context(connect(crowd.channels))
                    client.send("1", "1", "hall", "phx_join", {"name": str(number)})
                    clients[str(number)] = client
                elif step == "leave":
                    clients.pop(random.choice(list(clients))).disconnect()
                else:
                    name = random.choice(list(clients))
                    clients[name].send("1", f"again {number}", "hall", "again", {"name": name})
                if random.random() < 0.5:
                    await anyio.sleep(random.choice((0, WAIT_SECONDS * MANY / 2, REST_SECONDS)))
            await anyio.sleep(1)
            there = await crowd.presence.list("hall")
            refs = {key: {meta["phx_ref"] for meta in one["metas"]} for key, one in there.items()}
            assert refs.keys() == {"first", *clients, *(f"other {number}" for number in range(MANY))}
            for client in clients.values():
                following = Following()
                with anyio.move_on_after(0.5):
                    while True:
                        message = await client.receive()
                        following.take(message.event, message.payload)
                assert following.refs == refs

    anyio.run(play, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})


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
