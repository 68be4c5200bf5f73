"""A presence ends with its channel, whatever ends that, and may be missed for a while."""

import sys
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from trio.testing import MockClock

from starlette_channels import V2, Channels, Presence, SerializerError, Socket, channel
from starlette_channels.testing import Client, Joined, connect
from starlette_channels.wire.messages import Frame
from tests.support.presence_lobby import Lobby, diff, state

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override

pytestmark = pytest.mark.anyio

END = ["leave", "stop", "crash", "disconnect", "malformed", "kicked", "rejoin"]
LOST = [how for how in END if how not in ("leave", "stop", "rejoin")]


def crash(socket: Socket[Any]) -> None:
    raise RuntimeError("asked for by a test")


async def end(lobby: Lobby, client: Client, room: Joined, how: str) -> None:
    """End a channel in this way."""
    match how:
        case "leave":
            await room.leave()
        case "stop" | "crash":
            lobby.task = crash if how == "crash" else lambda socket: socket.stop()
            room.send("do")
            await room.receive("phx_error" if how == "crash" else "phx_close")
        case "disconnect":
            client.disconnect()
        case "malformed":
            client.send_frame("oops")
        case "kicked":
            lobby.channels.disconnect("somebody")
        case _:
            await client.join("lobby:1", {"nobody": True})


def named(lobby: Lobby) -> Lobby:
    """Let `disconnect("somebody")` end the connections."""
    lobby.channels = Channels([lobby.lobby], socket_id=lambda _: "somebody", broker=lobby.broker)
    return lobby


@pytest.mark.parametrize("how", END)
async def test_others_are_told_at_once_and_who_goes_is_not(how: str) -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as watching, connect(named(lobby).channels) as client:
        watcher = await watching.join("lobby:1", {"nobody": True})
        ann = await client.join("lobby:1", {"name": "ann"})
        await ann.receive("presence_state")
        assert await diff(ann) == await diff(watcher) == ({"ann": [{}]}, {})
        await end(lobby, client, ann, how)
        assert await diff(watcher) == ({}, {"ann": [{}]})
        assert lobby.presence.count("lobby:1") == 0
        if how != "rejoin":  # then the new channel is told as any other
            assert await ann.received_nothing("presence_diff")


async def test_the_leave_follows_what_terminate_says() -> None:
    presence = Presence()

    @channel("lobby:*")
    async def lobby(socket: Socket, payload: dict[str, Any]) -> None:
        presence.track(socket, payload["name"])

    @lobby.terminate
    async def gone(socket: Socket, reason: str) -> None:
        socket.broadcast("gone", {"there": presence.count(socket)})

    channels = Channels([lobby])
    async with connect(channels) as watching:
        watcher = await watching.join("lobby:1", {"name": "ann"})
        async with connect(channels) as client:
            await client.join("lobby:1", {"name": "ben"})
            assert await diff(watcher) == ({"ann": [{}]}, {})
            assert await diff(watcher) == ({"ben": [{}]}, {})
        assert await watcher.receive("gone") == {"there": 2}
        assert await diff(watcher) == ({}, {"ben": [{}]})


async def test_what_is_tracked_once_the_channel_has_ended_is_not_there() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as watching:
        watcher = await watching.join("lobby:1", {"nobody": True})
        async with connect(lobby.channels) as client:
            await client.join("lobby:1", {"name": "ann"})
            assert await diff(watcher) == ({"ann": [{}]}, {})
        assert await diff(watcher) == ({}, {"ann": [{}]})
        socket = lobby.sockets[1]
        lobby.presence.track(socket, "ann")
        lobby.presence.untrack(socket)
        lobby.presence.push_state(socket)
        assert await watcher.received_nothing("presence_diff")
        assert lobby.presence.count("lobby:1") == 0


async def test_a_server_that_stops_leaves_nobody_behind() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as one, connect(lobby.channels) as other:
        async with lobby.channels.lifespan():
            await one.join("lobby:1", {"name": "ann"})
            await other.join("lobby:1", {"name": "ben"})
        assert await lobby.presence.list("lobby:1") == {}


# Grace.


@pytest.mark.parametrize("how", LOST)
async def test_who_is_lost_and_comes_back_in_time_has_not_been_away(how: str, virtual_clock: MockClock) -> None:
    lobby = Lobby(Presence(grace_seconds=5))
    async with connect(lobby.channels) as watching, connect(lobby.channels) as again:
        watcher = await watching.join("lobby:1", {"nobody": True})
        async with connect(named(lobby).channels) as client:
            ann = await client.join("lobby:1", {"name": "ann", "meta": {"n": 1}})
            assert await diff(watcher) == ({"ann": [{"n": 1}]}, {})
            await end(lobby, client, ann, how)
            await anyio.sleep(4)
        assert await watcher.received_nothing("presence_diff")
        assert lobby.presence.count("lobby:1") == 1
        back = await again.join("lobby:1", {"name": "ann", "meta": {"n": 2}})
        assert await state(back) == {"ann": [{"n": 2}]}
        assert await diff(watcher) == ({"ann": [{"n": 2}]}, {"ann": [{"n": 1}]})
        await anyio.sleep(10)
        assert await watcher.received_nothing("presence_diff")


