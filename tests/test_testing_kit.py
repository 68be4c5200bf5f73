"""The test kit itself: what it lets a test say, and what it says when a test fails."""

from typing import Any

import anyio
import pytest
from msgspec import Raw
from starlette.types import Receive, Scope, Send
from trio.testing import MockClock

from starlette_channels import Channels, ConnectError, Handshake, JoinError, Reply, SerializerError, Socket, channel
from starlette_channels.testing import (
    ChannelCrashed,
    Client,
    ConnectionClosed,
    HandshakeRefused,
    JoinRefused,
    Received,
    connect,
)
from tests.conftest import frames

pytestmark = pytest.mark.anyio


class Boom(Exception):
    """Something that no code of ours raises or catches."""


def channels_with(**handlers: Any) -> Channels[Any]:
    """Channels with these event handlers, and an echo."""

    @channel("room:*")
    async def room(socket: Socket[Any], payload: Any) -> None:
        if payload == {"secret": "wrong"}:
            raise JoinError("no")

    @room.on("echo")
    async def echo(socket: Socket[Any], payload: Any) -> Reply:
        return Reply("ok", payload)

    @room.on("say")
    async def say(socket: Socket[Any], payload: Any) -> None:
        socket.broadcast("said", payload)

    for event, handler in handlers.items():
        room.on(event)(handler)
    return Channels([room])


async def raise_inside(channels: Channels[Any], error: BaseException) -> None:
    """Raise in the block of a test, with two clients connected."""
    async with connect(channels) as client, connect(channels) as other:
        await client.join("room:a")
        await other.heartbeat()
        raise error


@pytest.mark.parametrize("error", [Boom("no"), AssertionError("no"), KeyError("no"), ExceptionGroup("no", [Boom()])])
async def test_an_error_of_the_test_comes_out_as_it_is(error: Exception) -> None:
    channels = channels_with()
    with pytest.raises(type(error)) as caught:
        await raise_inside(channels, error)
    assert caught.value is error
    assert channels.statistics().connections == 0


@pytest.mark.parametrize("kind", [pytest.fail.Exception, pytest.skip.Exception])
async def test_a_test_can_fail_and_skip_inside_the_block_as_anywhere(kind: type[BaseException]) -> None:
    channels = channels_with()
    with pytest.raises(kind):
        await raise_inside(channels, kind("no"))
    assert channels.statistics().connections == 0


async def test_a_test_that_is_cancelled_leaves_no_connection_behind() -> None:
    channels = channels_with()
    with anyio.move_on_after(0.01) as scope:
        async with connect(channels) as client:
            await client.join("room:a")
            await client.receive()
    assert scope.cancelled_caught
    assert channels.statistics().connections == 0


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_error_of_the_application_comes_out_as_it_is(when: str) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if when == "after":
            await send({"type": "websocket.accept"})
        raise Boom("in the application")

    async def talk() -> None:
        async with connect(broken) as client:
            with pytest.raises(ConnectionClosed):
                await client.receive()

    with pytest.raises(Boom, match="in the application"):
        await talk()


async def test_an_application_that_does_not_end_its_side_fails_the_test(virtual_clock: MockClock) -> None:
    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await anyio.sleep_forever()

    with pytest.raises(AssertionError, match="did not end its side"):
        async with connect(endless):
            pass


async def test_an_application_that_does_not_answer_the_handshake_fails_the_test(virtual_clock: MockClock) -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "websocket.disconnect":
            pass

    with pytest.raises(TimeoutError):
        async with connect(silent):
            pass
    assert anyio.current_time() - virtual_clock.current_time() < 60


async def test_what_does_not_come_in_time_fails_with_a_list_of_what_came_instead(virtual_clock: MockClock) -> None:
    async def never(socket: Socket[Any], payload: Any) -> None:
        socket.push("instead", {"n": 1})

    async with connect(channels_with(never=never), timeout=3) as client:
        room = await client.join("room:a")
        start = anyio.current_time()
        with pytest.raises(AssertionError, match=r"the reply to '2' did not come within 3 s.*'instead'.*\{'n': 1\}"):
            await room.push("never")
        with pytest.raises(AssertionError, match=r"'wanted' on 'room:a' did not come within 3 s.*'instead'"):
            await room.receive("wanted")
        with pytest.raises(AssertionError, match=r"did not close within 3 s.*'instead'"):
            await client.closed()
        assert anyio.current_time() - start == pytest.approx(9)  # pyright: ignore[reportUnknownMemberType]
        assert await room.receive("instead") == {"n": 1}
        with pytest.raises(AssertionError, match=r"a frame did not come within 3 s; unread: \[\]"):
            await client.receive()


