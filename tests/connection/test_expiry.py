"""Identities that expire while a client is connected: it is told, it may refresh, or it is closed with 4001."""

from datetime import UTC, datetime, timedelta
from time import time
from typing import Any

import anyio
import pytest
from msgspec import Struct
from trio.testing import MockClock

from starlette_channels import Channels, ConnectError, Expiry, Handshake, Limits, Reply, Socket, channel
from starlette_channels.exceptions import ExpiredToken
from starlette_channels.testing import Client, ConnectionClosed, HandshakeRefused, Received, connect
from tests.conftest import error, until
from tests.support.effort import some

pytestmark = pytest.mark.anyio

PATIENT = Limits(idle_seconds=1e9)


class User(Struct):
    name: str
    expires_at: float | datetime | None
    roles: tuple[str, ...] = ()


class Renewal(Struct):
    token: str
    seconds: float | None = None


class Bank:
    """Channels of users that expire; what a renewal's token says decides."""

    def __init__(self, *, refreshable: bool = True, notice_seconds: float = 60.0, limits: Limits = PATIENT) -> None:
        self.seen: list[Any] = []
        self.ends: list[str] = []
        self.gate = anyio.Event()

        async def enter(conn: Handshake) -> User:
            seconds = conn.params.get("seconds")
            return User(str(conn.params.get("user", "")), None if seconds is None else time() + float(str(seconds)))

        async def refresh(user: User, renewal: Renewal) -> User:
            match renewal.token:
                case "stolen":
                    raise ConnectError("stolen token")
                case "silent":
                    raise ConnectError
                case "old":
                    raise ExpiredToken("expired token")
                case "broken":
                    raise ZeroDivisionError
                case "slow":
                    await self.gate.wait()
                case _:
                    pass
            name = "mallory" if renewal.token == "mallory's" else user.name
            return User(name, None if renewal.seconds is None else time() + renewal.seconds, ("editor",))

        @channel("room:*")
        async def room(socket: Socket[User], payload: Any) -> None:
            pass

        @room.on("roles")
        async def roles(socket: Socket[User], payload: Any) -> dict[str, Any]:
            return {"roles": socket.assigns.roles}

        @room.on_refresh
        async def refreshed(socket: Socket[User], assigns: User) -> None:
            self.seen.append((socket.topic, assigns.roles))
            socket.assigns = assigns
            if socket.subtopic == "private":
                socket.stop()

        @room.terminate
        async def terminate(socket: Socket[User], reason: str) -> None:
            self.ends.append(reason)

        @channel("plain")
        async def plain(socket: Socket[User], payload: Any) -> None:
            pass

        @plain.on("roles")
        async def plain_roles(socket: Socket[User], payload: Any) -> dict[str, Any]:
            return {"roles": socket.assigns.roles}

        self.channels = Channels(
            [room, plain],
            connect=enter,
            socket_id=lambda user: f"user:{user.name}",
            expiry=Expiry(
                at=lambda user: user.expires_at,
                refresh=refresh if refreshable else None,
                notice_seconds=notice_seconds,
            ),
            limits=limits,
        )

    @property
    def counts(self) -> dict[str, int]:
        """What has been counted, the end of connections left out."""
        return dict(self.channels.statistics().counts)

    def nothing_left(self) -> bool:
        """Whether nobody is looked after any more."""
        lifetimes = self.channels._service.lifetimes  # pyright: ignore[reportPrivateUsage]
        assert lifetimes is not None
        return not lifetimes._timers and not lifetimes._refreshing  # pyright: ignore[reportPrivateUsage]


async def refresh(client: Client, token: str, seconds: float | None = None, **more: Any) -> Reply:
    """Ask to go on."""
    ref = client.ref()
    client.send(None, ref, "phoenix", "refresh", {"token": token, "seconds": seconds, **more})
    return await client.reply(ref)


async def expiring(client: Client) -> Received:
    """Wait for the notice."""
    return await client.receive(lambda one: one.event == "expiring", "the notice")


async def end(client: Client) -> tuple[int, str]:
    """Wait for the close; return code and reason."""
    await client.closed()
    with pytest.raises(ConnectionClosed) as caught:
        await client.receive(lambda _: False)
    return caught.value.code, caught.value.reason


async def test_a_client_is_told_a_minute_before_and_closed_with_4001_when_its_time_is_over(
    virtual_clock: MockClock,
) -> None:
    bank = Bank()
    async with connect(bank.channels, user="ann", seconds=3600, timeout=4000) as client:
        room = await client.join("room:a")
        begin = anyio.current_time()
        assert await expiring(client) == Received(None, None, "phoenix", "expiring", {"seconds": 60})
        assert 3540 - 1 < anyio.current_time() - begin < 3540 + 1.1
        assert (await room.push("roles")).status == "ok"
        assert await end(client) == (4001, "expired")
        assert 3600 - 1 < anyio.current_time() - begin < 3600 + 1.1
        await until(lambda: bank.ends == ["closed"])
        await until(bank.nothing_left)
    assert bank.counts == {"expired": 1}


