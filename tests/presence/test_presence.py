"""Presence as clients see it: states, diffs, refs."""

from typing import Any

import anyio
import anyio.to_thread
import pytest
from msgspec import Struct

from starlette_channels import Broker, Channels, Presence, PresenceError, Reply, SerializerError, Socket, channel
from starlette_channels.testing import Joined, JoinRefused, connect
from tests.support.presence_lobby import Lobby, diff, shape, state

pytestmark = pytest.mark.anyio


async def arrive(client: Any, name: str, **meta: Any) -> Joined:
    """Join as somebody, and read what comes of it."""
    room = await client.join("lobby:1", {"name": name, "meta": meta})
    await room.receive("presence_state")
    await room.receive("presence_diff")
    return room


async def test_after_the_reply_to_the_join_come_the_state_and_the_own_diff() -> None:
    async with connect(Lobby().channels) as client:
        await client.join("lobby:1", {"name": "ann", "meta": {"on": "phone"}})
        first, second = await client.receive(), await client.receive()
        (meta,) = first.payload["ann"]["metas"]
        assert (first.event, first.join_ref, meta["on"]) == ("presence_state", "1", "phone")
        assert second.event == "presence_diff"
        assert second.payload == {"joins": first.payload, "leaves": {}}


async def test_others_are_told_who_comes_and_who_goes() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as one:
        ann = await arrive(one, "ann")
        async with connect(lobby.channels) as other:
            ben = await other.join("lobby:1", {"name": "ben", "meta": {"on": "desk"}})
            assert await state(ben) == {"ann": [{}], "ben": [{"on": "desk"}]}
            assert await diff(ann) == ({"ben": [{"on": "desk"}]}, {})
        assert await diff(ann) == ({}, {"ben": [{"on": "desk"}]})
        assert await ann.received_nothing()


async def test_who_only_looks_gets_the_state_and_is_not_in_it() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as one, connect(lobby.channels) as other:
        await arrive(one, "ann")
        assert await state(await other.join("lobby:1", {"nobody": True})) == {"ann": [{}]}


async def test_a_client_of_version_1_gets_the_same() -> None:
    async with connect(Lobby().channels, vsn="1.0.0") as client:
        room = await client.join("lobby:1", {"name": "ann"})
        assert await state(room) == {"ann": [{}]}
        assert await diff(room) == ({"ann": [{}]}, {})


async def test_the_changes_of_one_turn_are_one_diff() -> None:
    lobby = Lobby()

    def task(socket: Socket[Any]) -> None:
        lobby.presence.track(socket, "ann's cat")
        lobby.presence.track(socket, "ann's dog")
        lobby.presence.untrack(socket, "ann")

    async with connect(lobby.channels) as client:
        ann = await arrive(client, "ann")
        await lobby.do(ann, task)
        assert await diff(ann) == ({"ann's cat": [{}], "ann's dog": [{}]}, {"ann": [{}]})
        assert await ann.received_nothing()


async def test_an_update_is_one_diff_with_the_new_meta_and_the_old_one() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        ann = await client.join("lobby:1", {"name": "ann", "meta": {"a": 1}})
        (old,) = (await ann.receive("presence_state"))["ann"]["metas"]
        await ann.receive("presence_diff")
        assert await lobby.do(ann, lambda socket: lobby.presence.update(socket, "ann", {"b": 2})) == Reply("ok")
        payload = await ann.receive("presence_diff")
        (new,) = payload["joins"]["ann"]["metas"]
        assert payload["leaves"]["ann"]["metas"] == [old]
        assert new == {"b": 2, "phx_ref": new["phx_ref"], "phx_ref_prev": old["phx_ref"]}
        assert new["phx_ref"] != old["phx_ref"]


