"""What is logged, at which level, and of which client and topic."""

import logging
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from starlette_channels import Channels, Handshake, JoinError, LogContext, LogOptions, Reply, Socket, channel
from starlette_channels.observability.log_context import HERE
from starlette_channels.testing import connect

pytestmark = pytest.mark.anyio

mine = logging.getLogger("my_application")


class House:
    """Channels that log in every place where an application can."""

    def __init__(self, log: LogOptions | None = None, **levels: Any) -> None:
        self.gates: dict[str, anyio.Event] = {}

        async def enter(conn: Handshake) -> dict[str, Any]:
            return dict(conn.params)

        @channel("room:*", **levels)
        async def room(socket: Socket[dict[str, Any]], payload: dict[str, Any]) -> None:
            mine.info("join")
            if "refuse" in payload:
                raise JoinError("no")
            socket.on_close(self.cleanup)

        @room.on("say")
        async def say(socket: Socket[dict[str, Any]], payload: Any) -> dict[str, Any]:
            mine.info("say")
            return {}

        @room.on("crash")
        async def crash(socket: Socket[dict[str, Any]], payload: Any) -> None:
            raise ZeroDivisionError("a bug")

        @room.on("wait")
        async def wait(socket: Socket[dict[str, Any]], payload: str) -> dict[str, Any]:
            await self.gates.setdefault(payload, anyio.Event()).wait()
            mine.info("waited")
            await anyio.to_thread.run_sync(mine.info, "in a thread")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.child)
            return {}

        @room.on("start")
        async def start(socket: Socket[dict[str, Any]], payload: Any) -> dict[str, Any]:
            socket.start_soon(self.child)
            socket.send_info("tick")
            return {}

        @room.info(str)
        async def info(socket: Socket[dict[str, Any]], message: str) -> None:
            mine.info("info")

        @room.intercept("news")
        async def news(socket: Socket[dict[str, Any]], payload: Any) -> None:
            mine.info("intercepted")

        @room.terminate
        async def terminate(socket: Socket[dict[str, Any]], reason: str) -> None:
            mine.info("terminate")

        self.channels: Channels[Any] = Channels(
            [room], connect=enter, socket_id=lambda assigns: assigns.get("user"), log=log
        )

    async def child(self) -> None:
        await anyio.lowlevel.checkpoint()
        mine.info("child")

    async def cleanup(self) -> None:
        mine.info("cleanup")


def ours(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (record.levelname, record.message)
        for record in caplog.records
        if record.name.startswith("starlette_channels") and "transport" not in record.name
    ]


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "starlette_channels")
    caplog.set_level(logging.DEBUG, "my_application")


async def test_connects_joins_events_and_ends_are_logged_with_what_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    async with connect(House().channels, user="ann", token="hunter2") as client:
        room = await client.join("room:a", {"page": 1})
        assert await room.push("say", {"text": "hi", "password": "hunter2"}) == Reply("ok", {})
        room.send("say", b"bytes")
        await client.receive()
        client.send("9", "9", "room:b", "phx_join", {"refuse": 1})
        await client.reply("9")
        await room.leave()
    parameters = '{"user":"ann","token":"[FILTERED]","vsn":"2.0.0"}'
    assert ours(caplog) == [
        ("INFO", f"Connected: number 1, parameters {parameters}"),
        ("INFO", "<JoinedChannel 'room:a'>: joined, connection 1 of 'ann', parameters {\"page\":1}"),
        (
            "DEBUG",
            "<JoinedChannel 'room:a'>: event 'say', connection 1 of 'ann', parameters "
            '{"text":"hi","password":"[FILTERED]"}',
        ),
        ("DEBUG", "<JoinedChannel 'room:a'>: event 'say', connection 1 of 'ann', parameters <5 bytes>"),
        ("INFO", "<JoinedChannel 'room:b'>: refused, join_refused, connection 1 of 'ann', parameters {\"refuse\":1}"),
        ("DEBUG", "<JoinedChannel 'room:a'> ended: left, connection 1 of 'ann'"),
        ("INFO", "Disconnected: number 1"),
    ]


async def test_each_channel_has_levels_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    house = House(LogOptions(connect="warning"), log_join="error", log_handle_in="info")
    async with connect(house.channels) as client:
        await (await client.join("room:a")).push("say")
    assert [level for level, _ in ours(caplog)] == ["WARNING", "ERROR", "INFO", "DEBUG", "WARNING"]


async def test_none_means_not_at_all_and_crashes_are_told_even_so(caplog: pytest.LogCaptureFixture) -> None:
    async with connect(House(LogOptions(connect=None), log_join=None, log_handle_in=None).channels) as client:
        room = await client.join("room:a")
        await room.push("say")
        room.send("crash")
        await room.receive("phx_error")
    assert ours(caplog) == [
        (
            "ERROR",
            f"<JoinedChannel 'room:a'> ended: event 'crash', {House.__module__}.House.__init__.<locals>.crash, raised",
        )
    ]


