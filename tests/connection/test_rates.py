"""How often a client may join, send and connect, and what it is told when that was too often."""

import logging
from collections import Counter
from typing import Any

import anyio
import pytest
from trio.testing import MockClock

from starlette_channels import Channels, Handshake, JoinError, Limits, Rate, Reply, Socket, channel
from starlette_channels.connection.identities import MOST_REMEMBERED, Identities, Quotas
from starlette_channels.connection.rate_limiter import HEAVY
from starlette_channels.connection.refusals import MOST_HELD
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import Mishaps
from starlette_channels.testing import Client, HandshakeRefused, JoinRefused, connect
from tests.conftest import OK, frames, until
from tests.support.polling import Poller

pytestmark = pytest.mark.anyio

BEAT: tuple[Any, ...] = (None, "beat", "phoenix", "heartbeat", {})


class Club:
    """Channels of users with names, which are their identities."""

    def __init__(self, **limits: Any) -> None:
        self.heard: list[Any] = []
        self.ends: list[str] = []
        self.doors = 0
        self.open = anyio.Event()

        async def enter(conn: Handshake) -> dict[str, Any]:
            if "slow" in conn.params:
                self.doors += 1
                await self.open.wait()
            return dict(conn.params)

        def socket_id(assigns: dict[str, Any]) -> str | None:
            return assigns.get("user")

        @channel("club:*")
        async def club(socket: Socket[dict[str, Any]], payload: dict[str, Any]) -> None:
            if "refuse" in payload:
                raise JoinError("members only")
            if "wait" in payload:
                await anyio.sleep(payload["wait"])

        @club.on("say")
        async def say(socket: Socket[dict[str, Any]], payload: Any) -> dict[str, Any]:
            self.heard.append(payload)
            return {}

        @club.on("wait")
        async def wait(socket: Socket[dict[str, Any]], payload: float) -> dict[str, Any]:
            await anyio.sleep(payload)
            return {}

        @club.info(float)
        async def info(socket: Socket[dict[str, Any]], seconds: float) -> None:
            await anyio.sleep(seconds)

        @club.on("again")
        async def again(socket: Socket[dict[str, Any]], payload: float) -> None:
            for _ in range(20):
                socket.send_info(payload)

        @club.terminate
        async def terminate(socket: Socket[dict[str, Any]], reason: str) -> None:
            self.ends.append(reason)

        self.channels: Channels[Any] = Channels(
            [club], connect=enter, socket_id=socket_id, longpoll=True, limits=Limits(**limits)
        )

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.channels.statistics().counts)


def limited(code: str, seconds: float) -> Reply:
    return Reply("error", {"reason": "rate limited", "code": code, "retry_after": pytest.approx(seconds, abs=0.002)})


# Messages.


async def test_a_message_too_many_is_told_when_to_come_again_and_then_it_is_taken(virtual_clock: MockClock) -> None:
    club = Club(message_rate=Rate(2, burst=3))
    async with connect(club.channels) as client:
        room = await client.join("club:a")
        for n in range(3):
            assert await room.push("say", n) == Reply("ok", {})
        refused = await room.push("say", "too many")
        assert refused == limited("too_many_messages", 0.25)  # half a token is left to rounding
        await anyio.sleep(refused.payload["retry_after"])
        assert await room.push("say", 3) == Reply("ok", {})
        assert await room.push("say", "too many") == limited("too_many_messages", 0.5)
        await anyio.sleep(1_000)
    assert club.heard == [0, 1, 2, 3]
    assert club.counts["too_many_messages"] == 2


async def test_who_keeps_to_the_rate_is_never_refused(virtual_clock: MockClock) -> None:
    """A cursor that moves at 60 Hz, with the limits that there are by default."""
    club = Club()
    async with connect(club.channels) as client:
        room = await client.join("club:a")
        for n in range(1_200):
            room.send("say", n)
            await anyio.sleep(1 / 60)
            await client.receive()
    assert len(club.heard) == 1_200
    assert club.counts == {}