async def test_an_update_may_build_on_the_present_meta() -> None:
    lobby = Lobby()
    seen: list[dict[str, Any]] = []

    def task(socket: Socket[Any]) -> None:
        lobby.presence.update(socket, "ann", lambda meta: seen.append(meta) or {**meta, "b": len(seen)})

    async with connect(lobby.channels) as client:
        ann = await arrive(client, "ann", a=1)
        await lobby.do(ann, task)
        await lobby.do(ann, task)
        assert shape(await lobby.presence.list("lobby:1")) == {"ann": [{"a": 1, "b": 2}]}
    assert "phx_ref" in seen[0]
    assert seen[1]["phx_ref_prev"] == seen[0]["phx_ref"]


async def test_an_update_that_is_overtaken_by_another_builds_on_that() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        await arrive(client, "ann", n=0)
        (socket,) = lobby.sockets

        def add_one(meta: dict[str, Any]) -> dict[str, Any]:
            if meta["n"] == 0:
                lobby.presence.update(socket, "ann", {"n": 10})
            return {"n": meta["n"] + 1}

        lobby.presence.update(socket, "ann", add_one)
        assert shape(await lobby.presence.list("lobby:1")) == {"ann": [{"n": 11}]}


async def test_untracking_is_a_leave_also_for_oneself_and_no_error_if_there_is_nothing() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        ann = await arrive(client, "ann")
        assert await lobby.do(ann, lambda socket: lobby.presence.untrack(socket, "ann")) == Reply("ok")
        assert await diff(ann) == ({}, {"ann": [{}]})
        assert await lobby.do(ann, lambda socket: lobby.presence.untrack(socket, "ann")) == Reply("ok")
        assert await lobby.do(ann, lambda socket: lobby.presence.untrack(socket)) == Reply("ok")
        assert await ann.received_nothing()


async def test_untracking_without_a_key_ends_all_presences_of_the_socket() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as one, connect(lobby.channels) as other:
        ann = await arrive(one, "ann")
        await lobby.do(ann, lambda socket: lobby.presence.track(socket, "cat"))
        await arrive(other, "ben")
        await lobby.do(ann, lobby.presence.untrack)
        assert list(await lobby.presence.list("lobby:1")) == ["ben"]


async def test_a_key_is_tracked_once_by_one_socket_and_updated_only_if_it_is() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        ann = await arrive(client, "ann")
        again = await lobby.do(ann, lambda socket: lobby.presence.track(socket, "ann"))
        assert again == Reply("error", {"reason": "already_tracked"})
        nobody = await lobby.do(ann, lambda socket: lobby.presence.update(socket, "ben", {}))
        assert nobody == Reply("error", {"reason": "nopresence"})
        assert await ann.received_nothing()


async def test_a_socket_that_tracks_nothing_has_nothing_to_update() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        room = await client.join("lobby:1", {"nobody": True})
        answer = await lobby.do(room, lambda socket: lobby.presence.update(socket, "ann", {}))
        assert answer == Reply("error", {"reason": "nopresence"})


async def test_two_connections_of_a_user_are_one_key_with_two_metas() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as one:
        phone = await arrive(one, "ann", on="phone")
        async with connect(lobby.channels) as other:
            await arrive(other, "ann", on="desk")
            assert shape(await lobby.presence.list("lobby:1")) == {"ann": [{"on": "phone"}, {"on": "desk"}]}
            assert lobby.presence.count("lobby:1") == 1
            assert await diff(phone) == ({"ann": [{"on": "desk"}]}, {})
        assert await diff(phone) == ({}, {"ann": [{"on": "desk"}]})
        assert shape(await lobby.presence.list("lobby:1")) == {"ann": [{"on": "phone"}]}


async def test_one_entry_can_be_asked_for_and_the_number_of_keys() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        await arrive(client, "ann", a=1)
        (socket,) = lobby.sockets
        found = await lobby.presence.get_by_key("lobby:1", "ann")
        assert found is not None
        assert found == (await lobby.presence.list(socket))["ann"]
        assert found["metas"][0]["a"] == 1
        assert await lobby.presence.get_by_key(socket, "ben") is None
        assert await lobby.presence.get_by_key("lobby:2", "ann") is None
        assert (lobby.presence.count(socket), lobby.presence.count("lobby:2")) == (1, 0)