async def test_a_refresh_lets_the_client_stay_and_be_told_again(virtual_clock: MockClock) -> None:
    bank = Bank()
    async with connect(bank.channels, user="ann", seconds=100, timeout=4000) as client:
        await expiring(client)
        assert await refresh(client, "new", 1000) == Reply("ok", {"seconds": 1000})
        begin = anyio.current_time()
        await expiring(client)
        assert 940 - 1 < anyio.current_time() - begin < 940 + 1.1
        assert await end(client) == (4001, "expired")
        assert 1000 - 1 < anyio.current_time() - begin < 1000 + 1.1


async def test_a_refresh_without_an_end_lets_the_client_stay_for_ever(virtual_clock: MockClock) -> None:
    bank = Bank()
    async with connect(bank.channels, user="ann", seconds=100, timeout=1e6) as client:
        assert await refresh(client, "new") == Reply("ok", {"seconds": None})
        assert bank.nothing_left()
        await anyio.sleep(some(of=80_000))
        assert await client.received_nothing()


async def test_a_client_with_less_time_than_the_notice_is_told_at_once(virtual_clock: MockClock) -> None:
    async with connect(Bank().channels, user="ann", seconds=30, timeout=100) as client:
        assert (await expiring(client)).payload == {"seconds": pytest.approx(30, abs=1)}  # pyright: ignore
        assert await client.closed() == 4001


async def test_each_client_has_its_own_time(virtual_clock: MockClock) -> None:
    bank = Bank(notice_seconds=0)
    async with (
        connect(bank.channels, user="ann", seconds=200, timeout=1000) as late,
        connect(bank.channels, user="bob", seconds=100, timeout=1000) as early,
        connect(bank.channels, user="eve", timeout=1000) as never,
    ):
        begin = anyio.current_time()
        assert await end(early) == (4001, "expired")
        assert 99 < anyio.current_time() - begin < 102
        assert await late.heartbeat() == Reply("ok", {})
        assert await end(late) == (4001, "expired")
        assert 199 < anyio.current_time() - begin < 202
        assert await never.heartbeat() == Reply("ok", {})
        await until(bank.nothing_left)


async def test_who_has_gone_is_not_looked_after_any_more() -> None:
    bank = Bank()
    async with connect(bank.channels, user="ann", seconds=3600) as client:
        await client.heartbeat()
        assert not bank.nothing_left()
    await until(bank.nothing_left)
    async with connect(bank.channels, user="ann", seconds=3600) as client:
        await client.heartbeat()
        assert not bank.nothing_left()
    await until(bank.nothing_left)


async def test_the_channels_see_the_new_identity_and_may_end() -> None:
    bank = Bank()
    async with connect(bank.channels, user="ann", seconds=100) as client:
        a, private, plain = [await client.join(topic) for topic in ("room:a", "room:private", "plain")]
        await refresh(client, "new", 1000)
        await private.receive("phx_close")
        assert await a.push("roles") == Reply("ok", {"roles": ["editor"]})
        assert await plain.push("roles") == Reply("ok", {"roles": []})  # it has not asked to be told
        late = await client.join("room:b")
        assert await late.push("roles") == Reply("ok", {"roles": ["editor"]})
        assert sorted(bank.seen) == [("room:a", ("editor",)), ("room:private", ("editor",))]
        assert bank.ends == ["stopped"]


@pytest.mark.parametrize(
    ("token", "reason", "counted"),
    [
        ("stolen", "stolen token", "refresh_refused"),
        ("silent", "refused", "refresh_refused"),
        ("old", "expired token", "refresh_refused"),
        ("mallory's", "another identity", "refresh_refused"),
        ("broken", "refresh crashed", "refresh_crashed"),
    ],
)
async def test_a_refused_refresh_is_answered_and_the_client_may_try_again(
    token: str, reason: str, counted: str
) -> None:
    bank = Bank()
    async with connect(bank.channels, user="ann", seconds=100) as client:
        room = await client.join("room:a")
        assert await refresh(client, token, 1000) == Reply(**_reply(reason))
        assert await refresh(client, "new", -1) == Reply(**_reply("expired"))
        assert await room.push("roles") == Reply("ok", {"roles": []})
        assert await refresh(client, "new", 1000) == Reply("ok", {"seconds": 1000})
    assert bank.counts == (
        {"refresh_refused": 2} if counted == "refresh_refused" else {counted: 1, "refresh_refused": 1}
    )


def _reply(reason: str) -> dict[str, Any]:
    answer = error(reason)
    return {"status": answer["status"], "payload": answer["response"]}