async def test_what_nobody_wants_to_see_is_not_computed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "starlette_channels")
    house = House()
    parameters = house.channels._service.parameters  # pyright: ignore[reportPrivateUsage]
    monkeypatch.delattr(type(parameters), "show")
    monkeypatch.delattr(type(parameters), "show_value")
    async with connect(house.channels) as client:
        assert await (await client.join("room:a")).push("say") == Reply("ok", {})


async def test_filters_are_those_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    async with connect(House(LogOptions(filter_parameters=("page",))).channels) as client:
        await client.join("room:a", {"page": 1, "password": "x"})
    async with connect(House(LogOptions(keep_parameters=("page",))).channels) as client:
        await client.join("room:a", {"page": 1, "body": "x"})
    joins = [message for _, message in ours(caplog) if "joined" in message]
    assert joins[0].endswith('{"page":"[FILTERED]","password":"x"}')
    assert joins[1].endswith('{"page":1,"body":"[FILTERED]"}')


def test_a_level_that_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"channel\(log_join='loud'\): there is no such level: use 'debug'"):
        channel("room:*", log_join="loud")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"LogOptions\(connect='loud'\): there is no such level"):
        Channels([], log=LogOptions(connect="loud"))  # pyright: ignore[reportArgumentType]


# Of which client and topic.


@pytest.fixture
def context(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    context = LogContext()
    caplog.handler.addFilter(context)
    yield
    caplog.handler.removeFilter(context)
    HERE.wanted = False


def told(caplog: pytest.LogCaptureFixture, *messages: str) -> list[tuple[str, ...]]:
    """The application's own records, with what the filter gave them."""
    attributes = ("message", "topic", "event", "socket_id", "connection")
    records = [record for record in caplog.records if record.name == mine.name]
    return [
        tuple(str(getattr(record, attribute)) for attribute in attributes)
        for record in records
        if not messages or record.message in messages
    ]


async def test_records_of_the_application_know_client_topic_and_event(
    caplog: pytest.LogCaptureFixture, context: None
) -> None:
    house = House()
    mine.info("outside")
    async with connect(house.channels, user="ann") as client:
        room = await client.join("room:a")
        await room.push("say")
        await room.push("start")
        await anyio.wait_all_tasks_blocked()
        house.channels.broadcast("room:a", "news", {})
        await anyio.wait_all_tasks_blocked()
        await room.leave()
        await anyio.wait_all_tasks_blocked()
    mine.info("outside")
    found = told(caplog)
    assert found[0] == found[-1] == ("outside", "-", "-", "-", "-")
    assert sorted(found[1:-1]) == sorted(
        (message, "room:a", event, "ann", "1")
        for message, event in [
            ("join", "phx_join"),
            ("say", "say"),
            ("child", "-"),
            ("info", "-"),
            ("intercepted", "news"),
            ("terminate", "phx_leave"),
            ("cleanup", "phx_leave"),
        ]
    )


async def test_handlers_that_wait_side_by_side_do_not_see_each_other(
    caplog: pytest.LogCaptureFixture, context: None
) -> None:
    house = House()
    async with connect(house.channels, user="ann") as one, connect(house.channels, user="bob") as two:
        rooms = [await one.join("room:a"), await one.join("room:b"), await two.join("room:a")]
        for number, room in enumerate(rooms):
            room.send("wait", str(number))
        await rooms[0].client.heartbeat()
        await anyio.wait_all_tasks_blocked()
        for number in (2, 0, 1):
            house.gates[str(number)].set()
        await anyio.wait_all_tasks_blocked()
    who = [("room:a", "ann", "1"), ("room:b", "ann", "1"), ("room:a", "bob", "2")]
    for message in ("waited", "in a thread", "child"):
        assert sorted((topic, user, number) for _, topic, _, user, number in told(caplog, message)) == sorted(who)
        assert {event for _, _, event, _, _ in told(caplog, message)} == {"wait"}


async def test_our_own_records_know_it_too_and_what_a_client_says_is_made_printable(
    caplog: pytest.LogCaptureFixture, context: None
) -> None:
    evil = "room:x\nINFO forged\x1b[31m" + "y" * 300
    async with connect(House().channels, user="ann\nforged") as client:
        room = await client.join(evil)
        room.send("crash")
        await room.receive("phx_error")
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    for value in (record.topic, record.socket_id, record.event):  # pyright: ignore
        assert isinstance(value, str)
        assert value.isprintable()
        assert len(value) <= 100
    assert record.event == "crash"  # pyright: ignore


async def test_an_attribute_that_is_there_stays_and_other_loggers_can_ask(
    caplog: pytest.LogCaptureFixture, context: None
) -> None:
    found: list[Any] = []

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        mine.info("own", extra={"topic": "mine"})
        found.append(dict(LogContext.current()))

    async with connect(Channels([room])) as client:
        await client.join("room:a")
    assert told(caplog, "own") == [("own", "mine", "phx_join", "-", "1")]
    assert found == [{"topic": "room:a", "event": "phx_join", "connection": "1"}]
    assert LogContext.current() == {}


async def test_until_somebody_asks_no_variable_is_set() -> None:
    found: list[Any] = []

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        found.append(LogContext.current())

    assert HERE.wanted is False
    async with connect(Channels([room])) as client:
        await client.join("room:a")
    assert found == [{}]