async def test_what_is_listed_is_a_copy() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        await arrive(client, "ann", tags=["a"])
        listed = await lobby.presence.list("lobby:1")
        listed["ann"]["metas"][0]["tags"].append("b")
        listed.clear()
        assert shape(await lobby.presence.list("lobby:1")) == {"ann": [{"tags": ["a"]}]}


async def test_topics_and_presences_are_worlds_of_their_own() -> None:
    lobby, other = Lobby(), Presence()
    async with connect(lobby.channels) as client:
        await arrive(client, "ann")
        await client.join("lobby:2", {"name": "ben"})
        assert list(await lobby.presence.list("lobby:1")) == ["ann"]
        assert list(await lobby.presence.list("lobby:2")) == ["ben"]
        assert await other.list("lobby:1") == {}


async def test_a_number_and_its_text_are_the_same_key() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as one:
        room = await one.join("lobby:1", {"name": 7})
        assert await state(room) == {"7": [{}]}
        again = await lobby.do(room, lambda socket: lobby.presence.track(socket, "7"))
        assert again == Reply("error", {"reason": "already_tracked"})
        assert await lobby.presence.get_by_key("lobby:1", 7)
        await lobby.do(room, lambda socket: lobby.presence.untrack(socket, 7))
        assert lobby.presence.count("lobby:1") == 0


@pytest.mark.parametrize("key", ["__proto__", "constructor", "toString", "hasOwnProperty", "\ud800"])
async def test_a_key_that_would_break_a_page_is_refused(key: str) -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        room = await client.join("lobby:1", {"nobody": True})
        answer = await lobby.do(room, lambda socket: lobby.presence.track(socket, key))
        assert answer == Reply("error", {"reason": "unsafe_key"})
        assert lobby.presence.count("lobby:1") == 0


@pytest.mark.parametrize("key", ["", " ", "a b", "é/1", "prototype", "0", "🙂", "\n"])
async def test_every_other_text_is_a_key(key: str) -> None:
    async with connect(Lobby().channels) as client:
        assert await state(await client.join("lobby:1", {"name": key})) == {key: [{}]}


class Status(Struct):
    status: str


MISTAKES: list[tuple[Any, Any, type[Exception]]] = [
    *((key, {}, TypeError) for key in (True, None, 1.5, ["ann"])),
    *(("ann", meta, TypeError) for meta in (b"bytes", object(), [1], "text")),
    ("ann", {"a": "\ud800"}, SerializerError),
]


@pytest.mark.parametrize(("key", "meta", "error"), MISTAKES)
async def test_what_is_no_key_or_no_meta_is_a_mistake(key: Any, meta: Any, error: type[Exception]) -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        await client.join("lobby:1", {"nobody": True})
        with pytest.raises(error):
            lobby.presence.track(lobby.sockets[0], key, meta)
        assert lobby.presence.count("lobby:1") == 0


async def test_a_meta_may_be_whatever_is_encoded_as_an_object_and_cannot_set_its_ref() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        room = await client.join("lobby:1", {"nobody": True})
        await lobby.do(room, lambda socket: lobby.presence.track(socket, "ann", Status("busy")))
        mine = {"phx_ref": "mine", "phx_ref_prev": "mine"}
        await lobby.do(room, lambda socket: lobby.presence.track(socket, "ben", mine))
        listed = await lobby.presence.list("lobby:1")
        assert shape(listed) == {"ann": [{"status": "busy"}], "ben": [{}]}
        (meta,) = listed["ben"]["metas"]
        assert list(meta) == ["phx_ref"]
        assert len(meta["phx_ref"]) == 16
        assert meta["phx_ref"] != "mine"