async def test_received_nothing_lets_the_server_finish_first_and_fails_if_something_came() -> None:
    async def relay(socket: Socket[Any], payload: dict[str, int]) -> None:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        socket.broadcast("relayed", payload)

    channels = channels_with(relay=relay)
    async with connect(channels) as one, connect(channels) as two:
        ann, bob, other = await one.join("room:a"), await two.join("room:a"), await two.join("room:b")
        assert await one.received_nothing()
        ann.send("relay", {"n": 1})
        assert await other.received_nothing()
        assert await bob.received_nothing("something else")
        assert await two.received_nothing(lambda received: received.ref is not None)
        for nothing in (two.received_nothing, bob.received_nothing):
            with pytest.raises(AssertionError, match=r"unexpected messages.*'relayed'"):
                await nothing()
        with pytest.raises(AssertionError, match="unexpected messages"):
            await bob.received_nothing("relayed")
        assert await bob.receive("relayed") == {"n": 1}  # it is still there
        assert await two.received_nothing()


async def test_frames_that_are_not_wanted_stay_for_later_in_their_order() -> None:
    async with connect(channels_with()) as client:
        room = await client.join("room:a")
        for n in range(3):
            room.send("say", {"n": n})
        assert await room.push("echo", {"last": True}) == Reply("ok", {"last": True})
        assert (await client.receive(lambda received: received.payload.get("n") == 1)).payload == {"n": 1}
        assert [came.payload["n"] for came in await frames(client, 2)] == [0, 2]


async def test_a_joined_topic_does_not_see_frames_of_other_topics_or_other_joins() -> None:
    channels = channels_with()
    async with connect(channels) as client:
        old, other = await client.join("room:a"), await client.join("room:b")
        new = await client.join("room:a")
        assert await new.received_nothing("phx_close")
        assert await old.receive("phx_close") == {}
        channels.broadcast("room:b", "news", {"room": "b"})
        assert await new.received_nothing("news")
        assert await other.receive("news") == {"room": "b"}


async def test_what_the_server_refuses_says_why() -> None:
    async def enter(conn: Handshake) -> dict[str, Any]:
        if "user" not in conn.params:
            raise ConnectError("who are you?", 401)
        return conn.params

    @channel("room:*")
    async def room(socket: Socket[dict[str, Any]], payload: Any) -> None:
        raise JoinError({"code": 7})

    channels = Channels([room], connect=enter)
    with pytest.raises(HandshakeRefused, match=r"^401 who are you\?$") as refused:
        async with connect(channels):
            pass
    assert (refused.value.status, refused.value.body) == (401, "who are you?")
    async with connect(channels, user="ann") as client:
        with pytest.raises(JoinRefused, match=r"error: \{'code': 7\}") as caught:
            await client.join("room:a")
        assert caught.value.reply == Reply("error", {"code": 7})


async def test_after_the_close_the_unread_frames_come_first_and_then_its_code() -> None:
    channels = channels_with()
    async with connect(channels) as client:
        room = await client.join("room:a")
        channels.broadcast("room:a", "last", {})
        async with channels.lifespan():
            pass
        assert await client.closed() == 1012
        assert await room.receive("last") == {}
        with pytest.raises(ConnectionClosed, match="1012 restart") as caught:
            await room.push("echo")
        assert (caught.value.code, caught.value.reason) == (1012, "restart retry_after=0.00")


async def test_leaving_the_block_waits_for_the_end_of_the_channels() -> None:
    happened: list[str] = []

    async def work(socket: Socket[Any], payload: Any) -> None:
        await anyio.sleep(0.01)
        happened.append("worked")

    async with connect(channels_with(work=work)) as client:
        room = await client.join("room:a")
        room.send("work")
    assert happened == ["worked"]


async def test_disconnecting_early_is_the_same_as_leaving_the_block() -> None:
    channels = channels_with()
    async with connect(channels) as client:
        await client.join("room:a")
        client.disconnect(1001)
        assert await client.closed() == 1006
        assert channels.statistics().connections == 0