@pytest.mark.parametrize("user", [{}, {"user": "ann"}])
async def test_large_bursts_are_counted_as_exactly_as_small_ones(
    virtual_clock: MockClock, user: dict[str, Any]
) -> None:
    club = Club(message_rate=Rate(10, burst=1_234), identity_message_rate=Rate(10, burst=3_000))
    async with connect(club.channels, **user) as client:
        room = await client.join("club:a")
        for n in range(1_240):
            room.send("say", n)
        await frames(client, 1_240)
        await anyio.sleep(2.0)
        for n in range(30):
            room.send("say", n)
        await frames(client, 30)
    assert len(club.heard) == 1_234 + 20
    assert club.counts == {"too_many_messages": 6 + 10}


async def test_a_message_too_many_without_a_ref_is_dropped_and_counted(virtual_clock: MockClock) -> None:
    club = Club(message_rate=Rate(1, burst=1))
    async with connect(club.channels) as client:
        room = await client.join("club:a")
        await room.push("say", "first")
        client.send(room.join_ref, None, "club:a", "say", "dropped")
        assert await client.received_nothing()
    assert club.heard == ["first"]
    assert club.counts == {"too_many_messages": 1}


async def test_heartbeats_and_leaves_are_answered_even_so(virtual_clock: MockClock) -> None:
    club = Club(message_rate=Rate(0.01, burst=1))
    async with connect(club.channels) as client:
        room = await client.join("club:a")
        await room.push("say", "first")
        for _ in range(5):
            assert await client.heartbeat() == Reply("ok", {})
        assert await room.leave() == Reply("ok", {})
        client.send("1", "gone already", "club:a", "phx_leave", {})
        assert await client.reply("gone already") == Reply("ok", {})
    assert club.counts == {}


async def test_other_clients_have_buckets_of_their_own(virtual_clock: MockClock) -> None:
    club = Club(message_rate=Rate(0.01, burst=1))
    async with connect(club.channels) as one, connect(club.channels) as other:
        here, there = await one.join("club:a"), await other.join("club:a")
        for n in range(5):
            here.send("say", n)
        await frames(one, 5)
        assert await there.push("say", "me, too") == Reply("ok", {})


async def test_events_without_a_channel_and_unknown_ones_count_as_well(virtual_clock: MockClock) -> None:
    async with connect(Club(message_rate=Rate(0.01, burst=2)).channels) as client:
        client.send(None, "1", "nowhere", "say", {})
        client.send(None, "2", "nowhere", "phx_join", {})
        client.send(None, "3", "nowhere", "say", {})
        reasons = [one.reply.payload["reason"] for one in await frames(client, 3)]
        assert reasons == ["unmatched topic", "unmatched topic", "rate limited"]