async def test_the_state_of_a_slow_join_has_those_who_came_meanwhile() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as one, connect(lobby.channels) as other:
        lobby.gate = anyio.Event()
        ref = one.ref()
        one.send(ref, ref, "lobby:1", "phx_join", {"name": "ann"})
        await anyio.wait_all_tasks_blocked()
        gate, lobby.gate = lobby.gate, None
        await arrive(other, "ben")
        gate.set()
        assert (await one.reply(ref)).status == "ok"
        assert set((await one.receive()).payload) == {"ann", "ben"}
        assert await one.received_nothing()


async def test_who_is_refused_is_not_there_and_gets_no_state() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as one, connect(lobby.channels) as other:
        ann = await arrive(one, "ann")
        with pytest.raises(JoinRefused):
            await other.join("lobby:1", {"name": "ben", "refuse": True})
        assert await other.received_nothing()
        assert list(await lobby.presence.list("lobby:1")) == ["ann"]
        del ann


async def test_diffs_can_be_intercepted() -> None:
    presence = Presence()

    @channel("lobby:*")
    async def lobby(socket: Socket, payload: dict[str, Any]) -> None:
        presence.track(socket, "ann")

    @lobby.intercept("presence_diff")
    async def seen(socket: Socket, payload: dict[str, Any]) -> None:
        socket.push("seen", {"joins": list(payload["joins"])})

    async with connect(Channels([lobby])) as client:
        room = await client.join("lobby:1")
        assert await room.receive("seen") == {"joins": ["ann"]}
        assert await room.received_nothing()


async def test_it_can_be_used_from_threads() -> None:
    lobby = Lobby()
    async with connect(lobby.channels) as client:
        room = await client.join("lobby:1", {"nobody": True})
        (socket,) = lobby.sockets
        await anyio.to_thread.run_sync(lobby.presence.track, socket, "ann", {"n": 1})
        assert await diff(room) == ({"ann": [{"n": 1}]}, {})
        await anyio.to_thread.run_sync(lobby.presence.update, socket, "ann", {"n": 2})
        assert await diff(room) == ({"ann": [{"n": 2}]}, {"ann": [{"n": 1}]})
        await anyio.to_thread.run_sync(lobby.presence.untrack, socket)
        assert await diff(room) == ({}, {"ann": [{"n": 2}]})


async def test_two_mounts_with_one_broker_share_it() -> None:
    presence, broker = Presence(), Broker()
    one, other = Lobby(presence, broker), Lobby(presence, broker)
    async with connect(one.channels) as client, connect(other.channels) as stranger:
        ann = await arrive(client, "ann")
        assert await state(await stranger.join("lobby:1", {"name": "ben"})) == {"ann": [{}], "ben": [{}]}
        assert await diff(ann) == ({"ben": [{}]}, {})


async def nothing(topic: str, presences: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {}


@pytest.mark.parametrize("presence", [Presence(), Presence(fetch=nothing)], ids=["plain", "fetching"])
def test_one_presence_serves_one_event_loop_after_another(presence: Presence) -> None:
    async def hurry() -> None:
        """The event loop is over before anybody is told."""
        lobby = Lobby(presence)
        async with connect(lobby.channels) as client:
            await client.join("lobby:1", {"nobody": True})
            presence.track(lobby.sockets[0], "ann")
            presence.untrack(lobby.sockets[0])

    async def play() -> None:
        lobby = Lobby(presence)
        async with connect(lobby.channels) as one, connect(lobby.channels) as other:
            ann = await arrive(one, "ann")
            await arrive(other, "ben")
            assert await diff(ann) == ({"ben": [{}]}, {})
        assert await presence.list("lobby:1") == {}

    for backend in ("asyncio", "asyncio", "trio", "asyncio"):
        anyio.run(hurry, backend=backend)
        anyio.run(play, backend=backend)


def test_the_errors_say_why() -> None:
    assert str(PresenceError("nopresence")) == "nopresence"