async def test_a_leave_returns_its_reply_and_takes_the_close_with_it() -> None:
    async with connect(channels_with()) as client:
        room = await client.join("room:a")
        assert await room.leave() == Reply("ok", {})
        assert await client.received_nothing()
        assert (await room.push("echo")).payload == {"reason": "unmatched topic"}


async def test_frames_can_be_sent_as_they_stand() -> None:
    async with connect(channels_with()) as client:
        client.send_frame('["1","2","room:a","phx_join",{}]')
        assert (await client.receive()).ref == "2"
        client.send_frame(b"\x00\x01\x01\x06\x04" + b"1" + b"3" + b"room:a" + b"echo" + b"\xff")
        assert await client.reply("3") == Reply("ok", b"\xff")
        client.send(None, "4", "room:a", "echo", Raw(b"null"))
        assert await client.reply("4") == Reply("ok", None)
        client.send_frame("{nope")
        assert await client.closed() == 1011


async def test_version_1_can_be_spoken_as_well() -> None:
    channels = channels_with()
    async with connect(channels, vsn="1.0.0") as client:
        room = await client.join("room:a")
        assert await room.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
        room.send("say", {"text": "é"})
        assert await client.receive() == Received(None, None, "room:a", "said", {"text": "é"})
        assert await client.heartbeat() == Reply("ok", {})
        await room.leave()
        with pytest.raises((TypeError, ValueError, SerializerError)):
            room.send("echo", b"binary")


async def test_each_client_has_refs_of_its_own_and_none_twice() -> None:
    refs: dict[Client, list[str]] = {}
    channels = channels_with()
    async with connect(channels) as one, connect(channels) as two:
        for client in (one, two):
            room = await client.join("room:a")
            refs[client] = [room.join_ref, room.send("echo"), client.ref(), room.send("echo")]
    for client in refs:
        assert refs[client] == ["1", "2", "3", "4"]


async def test_parameters_headers_and_subprotocols_reach_the_application() -> None:
    scopes: list[Scope] = []

    async def spy(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await Channels([], subprotocols=["b"])(scope, receive, send)

    params: dict[str, Any] = {"user": {"name": "a&b", "tags": [1, 2]}, "none": None}
    async with connect(spy, headers={"X-Name": "é"}, subprotocols=["a", "b"], **params) as client:
        assert client.subprotocol == "b"
    (scope,) = scopes
    handshake = Handshake(scope, {})
    assert handshake.params == {"user": {"name": "a&b", "tags": ["1", "2"]}, "vsn": "2.0.0"}
    assert handshake.headers["x-name"] == "é"
    assert handshake.headers["host"] == "testserver"


async def test_a_crash_of_the_handler_fails_the_push_at_once(virtual_clock: MockClock) -> None:
    async def crash(socket: Socket[Any], payload: Any) -> None:
        raise Boom("no")

    async with connect(channels_with(crash=crash)) as client:
        began = virtual_clock.current_time()
        room, other = await client.join("room:a"), await client.join("room:b")
        with pytest.raises(ChannelCrashed, match=r"'room:a' ended with phx_error .*channel_crash") as crashed:
            await room.push("crash")
        assert (crashed.value.topic, crashed.value.payload) == ("room:a", {"reason": "channel_crash"})
        assert await other.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
        assert await room.receive("phx_error") == {"reason": "channel_crash"}
        assert virtual_clock.current_time() == began


async def test_a_push_that_waits_while_another_one_crashes_the_channel_fails_at_once(virtual_clock: MockClock) -> None:
    async def ignore(socket: Socket[Any], payload: Any) -> None:
        """No reply."""

    async def crash(socket: Socket[Any], payload: Any) -> None:
        raise Boom("no")

    began = virtual_clock.current_time()
    async with connect(channels_with(crash=crash, ignore=ignore)) as client, anyio.create_task_group() as tasks:
        room = await client.join("room:a")

        async def wait() -> None:
            with pytest.raises(ChannelCrashed):
                await room.push("ignore")

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        room.send("crash")
    assert virtual_clock.current_time() == began


async def test_an_earlier_crash_does_not_fail_what_is_pushed_afterwards() -> None:
    async def crash(socket: Socket[Any], payload: Any) -> None:
        raise Boom("no")

    async with connect(channels_with(crash=crash)) as client:
        room = await client.join("room:a")
        room.send("crash")
        await client.received_nothing(lambda one: one.event != "phx_error")
        assert await room.push("echo") == Reply("error", {"reason": "unmatched topic"})
        again = await client.join("room:a")
        assert await again.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
