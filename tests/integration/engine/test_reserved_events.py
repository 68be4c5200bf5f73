"""Names of events that clients act on are the library's own: nobody else sends them, or makes others get them."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from starlette_channels import Broker, Channels, Presence, PresenceDiff, Publisher, Reply, Socket, channel
from starlette_channels.pubsub.relay.channel_names import topic_channel
from starlette_channels.pubsub.relay.envelope import payload_kind
from starlette_channels.testing import Client, Joined, connect
from starlette_channels.wire.event_names import LONGEST_REMEMBERED, MOST_REMEMBERED, ORDINARY_EVENTS, is_ordinary
from starlette_channels.wire.messages import encode_payload
from tests.integration.engine.test_publisher import command
from tests.support.engines import EngineServer
from tests.support.polling import Poller
from tests.support.relaying import Ear, brokers

PROTOCOL = ["phx_close", "phx_error", "phx_reply", "phx_", "phx_anything", "phx_join2", "phx_leave\0", "chan_reply_2"]
PRESENCE = ["presence_state", "presence_diff"]
RESERVED = [*PROTOCOL, *PRESENCE]
ORDINARY = ["close", "phx", "Phx_close", " phx_close", "chan_reply", "presence", "presence_states", "", "é" * 300]

UNMATCHED = {"reason": "unmatched event"}


class House:
    """A channel that passes on whatever its clients say, under the name that they choose."""

    def __init__(self, **options: Any) -> None:
        self.seen: list[str] = []
        self.errors: list[str] = []
        self.sockets: list[Socket[Any]] = []

        @channel("any:*")
        async def room(socket: Socket[Any], payload: Any) -> None:
            self.sockets.append(socket)

        @room.on_any
        async def relay(socket: Socket[Any], event: str, payload: Any) -> Reply:
            self.seen.append(event)
            for send in (socket.push, socket.broadcast, socket.broadcast_from):
                try:
                    send(event, {"by": send.__name__})
                except ValueError as error:
                    self.errors.append(str(error))
            return Reply("ok")

        self.channels = Channels([room], **options)

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.channels.statistics().counts)


@pytest.mark.anyio
@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
@pytest.mark.parametrize("event", PROTOCOL)
async def test_an_event_of_a_client_that_is_the_protocols_is_unmatched_and_reaches_no_handler(
    event: str, vsn: str
) -> None:
    house = House()
    async with connect(house.channels, vsn=vsn) as mallory, connect(house.channels) as bob:
        theirs, his = await mallory.join("any:1"), await bob.join("any:1")
        assert await theirs.push(event, {"status": "ok", "response": {}}) == Reply("error", UNMATCHED)
        theirs.send(event, {})  # without a ref nobody is answered
        assert await theirs.push("said") == Reply("ok")
        assert await his.receive("said") == {"by": "broadcast"}
        assert await his.receive("said") == {"by": "broadcast_from"}
    assert house.seen == ["said"]
    assert house.counts == {"unmatched_event": 2}


@pytest.mark.anyio
async def test_so_is_one_in_a_binary_message_and_one_of_a_poller() -> None:
    house = House(longpoll=True)
    async with connect(house.channels) as client:
        assert await (await client.join("any:1")).push("phx_close", b"bytes") == Reply("error", UNMATCHED)
    poller = await Poller(house.channels).open()
    await poller.join("any:1")
    await poller.post(["1", "2", "any:1", "phx_close", {}])
    assert (await poller.poll()).frames == [
        ["1", "2", "any:1", "phx_reply", {"status": "error", "response": UNMATCHED}]
    ]
    assert house.seen == []


@pytest.mark.anyio
async def test_a_handler_of_such_an_event_is_never_called_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    @channel("room:*")
    async def room(socket: Socket[Any], payload: Any) -> None:
        pass

    @room.on("phx_close")
    async def never(socket: Socket[Any], payload: Any) -> None:
        raise AssertionError

    assert "room.on('phx_close'): it never comes" in caplog.text
    async with connect(Channels([room])) as client:
        assert await (await client.join("room:a")).push("phx_close") == Reply("error", UNMATCHED)


@pytest.mark.anyio
async def test_joining_and_leaving_are_what_they_were() -> None:
    house = House()
    async with connect(house.channels) as client:
        joined = await client.join("any:1")
        await joined.leave()
        await client.join("any:1")
    assert house.counts == {}


Way = Callable[["House", str], object]

WAYS: dict[str, Way] = {
    "Channels.broadcast": lambda house, event: house.channels.broadcast("any:1", event, {}),
    "Socket.push": lambda house, event: house.sockets[0].push(event, {}),
    "Socket.broadcast": lambda house, event: house.sockets[0].broadcast(event, {}),
    "Socket.broadcast_from": lambda house, event: house.sockets[0].broadcast_from(event, {}),
}


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("event", RESERVED)
async def test_an_application_cannot_send_it_and_is_told_why(way: str, event: str) -> None:
    house = House()
    async with connect(house.channels) as client:
        await client.join("any:1")
        with pytest.raises(ValueError, match="reserved") as caught:
            WAYS[way](house, event)
        assert event[:4] in str(caught.value)
        assert await client.received_nothing()
        await client.heartbeat()


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_an_application_sends_whatever_else_it_likes(way: str) -> None:
    house = House()
    async with connect(house.channels) as client, connect(house.channels) as other:
        await client.join("any:1")
        await other.join("any:1")
        for event in ORDINARY:
            WAYS[way](house, event)
            WAYS[way](house, event)
            hears = other if way == "Socket.broadcast_from" else client
            assert [(await hears.receive()).event for _ in range(2)] == [event, event]


@pytest.mark.parametrize("event", RESERVED)
def test_neither_can_a_broker_a_publisher_and_the_command(event: str) -> None:
    broker = Broker()
    for send in (broker.broadcast, broker.publish, Publisher("redis://localhost:1").broadcast):
        with pytest.raises(ValueError, match="reserved"):
            send("t", event, {})


def test_the_command_says_what_is_wrong() -> None:
    result = command("redis://localhost:1", "t", "phx_close")
    assert result.returncode == 2
    assert "Invalid value for EVENT" in result.stderr
    assert "names that begin with 'phx_'" in result.stderr


@pytest.mark.parametrize("event", RESERVED)
def test_no_channel_tells_of_gaps_by_such_a_name(event: str) -> None:
    with pytest.raises(TypeError, match="the name of an event of yours"):
        channel("room:*", resync=event)


@pytest.mark.anyio
async def test_what_an_application_relays_of_presences_names_ends_at_the_application() -> None:
    house = House()
    async with connect(house.channels) as mallory, connect(house.channels) as bob:
        theirs = await mallory.join("any:1")
        await bob.join("any:1")
        for event in PRESENCE:
            assert await theirs.push(event, {"joins": {}, "leaves": {}}) == Reply("ok")
        assert await bob.received_nothing()
    assert len(house.errors) == 6
    assert house.counts == {}


@pytest.fixture
async def crowd() -> AsyncIterator[tuple[Client, Joined, list[Any]]]:
    presence = Presence()
    diffs: list[Any] = []

    @channel("room:*")
    async def room(socket: Socket[Any], payload: Any) -> None:
        presence.track(socket, "ann", {})
        presence.push_state(socket)

    @room.intercept("presence_diff")
    async def pass_on(socket: Socket[Any], payload: dict[str, Any]) -> None:
        diffs.append(payload)
        with pytest.raises(ValueError, match="reserved"):
            socket.push("presence_state", payload)
        with pytest.raises(ValueError, match="reserved"):
            socket.broadcast("presence_diff", payload)
        socket.push("presence_diff", {**payload, "signed": True})

    async with connect(Channels([room], presence=presence)) as client:
        yield client, await client.join("room:a"), diffs


@pytest.mark.anyio
async def test_presence_sends_its_own_and_who_intercepts_a_diff_may_push_it(
    crowd: tuple[Client, Joined, list[Any]],
) -> None:
    _, joined, diffs = crowd
    assert "ann" in await joined.receive("presence_state")
    diff = await joined.receive("presence_diff")
    assert diff["signed"] is True
    assert "ann" in diff["joins"]
    assert len(diffs) == 1
    assert PresenceDiff(diff["joins"], diff["leaves"]).leaves == {}


@pytest.mark.anyio
async def test_what_another_process_broadcasts_under_such_a_name_reaches_no_client(engine_server: EngineServer) -> None:
    """Of another version, or no process of ours at all: whoever may publish on the engine."""
    async with brokers(engine_server.url, 2) as (here, there):
        ear = Ear(here, "t")
        await ear.hears(there)
        before = here.counts["reserved_event"]
        relay = there._relay  # pyright: ignore[reportPrivateUsage]
        assert relay is not None
        body = encode_payload({"n": 99})
        for event in RESERVED:
            relay.publish(payload_kind(body), topic_channel("t"), event, body)
        there.broadcast("t", "e", {"n": 1})
        await ear.until(lambda: 1 in ear.numbers)
        assert 99 not in ear.numbers
        assert ear.lost == 0
        assert here.counts["reserved_event"] - before == len(RESERVED)


@given(st.text(max_size=20))
def test_only_the_names_that_clients_act_on_are_reserved(event: str) -> None:
    assert is_ordinary(event) is not (event.startswith(("phx_", "chan_reply_")) or event in PRESENCE)
    assert is_ordinary(event) or event not in ORDINARY_EVENTS


def test_names_that_clients_choose_fill_no_memory() -> None:
    for number in range(2 * MOST_REMEMBERED):
        assert is_ordinary(f"event {number}")
    assert is_ordinary("x" * 1_000_000)
    assert len(ORDINARY_EVENTS) <= MOST_REMEMBERED
    assert max(map(len, ORDINARY_EVENTS)) <= LONGEST_REMEMBERED


def test_raw_payloads_are_no_way_around() -> None:
    with pytest.raises(ValueError, match="reserved"):
        Broker().broadcast("t", "phx_reply", Raw(b'{"status": "ok", "response": {}}'))


@pytest.mark.anyio
async def test_neither_is_another_thread() -> None:
    house = House()
    async with connect(house.channels) as client:
        await client.join("any:1")

        def push() -> None:
            house.sockets[0].push("phx_close", {})

        with pytest.raises(ValueError, match="reserved"):
            await anyio.to_thread.run_sync(push)