async def test_a_client_that_goes_on_is_closed_with_1008(
    virtual_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    club = Club(message_rate=Rate(1, burst=2), refusal_rate=Rate(1, burst=3))
    async with connect(club.channels) as client, connect(club.channels) as other:
        room, there = await client.join("club:a"), await other.join("club:a")
        for n in range(10):
            room.send("say", n)
        assert await client.closed() == 1008
        assert len([one for one in await frames(client, 1 + 5 - 1) if one.reply.status == "error"]) == 3
        assert await there.push("say", "still here") == Reply("ok", {})
    assert club.counts == {"too_many_messages": 3, "flooding": 1}
    assert "Connection closed with 1008: too many messages beyond the limits" in caplog.text
    assert "closed" in club.ends


async def test_a_client_that_sends_nothing_but_heartbeats_is_closed_if_there_are_too_many(
    virtual_clock: MockClock,
) -> None:
    async with connect(Club(message_rate=Rate(1, burst=2), refusal_rate=Rate(1, burst=3)).channels) as client:
        for _ in range(6):
            client.send(*BEAT)
        assert await client.closed() == 1008


async def test_a_client_a_little_too_fast_loses_messages_but_not_its_connection(virtual_clock: MockClock) -> None:
    club = Club(message_rate=Rate(10, burst=10), refusal_rate=Rate(4, burst=4))
    async with connect(club.channels) as client:
        room = await client.join("club:a")
        for n in range(500):  # twelve a second instead of ten
            room.send("say", n)
            await client.receive()
            await anyio.sleep(1 / 12)
    assert 400 < len(club.heard) < 450
    assert "flooding" not in club.counts


async def test_a_large_message_counts_as_many(virtual_clock: MockClock) -> None:
    club = Club(message_rate=Rate(1, burst=10), join_rate=Rate(1, burst=10))
    async with connect(club.channels) as client:
        room = await client.join("club:a")
        assert (await room.push("say", "x" * (5 * HEAVY))).status == "ok"
        assert (await room.push("say", "x" * (5 * HEAVY))) == limited("too_many_messages", 1.5)
        assert (await room.push("say", "x" * (3 * HEAVY + 100))).status == "ok"
        with pytest.raises(JoinRefused) as refused:
            await client.join("club:b", {"x": "x" * HEAVY})
        assert refused.value.reply == limited("too_many_messages", 0.5)
        assert (await client.join("club:b")).reply.status == "ok"


async def test_a_message_too_large_for_any_bucket_is_taken_when_the_bucket_is_full(virtual_clock: MockClock) -> None:
    club = Club(message_rate=Rate(1, burst=10))
    async with connect(club.channels) as client:
        room = await client.join("club:a")
        assert (await room.push("say", "x" * (50 * HEAVY))).status == "ok"
        assert (await room.push("say", "x" * (50 * HEAVY))) == limited("too_many_messages", 9.5)
        await anyio.sleep(10)
        assert (await room.push("say", "x" * (50 * HEAVY))).status == "ok"


async def test_none_switches_rates_off(virtual_clock: MockClock) -> None:
    off = dict.fromkeys(("message_rate", "identity_message_rate", "join_rate", "identity_join_rate", "backlog"))
    club = Club(**off)
    async with connect(club.channels, user="ann") as client:
        for _ in range(300):
            await client.join("club:a")
        room = await client.join("club:a")
        for n in range(3_000):
            room.send("say", n)
        await until(lambda: len(club.heard) == 3_000)
    assert club.counts == {}


async def test_every_limit_can_be_switched_off(virtual_clock: MockClock) -> None:
    club = Club(**dict.fromkeys(Limits.__struct_fields__))
    async with connect(club.channels, user="ann", timeout=10_000) as client:
        rooms = [await client.join(f"club:{n}") for n in range(300)]
        for room in rooms:
            room.send("say", "x" * 100_000)
        await frames(client, 300)
        await anyio.sleep(3_600)
        assert await client.heartbeat() == Reply("ok", {})
        with pytest.raises(JoinRefused):
            await client.join("club:no", {"refuse": 1})
    assert len(club.ends) == 300
    assert club.counts == {"join_refused": 1}


# Joins.


async def test_a_join_too_many_is_told_when_to_come_again(virtual_clock: MockClock) -> None:
    club = Club(join_rate=Rate(0.5, burst=2))
    async with connect(club.channels) as client:
        await client.join("club:a")
        await client.join("club:b")
        with pytest.raises(JoinRefused) as refused:
            await client.join("club:c")
        assert refused.value.reply == limited("too_many_joins", 1.0)
        await anyio.sleep(refused.value.reply.payload["retry_after"])
        room = await client.join("club:c")
        assert await room.push("say", "hello") == Reply("ok", {})
    assert club.counts == {"too_many_joins": 1}


async def test_a_second_join_that_is_refused_leaves_the_first_as_it_is(virtual_clock: MockClock) -> None:
    club = Club(join_rate=Rate(0.5, burst=1))
    async with connect(club.channels) as client:
        room = await client.join("club:a")
        with pytest.raises(JoinRefused):
            await client.join("club:a")
        assert await room.push("say", "hello") == Reply("ok", {})


async def test_all_that_a_client_has_joined_can_be_joined_at_once_after_a_restart() -> None:
    club = Club()
    async with connect(club.channels, user="ann") as client:
        for _ in range(2):
            for n in range(100):
                client.send(str(n), str(n), f"club:{n}", "phx_join", {})
        replies = [one for one in await frames(client, 300) if one.event == "phx_reply"]
        assert [one.payload for one in replies] == [OK] * 200
    assert club.counts == {}


# Identities.


async def test_the_connections_of_one_user_share_the_rates_of_the_user(virtual_clock: MockClock) -> None:
    club = Club(identity_message_rate=Rate(1, burst=4), identity_join_rate=Rate(1, burst=3))
    async with connect(club.channels, user="ann") as one, connect(club.channels, user="ann") as two:
        here, there = await one.join("club:a"), await two.join("club:a")
        await two.join("club:b")
        with pytest.raises(JoinRefused) as refused:
            await one.join("club:b")
        assert refused.value.reply == limited("too_many_identity_joins", 0.5)
        for room in (here, there, here, there):
            assert await room.push("say") == Reply("ok", {})
        assert await here.push("say") == limited("too_many_identity_messages", 0.5)
        assert await there.push("say") == limited("too_many_identity_messages", 0.5)
        async with connect(club.channels, user="bob") as other, connect(club.channels) as nobody:
            assert await (await other.join("club:a")).push("say") == Reply("ok", {})
            assert await (await nobody.join("club:a")).push("say") == Reply("ok", {})
    assert club.counts == {"too_many_identity_joins": 1, "too_many_identity_messages": 2}


async def test_a_user_is_the_same_over_every_transport(virtual_clock: MockClock) -> None:
    club = Club(identity_message_rate=Rate(0.01, burst=2), identity_connections=2)
    polling = await Poller(club.channels, user="ann").open()
    await polling.join("club:a")
    async with connect(club.channels, user="ann") as client:
        room = await client.join("club:a")
        assert await room.push("say") == Reply("ok", {})
        assert await polling.post(["1", "2", "club:a", "say", {}], ["1", "3", "club:a", "say", {}]) == 200
        statuses = [frame[4]["status"] for frame in (await polling.poll()).frames]
        assert sorted(statuses) == ["error", "ok"]
        assert (await room.push("say")).payload["code"] == "too_many_identity_messages"
        refused = await Poller(club.channels, user="ann").request("GET")()
        assert (refused.status, refused.headers["retry-after"]) == (429, "10")


async def test_coming_back_does_not_fill_a_users_bucket(virtual_clock: MockClock) -> None:
    club = Club(identity_message_rate=Rate(1, burst=3))
    async with connect(club.channels, user="ann") as client:
        room = await client.join("club:a")
        for _ in range(3):
            assert await room.push("say") == Reply("ok", {})
    async with connect(club.channels, user="ann") as client:
        room = await client.join("club:a")
        assert (await room.push("say")).status == "error"
        await anyio.sleep(3)
        for _ in range(3):
            assert await room.push("say") == Reply("ok", {})


async def test_nothing_is_kept_of_users_who_are_gone(virtual_clock: MockClock) -> None:
    club = Club(identity_message_rate=Rate(1, burst=3))
    identities = club.channels._service.identities  # pyright: ignore[reportPrivateUsage]
    for n in range(10):
        async with connect(club.channels, user=f"user {n}") as client:
            await (await client.join("club:a")).push("say")
            assert len(identities) >= 1
        with pytest.raises(HandshakeRefused):
            async with connect(club.channels, user=f"user {n}", vsn="9.0.0"):
                pass
    await anyio.sleep(10)
    async with connect(club.channels, user="the last"):
        pass
    assert len(identities) == 0


def test_those_who_are_remembered_are_bounded_however_many_come_and_go() -> None:
    quotas = Quotas(Bounds(identity_message_rate=Rate(0.001, burst=1)))
    identities = Identities(quotas)
    for n in range(MOST_REMEMBERED + 100):
        identity = identities.enter(str(n))
        assert identity.draw_messages(1, 1.0) is None
        identities.leave(identity, 1.0)
    assert len(identities) == MOST_REMEMBERED
    assert identities.enter("0").draw_messages(1, 1.0) is None, "the oldest is forgotten"
    assert identities.enter(str(MOST_REMEMBERED)).draw_messages(1, 1.0) is not None


# Connections.


async def test_one_connection_too_many_is_told_when_to_come_again(caplog: pytest.LogCaptureFixture) -> None:
    club = Club(connections=2)
    async with connect(club.channels):
        poller = await Poller(club.channels).open()
        for _ in range(2):
            with pytest.raises(HandshakeRefused) as refused:
                async with connect(club.channels):
                    pass
            assert refused.value.status == 503
        answer = await Poller(club.channels).request("GET")()
        assert (answer.status, answer.headers["retry-after"]) == (503, "10")
        assert (await poller.post(list(BEAT))) == 200
    async with connect(club.channels) as client:
        assert await client.heartbeat() == Reply("ok", {})
    assert club.counts == {"too_many_connections": 3}
    assert "Connection refused with 503: '2 connections are open'" in caplog.text


async def test_clients_that_are_on_their_way_in_count_as_well() -> None:
    club = Club(connections=2, identity_connections=1)
    async with connect(club.channels):
        request = Poller(club.channels, slow="", user="ann").request("GET")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(request)
            await until(lambda: club.doors == 1)
            with pytest.raises(HandshakeRefused) as refused:
                async with connect(club.channels):
                    pass
            assert refused.value.status == 503
            club.open.set()
        assert request.json["status"] == 410
    with pytest.raises(HandshakeRefused) as refused:
        async with connect(club.channels, user="ann"):
            pass
    assert (refused.value.status, club.counts["too_many_identity_connections"]) == (429, 1)


async def test_clients_that_are_refused_or_vanish_take_no_place() -> None:
    club = Club(connections=1, identity_connections=1)
    service = club.channels._service  # pyright: ignore[reportPrivateUsage]

    async def vanish(message: Any) -> None:
        raise OSError("the client is gone")

    for _ in range(3):
        with pytest.raises(HandshakeRefused):
            async with connect(club.channels, user="ann", vsn="9.0.0"):
                pass
        client = Client(5.0)
        client._take = vanish  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(HandshakeRefused):
            async with client.talking_to(club.channels, scope(user="ann")):
                pass
    assert (service.arriving, len(service.identities), len(service.connections)) == (0, 0, 0)
    async with connect(club.channels, user="ann") as client:
        await client.heartbeat()


def scope(**params: str) -> dict[str, Any]:
    query = "&".join(f"{name}={value}" for name, value in params.items())
    return {"type": "websocket", "path": "/websocket", "query_string": query.encode(), "headers": [], "state": {}}


async def test_a_connect_that_takes_too_long_is_given_up(
    virtual_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    club = Club(connect_seconds=3.0)
    start = anyio.current_time()
    with pytest.raises(HandshakeRefused) as refused:
        async with connect(club.channels, slow=""):
            pass
    assert refused.value.status == 503
    assert (await Poller(club.channels, slow="").request("GET")()).status == 503
    assert anyio.current_time() - start == pytest.approx(6.0)
    assert club.counts == {"connect_timeout": 2}
    assert "connect took more than 3 seconds" in caplog.text


# Refusals that are held back.


async def refusals(client: Client, number: int) -> list[tuple[float, Any]]:
    """When the next answers come, and why they are no."""
    found: list[tuple[float, Any]] = []
    for _ in range(number):
        reply = (await client.receive()).reply
        found.append((round(anyio.current_time(), 2), reply.payload["reason"]))
    return found


async def test_refused_joins_are_answered_later_and_nobody_waits_for_that(virtual_clock: MockClock) -> None:
    club = Club(refusal_seconds=2.0, channels=1, join_rate=Rate(0.01, burst=3))
    async with connect(club.channels) as client:
        start = round(anyio.current_time(), 2)
        client.send("1", "1", "club:no", "phx_join", {"refuse": 1})
        client.send("2", "2", "nowhere", "phx_join", {})
        room = await client.join("club:a")
        assert await room.push("say") == Reply("ok", {})
        await anyio.sleep(1.0)
        client.send("3", "3", "club:b", "phx_join", {})
        client.send("4", "4", "club:a", "phx_join", {})
        assert (await client.reply("4")) == Reply("ok", {})
        client.send("5", "5", "club:a", "phx_join", {})
        assert round(anyio.current_time(), 2) == start + 1.0
        await client.receive(lambda one: one.event == "phx_close")
        assert sorted(await refusals(client, 4)) == [
            (start + 2.0, "members only"),
            (start + 2.0, "unmatched topic"),
            (start + 3.0, "rate limited"),
            (start + 3.0, "too many channels joined"),
        ]


async def test_no_task_waits_for_each_refusal_and_only_so_many_wait(virtual_clock: MockClock, count_tasks: Any) -> None:
    club = Club(refusal_seconds=5.0)
    async with connect(club.channels, timeout=100) as client, connect(club.channels, timeout=100) as other:
        before = count_tasks()
        start = anyio.current_time()
        for n in range(MOST_HELD + 20):
            client.send("1", str(n), "nowhere", "phx_join", {})
            other.send("1", str(n), "nowhere", "phx_join", {})
        await frames(client, 20)
        await frames(other, 20)
        assert anyio.current_time() == start
        await until(lambda: count_tasks() <= before + 1)
        await frames(client, MOST_HELD)
        assert anyio.current_time() - start == pytest.approx(5.0)
        await frames(other, MOST_HELD)
        await anyio.wait_all_tasks_blocked()
        assert count_tasks() == before


async def test_a_client_that_goes_takes_its_refusals_with_it(virtual_clock: MockClock) -> None:
    club = Club(refusal_seconds=5.0)
    async with connect(club.channels) as client:
        client.send("1", "1", "nowhere", "phx_join", {})
        await client.heartbeat()
    await anyio.sleep(10.0)
    assert club.channels.statistics().connections == 0


async def test_a_replaced_channel_says_goodbye_after_the_refusal_of_the_new_one(virtual_clock: MockClock) -> None:
    async with connect(Club(refusal_seconds=3.0).channels) as client:
        await client.join("club:a")
        client.send("2", "2", "club:a", "phx_join", {"refuse": 1})
        assert [one.event for one in await frames(client, 2)] == ["phx_reply", "phx_close"]


# Handlers that take too long.


async def test_a_handler_that_takes_too_long_ends_its_channel_and_no_other(
    virtual_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    club = Club(handler_seconds=8.0)
    async with connect(club.channels, timeout=100) as client:
        room, other = await client.join("club:a"), await client.join("club:b")
        start = anyio.current_time()
        room.send("wait", 1_000)
        other.send("wait", 7.9)
        assert await client.reply("4") == Reply("ok", {})
        assert await room.receive("phx_error") == {"reason": "channel_crash"}
        assert 8.0 <= anyio.current_time() - start <= 9.0
        assert await other.push("say") == Reply("ok", {})
        await anyio.sleep(30)
        assert await other.push("say") == Reply("ok", {})
    assert club.ends == ["error", "closed"]
    assert club.counts == {"handler_timeout": 1}
    assert "a handler took more than 8 seconds" in caplog.text


async def test_many_handlers_in_a_row_may_take_as_long_as_they_like(virtual_clock: MockClock) -> None:
    """The messages are one object, again and again: each is handled in time, all of them are not."""
    club = Club(handler_seconds=8.0, idle_seconds=None)
    async with connect(club.channels, timeout=1_000) as client:
        room = await client.join("club:a")
        room.send("again", 7.0)
        for _ in range(20):
            room.send("wait", 7.0)
        await frames(client, 20)
        assert await room.push("say") == Reply("ok", {})
    assert club.counts == {}


async def test_a_join_that_takes_too_long_is_refused(virtual_clock: MockClock) -> None:
    club = Club(handler_seconds=8.0)
    async with connect(club.channels, timeout=100) as client:
        start = anyio.current_time()
        with pytest.raises(JoinRefused) as refused:
            await client.join("club:a", {"wait": 1_000})
        assert refused.value.reply == Reply("error", {"reason": "join timed out"})
        assert anyio.current_time() - start == pytest.approx(8.0)
        await client.join("club:a", {"wait": 7.9})
    assert club.counts == {"join_timeout": 1}


async def test_no_task_is_left_when_no_handler_waits(virtual_clock: MockClock, count_tasks: Any) -> None:
    club = Club(handler_seconds=8.0)
    async with connect(club.channels, timeout=100) as client:
        room = await client.join("club:a")
        await anyio.sleep(2.0)
        before = count_tasks()
        await room.push("wait", 1.0)
        await anyio.sleep(2.0)
        assert count_tasks() == before


# What is said of it.


def test_log_lines_are_few_and_say_how_many_there_were_not(caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    now = 1_000.0
    mishaps = Mishaps(counts, lambda: now)
    logger = logging.getLogger("starlette_channels.connection")
    for n in range(1_000):
        mishaps.note("too_many_messages", logger, "message %d", n)
    mishaps.note("another", logger, "another")
    now += 10.0
    mishaps.note("too_many_messages", logger, "message %d", 1_000)
    mishaps.note("too_many_messages", logger, "message %d", 1_001)
    assert counts == {"too_many_messages": 1_002, "another": 1}
    assert [record.message for record in caplog.records] == [
        *(f"message {n}" for n in range(20)),
        "another",
        "message 1000 (and 980 like it that were not logged)",
    ]


async def test_a_flood_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    club = Club(message_rate=Rate(0.1, burst=1))
    async with connect(club.channels) as client:
        for n in range(500):
            client.send(None, n, "nowhere", "x\n" * 100, {})
        await frames(client, 500)
    assert len(caplog.records) < 50
    assert club.counts == {"unmatched_topic": 1, "too_many_messages": 499}
