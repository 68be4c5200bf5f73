"""`channels.disconnect(socket_id)`: all connections of one user, in one call."""

from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from msgspec import Struct

from starlette_channels import Broker, Channels, Handshake, Reply, Socket, channel
from starlette_channels.pubsub.commands import Command, Disconnect, Kick
from starlette_channels.runtime.uptime import uptime
from starlette_channels.testing import ConnectionClosed, connect
from tests.conftest import frames

pytestmark = pytest.mark.anyio


class User(Struct):
    name: str


class House:
    """Channels of users with names, and a note of how their channels ended."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ends: list[tuple[str, str]] = []

        async def enter(conn: Handshake) -> User:
            return User(conn.params.get("user", ""))

        def socket_id(user: User) -> str | None:
            self.asked.append(user.name)
            return None if user.name == "anonymous" else f"user:{user.name}"

        @channel("room:*", "user:*")
        async def room(socket: Socket[User], payload: Any) -> None:
            pass

        @room.on("throw me out")
        async def throw_me_out(socket: Socket[User], payload: Any) -> dict[str, Any]:
            socket.push("before", {})
            self.channels.disconnect(f"user:{socket.assigns.name}")
            socket.push("after", {})
            return {}

        @room.terminate
        async def terminate(socket: Socket[User], reason: str) -> None:
            self.ends.append((socket.assigns.name, reason))

        self.channels = Channels([room], connect=enter, socket_id=socket_id)


async def test_all_connections_of_the_id_are_closed_with_1001_and_no_others() -> None:
    house = House()
    channels = house.channels
    async with (
        connect(channels, user="ann") as phone,
        connect(channels, user="ann") as laptop,
        connect(channels, user="bob") as bob,
        connect(channels, user="anonymous") as nobody,
    ):
        for client in (phone, bob, nobody):
            await client.join("room:a")
            await client.join("room:b")
        channels.disconnect("user:ann")
        assert await phone.closed() == await laptop.closed() == 1001
        with pytest.raises(ConnectionClosed) as caught:
            await phone.receive()  # no frame precedes the close
        assert caught.value.code == 1001
        assert await bob.heartbeat() == await nobody.heartbeat() == Reply("ok", {})
        await anyio.wait_all_tasks_blocked()
        assert channels.statistics().connections == 2
        assert house.ends == [("ann", "closed")] * 2
        assert sorted(house.asked) == ["ann", "ann", "anonymous", "bob"]
        async with connect(channels, user="ann") as again:
            await again.join("room:a")
    assert channels.statistics().topics == 0


async def test_an_id_that_nobody_has_is_no_error_and_anonymous_clients_have_none() -> None:
    channels = House().channels
    async with connect(channels, user="anonymous") as client:
        for socket_id in ("user:nobody", "user:anonymous", "", "None"):
            channels.disconnect(socket_id)
        assert await client.heartbeat() == Reply("ok", {})
        assert channels.statistics().topics == 0


async def test_only_the_event_disconnect_means_anything_and_its_payload_means_nothing() -> None:
    channels = House().channels
    async with connect(channels, user="ann") as client:
        for event in ("Disconnect", "close", "news", ""):
            channels.broadcast("user:ann", event, {})
        assert await client.heartbeat() == Reply("ok", {})
        assert await client.received_nothing()
        channels.broadcast("user:ann", "disconnect", b"whatever")
        assert await client.closed() == 1001


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1008, 1011, 1012, 1014, 3000, 4999])
@pytest.mark.parametrize("reason", ["", "logged out elsewhere", "é" * 61])
async def test_the_client_sees_code_and_reason(code: int, reason: str) -> None:
    channels = House().channels
    async with connect(channels, user="ann") as client:
        channels.disconnect("user:ann", code=code, reason=reason)
        with pytest.raises(ConnectionClosed) as closed:
            await client.receive()
        assert (closed.value.code, closed.value.reason) == (code, reason)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1010, 1015, 1016, 2999, 5000, -1])
def test_a_code_that_no_server_may_send_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=r"a server may send 1000, .*, and 3000 to 4999"):
        House().channels.disconnect("user:ann", code=code)


@pytest.mark.parametrize("reason", ["x" * 124, "é" * 62, "\ud800"], ids=["long", "long in UTF-8", "no Unicode"])
def test_a_reason_that_no_close_frame_can_hold_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=r"123 bytes|surrogates"):
        House().channels.disconnect("user:ann", reason=reason)


async def test_a_channel_on_a_topic_that_is_someones_id_sees_the_event_as_any_other() -> None:
    channels = House().channels
    async with connect(channels, user="ann") as ann, connect(channels, user="bob") as bob:
        await bob.join("user:ann")
        channels.disconnect("user:ann")
        assert await ann.closed() == 1001
        assert await bob.received_nothing()
        channels.broadcast("user:ann", "disconnect", {})
        assert (await bob.receive()).event == "disconnect"
        assert await bob.heartbeat() == Reply("ok", {})


async def test_what_was_sent_before_arrives_before_the_close_and_nothing_after_it() -> None:
    house = House()
    async with connect(house.channels, user="ann") as client:
        room = await client.join("room:a")
        room.send("throw me out")
        assert [one.event for one in await frames(client, 1)] == ["before"]
        assert await client.closed() == 1001
        assert await client.received_nothing()
    assert house.ends == [("ann", "closed")]


async def test_a_disconnect_can_come_from_another_thread() -> None:
    channels = House().channels
    async with connect(channels, user="ann") as client:
        await anyio.to_thread.run_sync(channels.disconnect, "user:ann")
        assert await client.closed() == 1001


async def test_without_socket_id_nobody_can_be_disconnected() -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        pass

    channels = Channels([room])
    async with connect(channels) as client:
        channels.disconnect("")
        assert await client.heartbeat() == Reply("ok", {})


class Newcomer:
    """A client that has just been let in."""

    def __init__(self) -> None:
        self.obeyed: list[tuple[Command, float]] = []

    def handle_command(self, command: Command, said_at: float) -> None:
        self.obeyed.append((command, said_at))

    def resync(self, said_at: float) -> None:
        raise AssertionError("nothing is lost")


async def test_who_is_let_in_is_told_of_the_last_disconnect_and_of_none_that_came_late() -> None:
    hub = Broker().hub()
    now = uptime()
    for command, said_at in ((Disconnect(4001), now), (Disconnect(4002), now - 100), (Kick("room:a"), now + 1)):
        hub.command("ann", command, said_at)
    ann, bob = Newcomer(), Newcomer()
    hub.register("ann", ann)
    hub.register("bob", bob)
    assert ann.obeyed == [], "its constructor is not over"
    with anyio.fail_after(5):
        while not ann.obeyed:
            await anyio.lowlevel.checkpoint()
    assert (ann.obeyed, bob.obeyed) == ([(Disconnect(4001), now)], [])