async def test_who_is_lost_and_does_not_come_back_leaves_when_the_grace_is_over(virtual_clock: MockClock) -> None:
    lobby = Lobby(Presence(grace_seconds=5))
    async with connect(lobby.channels, timeout=20) as watching:
        watcher = await watching.join("lobby:1", {"nobody": True})
        for name in ("ann", "ben"):
            async with connect(lobby.channels) as client:
                await client.join("lobby:1", {"name": name})
                assert await diff(watcher) == ({name: [{}]}, {})
            await anyio.sleep(1)
        lost = anyio.current_time()
        assert await diff(watcher) == ({}, {"ann": [{}]})
        assert anyio.current_time() - lost == pytest.approx(3)  # pyright: ignore[reportUnknownMemberType]
        assert await diff(watcher) == ({}, {"ben": [{}]})
        assert lobby.presence.count("lobby:1") == 0


@pytest.mark.parametrize("how", ["leave", "stop"])
async def test_who_goes_on_purpose_is_gone_at_once(how: str, virtual_clock: MockClock) -> None:
    lobby = Lobby(Presence(grace_seconds=5))
    async with connect(lobby.channels) as watching, connect(lobby.channels) as client:
        watcher = await watching.join("lobby:1", {"nobody": True})
        ann = await client.join("lobby:1", {"name": "ann"})
        assert await diff(watcher) == ({"ann": [{}]}, {})
        start = anyio.current_time()
        await end(lobby, client, ann, how)
        assert await diff(watcher) == ({}, {"ann": [{}]})
        assert anyio.current_time() == start


async def test_a_second_connection_takes_nothing_from_one_that_lives(virtual_clock: MockClock) -> None:
    """With the grace, too: only those who are missed are replaced."""
    lobby = Lobby(Presence(grace_seconds=5))
    async with connect(lobby.channels) as one, connect(lobby.channels) as other:
        await one.join("lobby:1", {"name": "ann", "meta": {"n": 1}})
        ann = await other.join("lobby:1", {"name": "ann", "meta": {"n": 2}})
        assert await state(ann) == {"ann": [{"n": 1}, {"n": 2}]}


def test_who_was_missed_when_an_event_loop_ended_is_not_missed_in_the_next() -> None:
    presence = Presence(grace_seconds=1000)

    async def play() -> None:
        lobby = Lobby(presence)
        async with connect(lobby.channels) as client:
            await client.join("lobby:2", {"name": "ben"})
            assert await presence.list("lobby:1") == {}
            await client.join("lobby:1", {"name": "ann"})

    anyio.run(play)
    anyio.run(play, backend="trio")


# Threads, and wires that cannot.


class Interrupted:
    """The lock of a presence: something happens when it has been held for the first time."""

    def __init__(self, presence: Presence, what: Callable[[], object]) -> None:
        self.lock = presence._lock  # pyright: ignore[reportPrivateUsage]
        self.what = [what]
        presence._lock = self  # pyright: ignore

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        if self.what:
            self.what.pop()()


async def test_a_channel_that_ends_while_another_thread_tracks_leaves_nobody_behind() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        room = await client.join("lobby:1", {"nobody": True})

        async def leave() -> None:
            await room.leave()
            await anyio.wait_all_tasks_blocked()

        Interrupted(lobby.presence, lambda: anyio.from_thread.run(leave))
        await anyio.to_thread.run_sync(lobby.presence.track, lobby.sockets[0], "ann")
        await anyio.wait_all_tasks_blocked()
        assert lobby.presence.count("lobby:1") == 0


class Mute(V2):
    """A wire on which there are no diffs."""

    mute = True

    @override
    def broadcast(self, topic: str, event: str, body: Any) -> Frame:
        if self.mute:
            raise SerializerError("no diffs here")
        return super().broadcast(topic, event, body)


async def test_a_diff_that_no_wire_can_express_is_counted_and_later_ones_are_sent() -> None:
    presence, wire = Presence(), Mute()

    @channel("lobby:*")
    async def lobby(socket: Socket, payload: dict[str, Any]) -> None:
        presence.track(socket, payload["name"])

    async with connect(Channels([lobby], serializers=[wire])) as client:
        room = await client.join("lobby:1", {"name": "ann"})
        assert await room.received_nothing()
        assert presence.counts == {"presence_diff_failed": 1}
        wire.mute = False
        await room.leave()
        room = await client.join("lobby:1", {"name": "ben"})
        assert (await diff(room))[0] == {"ben": [{}]}