async def test_a_refresh_whose_payload_does_not_fit_is_refused_with_where_and_why() -> None:
    bank = Bank()
    async with connect(bank.channels, user="ann", seconds=100) as client:
        ref = client.ref()
        client.send(None, ref, "phoenix", "refresh", {"token": 7})
        reply = await client.reply(ref)
        assert reply.payload == {"reason": "invalid payload", "detail": "Expected `str`, got `int` - at `$.token`"}


async def test_one_refresh_at_a_time_and_the_heartbeat_is_not_held_up() -> None:
    bank = Bank()
    async with connect(bank.channels, user="ann", seconds=100) as client:
        ref = client.ref()
        client.send(None, ref, "phoenix", "refresh", {"token": "slow", "seconds": 1000})
        assert await refresh(client, "new", 1000) == Reply("error", {"reason": "refresh in progress"})
        assert await client.heartbeat() == Reply("ok", {})
        bank.gate.set()
        assert await client.reply(ref) == Reply("ok", {"seconds": 1000})


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (Limits(idle_seconds=None), 10),
        (Limits(idle_seconds=None, handler_seconds=3), 3),
        (Limits(idle_seconds=None, handler_seconds=30, connect_seconds=20), 20),
    ],
)
async def test_a_refresh_that_hangs_is_cancelled_and_the_client_may_try_again(
    virtual_clock: MockClock, caplog: pytest.LogCaptureFixture, limits: Limits, seconds: float
) -> None:
    bank = Bank(limits=limits)
    async with connect(bank.channels, user="ann", seconds=3000, timeout=1000) as client:
        begin = anyio.current_time()
        assert await refresh(client, "slow", 1000) == Reply("error", {"reason": "refresh timed out"})
        assert anyio.current_time() - begin == pytest.approx(seconds, abs=0.1)  # pyright: ignore
        assert await refresh(client, "new", 1000) == Reply("ok", {"seconds": 1000})
    assert bank.counts == {"refresh_timeout": 1}
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert f"refresh took more than {seconds} seconds" in line
    assert f"{__name__}.Bank.__init__.<locals>.refresh" in line


async def test_a_client_that_goes_in_the_middle_of_a_refresh_leaves_nothing_behind() -> None:
    bank = Bank()
    async with connect(bank.channels, user="ann", seconds=100) as client:
        client.send(None, "1", "phoenix", "refresh", {"token": "slow", "seconds": 1000})
        await client.heartbeat()
        client.disconnect()
        await anyio.wait_all_tasks_blocked()
        bank.gate.set()
    await until(bank.nothing_left)


async def test_without_a_refresh_of_the_application_or_an_expiry_the_event_is_unmatched() -> None:
    for channels in (Bank(refreshable=False).channels, Channels([])):
        async with connect(channels, user="ann", seconds=100) as client:
            assert await refresh(client, "new") == Reply("error", {"reason": "unmatched topic"})


async def test_an_identity_that_has_expired_does_not_get_in() -> None:
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(Bank().channels, user="ann", seconds=-5):
            pass
    assert (caught.value.status, caught.value.body) == (401, "expired")


async def test_the_end_may_be_a_datetime() -> None:
    async def enter(_: Handshake) -> User:
        return User("ann", datetime.now(UTC) + timedelta(seconds=30))

    channels = Channels([], connect=enter, expiry=Expiry(at=lambda user: user.expires_at))
    async with connect(channels) as client:
        assert (await expiring(client)).payload == {"seconds": pytest.approx(30, abs=1)}  # pyright: ignore


@pytest.mark.parametrize("value", ["soon", True, datetime(2030, 1, 1)])
async def test_an_end_that_is_no_time_is_a_mistake_of_the_application(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def enter(_: Handshake) -> User:
        return User("ann", value)

    with pytest.raises(HandshakeRefused) as caught:
        async with connect(Channels([], connect=enter, expiry=Expiry(at=lambda user: user.expires_at))):
            pass
    assert caught.value.status == 500
    assert "Expiry(at=...)" in caplog.text


def test_a_refresh_that_cannot_work_is_refused_when_it_is_defined() -> None:
    def plain(user: User, payload: Renewal) -> User:
        return user

    with pytest.raises(TypeError, match=r"Expiry\(refresh=\.\.\.\): plain must be `async def`"):
        Channels([], connect=_anybody, expiry=Expiry(at=lambda user: None, refresh=plain))  # pyright: ignore


async def _anybody(_: Handshake) -> User:
    return User("", None)


async def test_a_channel_has_one_handler_for_a_refresh() -> None:
    @channel("room:*")
    async def room(socket: Socket[User], payload: Any) -> None: ...

    @room.on_refresh
    async def first(socket: Socket[User], assigns: User) -> None: ...

    with pytest.raises(ValueError, match=r"room\.on_refresh\(\): there is one already"):

        @room.on_refresh
        async def second(socket: Socket[User], assigns: User) -> None: ...
