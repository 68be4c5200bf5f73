# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownLambdaType=false, reportGeneralTypeIssues=false
"""Arguments of a wrong type: each is refused where it is given, with what the user wrote and what to write instead."""

import functools
import gc
import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from starlette_channels import (
    V2,
    Broker,
    Channels,
    ConnectError,
    Drain,
    Expiry,
    Handshake,
    Limits,
    LogOptions,
    LongPoll,
    Presence,
    PresenceTiming,
    Publisher,
    Rate,
    Socket,
    channel,
)
from starlette_channels.testing import connect
from starlette_channels.tokens import Tokens


async def room(socket: Socket, payload: Any) -> None: ...


lobby = channel("lobby")(room)


def plain(*_: Any) -> None: ...


async def waits(conn: Handshake) -> dict[str, Any]:
    return {}


async def two(one: Any, other: Any) -> dict[str, Any]:
    return {}


async def with_default(conn: Handshake, db: Any = None) -> dict[str, Any]:
    return {}


def one(_: Any) -> Any: ...


def given(*args: Any, **kwargs: Any) -> Callable[[], Any]:
    """Channels made with arguments of any type."""
    return lambda: Channels(*args or ([],), **kwargs)


def limits(**kwargs: Any) -> Callable[[], Any]:
    return lambda: Limits(**kwargs)


MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a function without @channel": (
        given([room]),
        TypeError,
        'Channels([room]): it is a function that handles no topic yet; write @channel("room:*") above its definition',
    ),
    "a channel instead of a list": (
        given(lobby),
        TypeError,
        "Channels(room): it takes a list of channels, as in Channels([room])",
    ),
    "a topic instead of a list": (given("lobby"), TypeError, "it takes a list of channels, as in Channels([room])"),
    "nothing instead of a list": (given(None), TypeError, "Channels(None): it takes a list of channels"),
    "a topic in the list": (given(["lobby"]), TypeError, "Channels(['lobby']): list the functions that are decorated"),
    "something in the list": (given([7]), TypeError, "Channels([7]): it is int"),
    "connect that is not async": (
        given(connect=one),
        TypeError,
        "Channels(connect=...): one must be `async def` and take (conn)",
    ),
    "connect that takes nothing": (
        given(connect=anyio.sleep_forever),
        TypeError,
        "Channels(connect=...): sleep_forever must be `async def` and take (conn): too many positional arguments",
    ),
    "connect that takes too much": (given(connect=two), TypeError, "missing a required argument: 'other'"),
    "connect with a dependency": (
        given(connect=functools.partial(with_default, db=__import__("fastapi").Depends(plain))),
        TypeError,
        "db gets no value: Depends works in requests only",
    ),
    "connect that was called": (given(connect={}), TypeError, "Channels(connect=...): {} must be `async def`"),
    "socket_id that is async": (
        given(socket_id=waits),
        TypeError,
        "Channels(socket_id=...): waits must not be async and take (assigns)",
    ),
    "socket_id that is a name": (given(socket_id="id"), TypeError, "Channels(socket_id=...): 'id' must not be async"),
    "socket_id that takes nothing": (given(socket_id=lambda: ""), TypeError, "too many positional arguments"),
    "check_origin that is async": (given(check_origin=waits), TypeError, "must not be async; ask what is slow"),
    "check_origin that takes too much": (
        given(check_origin=lambda a, b: True),
        TypeError,
        "missing a required argument",
    ),
    "no broker": (given(broker=None), TypeError, "Channels(broker=None): give an address"),
    "serializers without a list": (given(serializers=V2()), TypeError, "give a list, as in serializers=[V2(), V1()]"),
    "a serializer that is a class": (given(serializers=[V2]), TypeError, "give a list, as in serializers=[V2(), V1()]"),
    "subprotocols as a text": (given(subprotocols="x"), TypeError, 'give a list, as in subprotocols=["phoenix"]'),
    "path that is no text": (given(path=None), TypeError, "it is a text that begins with a slash"),
    "auth_token as a function": (given(auth_token=one), TypeError, "Channels(auth_token=one): it is True or False"),
    "expiry as a function": (given(expiry=one), TypeError, "Channels(expiry=one): write expiry=Expiry(at=...)"),
    "presence as a name": (given(presence="x"), TypeError, "give a list, as in presence=[lobby, rooms]"),
    "presence as a class": (given(presence=[Presence]), TypeError, "give a list, as in presence=[lobby, rooms]"),
    "longpoll as a path": (given(longpoll="/lp"), TypeError, "Channels(longpoll='/lp'): write longpoll=True"),
    "limits as a dict": (given(limits={"channels": 1}), TypeError, "write limits=Limits(...)"),
    "drain as seconds": (given(drain=5), TypeError, "Channels(drain=5): write drain=Drain(...), True or False"),
    "log as a level": (given(log="debug"), TypeError, "Channels(log='debug'): write log=LogOptions("),
    "a rate as a number": (
        limits(message_rate=50),
        TypeError,
        "Limits(message_rate=50): it must be a Rate or None: 50 a second is Rate(50, burst=500)",
    ),
    "a limit as a text": (limits(channels="50"), TypeError, "Limits(channels='50'): it must be a whole number or None"),
    "a limit as a flag": (limits(connections=False), TypeError, "it must be a whole number or None"),
    "a limit as a fraction": (limits(backlog=0.5), TypeError, "Limits(backlog=0.5): it must be a whole number or None"),
    "a limit below 0": (limits(backlog=-1), ValueError, "must not be less than 0; None switches it off"),
    "a time as a text": (limits(idle_seconds="60"), TypeError, "it must be a number or None: write 60, without quotes"),
    "a time that is no number": (limits(idle_seconds=float("nan")), ValueError, "must not be less than 0"),
    "a rate of texts": (lambda: Rate("5", burst=1), TypeError, "Rate(per_second='5'): it must be a number"),
    "a burst that is a fraction": (lambda: Rate(5, burst=1.5), TypeError, "Rate(burst=1.5): it must be a whole number"),
    "a drain of texts": (lambda: Drain(batch_size="9"), TypeError, "Drain(batch_size='9'): it must be a whole number"),
    "long-polling": (
        lambda: LongPoll(window_seconds="9"),
        TypeError,
        "LongPoll(window_seconds='9'): it must be a number",
    ),
    "names that are one text": (
        lambda: LogOptions(filter_parameters="password"),
        TypeError,
        "LogOptions(filter_parameters='password'): it must be a list",
    ),
    "an expiry that is no function": (lambda: Expiry(at=60), TypeError, "Expiry(at=60): it must be a function"),
    "an expiry that is async": (lambda: Expiry(at=waits), TypeError, "Expiry(at=...): waits must not be async"),
    "a refresh that is not async": (
        lambda: Expiry(at=one, refresh=plain),
        TypeError,
        "Expiry(refresh=...): plain must be `async def` and take (assigns, payload)",
    ),
    "a presence by position": (lambda: Presence("x"), TypeError, "positional argument"),
    "a presence without name": (lambda: Presence(name=None), TypeError, "Presence(name=None): it is a text"),
    "a fetch that is not async": (
        lambda: Presence(fetch=plain),
        TypeError,
        "Presence(fetch=...): plain must be `async def` and take (topic, presences)",
    ),
    "a grace that is a text": (lambda: Presence(grace_seconds="5"), TypeError, "it is a number of seconds"),
    "a grace below 0": (lambda: Presence(grace_seconds=-1), ValueError, "it is a number of seconds, 0 or more"),
    "a timing as a number": (lambda: Presence(timing=5), TypeError, "write PresenceTiming(...)"),
    "a timing of texts": (lambda: PresenceTiming(news_seconds="1"), TypeError, "it must be a number"),
    "an observer that is not async": (
        lambda: Presence().on_diff(plain),
        TypeError,
        "Presence.on_diff: plain must be `async def` and take (topic, diff)",
    ),
    "tracking a topic": (
        lambda: Presence().track("lobby", "ann"),
        TypeError,
        "presence.track('lobby', ...): it takes the socket that the handler was given, and not a topic",
    ),
    "updating a topic": (lambda: Presence().update("lobby", "ann", {}), TypeError, "presence.update('lobby', ...)"),
    "untracking a topic": (lambda: Presence().untrack("lobby"), TypeError, "presence.untrack('lobby', ...)"),
    "the state of a topic": (lambda: Presence().push_state("lobby"), TypeError, "presence.push_state('lobby', ...)"),
    "counting something else": (lambda: Presence().count(7), TypeError, "give its name, or the socket of a handler"),
    "an address that is not set": (lambda: Broker(None), TypeError, "is the variable for it set?"),
    "a publisher whose address is not set": (lambda: Publisher(None), TypeError, "is the variable for it set?"),
    "an engine that is none": (lambda: Broker("kafka://host"), ValueError, "it must begin with one of memory://"),
    "a key that is not set": (lambda: Tokens(None, salt="x"), TypeError, "is its environment variable set?"),
    "a key of bytes": (lambda: Tokens(b"x" * 20, salt="x"), TypeError, "Tokens(secret_key): it must be a string"),
    "an age that is a text": (
        lambda: Tokens("x" * 20, salt="x", max_age="9"),
        ValueError,
        "Tokens(max_age='9'): it is a number of seconds",
    ),
    "an identity that is a number": (
        lambda: given()().disconnect(7),
        TypeError,
        "disconnect(socket_id=7): it takes the text that the function of Channels(socket_id=...) returns",
    ),
    "kicking a number": (lambda: given()().kick(7, "lobby"), TypeError, "kick(socket_id=7): it takes the text"),
    "kicking from a number": (lambda: given()().kick("7", 7), TypeError, "kick(topic=7): it takes the name of a topic"),
    "a broadcast to a number": (
        lambda: given()().broadcast(7, "news", {}),
        TypeError,
        "broadcast(topic=7): it takes the name of a topic",
    ),
    "an event that is a number": (
        lambda: given()().broadcast("lobby", 7, {}),
        TypeError,
        "event 7: it takes the name of an event",
    ),
    "a publisher's broadcast to a number": (
        lambda: Publisher("redis://127.0.0.1:1").broadcast(7, "news", {}),
        TypeError,
        "broadcast(topic=7)",
    ),
    "a publisher's number of a user": (
        lambda: Publisher("redis://127.0.0.1:1").disconnect(7),
        TypeError,
        "disconnect(socket_id=7)",
    ),
    "a status as a text": (lambda: ConnectError("no", "403"), TypeError, "the number of an HTTP status"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_an_argument_of_a_wrong_type_is_refused_with_the_fix_in_the_text(name: str) -> None:
    make, error, text = MISTAKES[name]
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)


PORTS = ["redis://host:abc", "redis://host:99999", "nats://host:x", "zenoh://host:x", "redis+cluster://a:1,b:y"]


@pytest.mark.parametrize("address", [*PORTS, "redis+sentinel://host:z/name", "tls://host:", "redis://u:p@host:1x/0"])
def test_a_port_that_is_no_number_is_refused_with_the_address_and_without_the_password(address: str) -> None:
    if address.endswith(":"):  # the default port
        Broker(address)
        return
    with pytest.raises(ValueError, match=r"^broker '[a-z+]+://.*no port, which is a number up to 65535") as caught:
        Broker(address)
    assert "u:p" not in str(caught.value)


def test_a_password_that_looks_like_a_port_is_not_shown() -> None:
    with pytest.raises(ValueError, match="must be quoted") as caught:
        Broker("redis://user:hun/ter2@host:6379")
    assert "hun" not in str(caught.value)


CALLED: dict[str, tuple[Callable[[Any], object], str]] = {
    "channel": (
        lambda it: channel("a")(it),
        "channel('a'): waits(...) calls the function itself; write waits, without",
    ),
    "channel, bare": (lambda it: channel(it), 'channel: say for what, as in @channel("room:*")'),
    "on": (lambda it: lobby.on("e")(it), "room.on('e'): waits(...) calls the function itself; write waits, without"),
    "on, bare": (lambda it: lobby.on(it), 'room.on: say for what, as in @room.on("new_msg")'),
    "on_any": (lambda it: lobby.on_any(it), "room.on_any(): waits(...) calls the function itself; write waits"),
    "intercept": (lambda it: lobby.intercept("e")(it), "room.intercept('e'): waits(...) calls the function itself"),
    "info": (lambda it: lobby.info(int)(it), "room.info('int'): waits(...) calls the function itself"),
    "on_refresh": (lambda it: lobby.on_refresh(it), "room.on_refresh(): waits(...) calls the function itself"),
    "terminate": (lambda it: lobby.terminate(it), "room.terminate(): waits(...) calls the function itself"),
    "channels": (lambda it: Channels([it]), "Channels([waits(...)]): it is coroutine; list the functions that"),
    "connect": (
        lambda it: Channels([lobby], connect=it),
        "Channels(connect=...): waits(...) calls the function itself",
    ),
    "socket_id": (lambda it: Channels([lobby], socket_id=it), "Channels(socket_id=...): waits(...) calls the function"),
    "check_origin": (lambda it: Channels([lobby], check_origin=it), "Channels(check_origin=waits(...)): give a list"),
    "limits": (lambda it: Channels([lobby], limits=it), "Channels(limits=waits(...)): write limits=Limits(...)"),
    "expiry": (lambda it: Expiry(at=it), "Expiry(at=waits(...)): it must be a function: write waits, without calling"),
    "fetch": (lambda it: Presence(fetch=it), "Presence(fetch=...): waits(...) calls the function itself"),
    "on_diff": (lambda it: Presence().on_diff(it), "Presence.on_diff: waits(...) calls the function itself"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("place", CALLED)
def test_a_function_that_is_called_where_it_is_given_is_refused_and_python_warns_of_no_coroutine(place: str) -> None:
    give, text = CALLED[place]
    with pytest.raises(TypeError) as caught:
        give(waits(None))
    gc.collect()
    assert text in str(caught.value)


MISUSES: dict[str, tuple[Callable[[Socket], object], str]] = {
    "a coroutine as a child": (
        lambda socket: socket.start_soon(waits(None)),
        "socket.start_soon(waits(...)): it calls the function itself; write socket.start_soon(waits, *args)",
    ),
    "nothing as a child": (lambda socket: socket.start_soon(None), "socket.start_soon(None): it takes a function"),
    "a coroutine at the end": (
        lambda socket: socket.on_close(waits(None)),
        "socket.on_close(waits(...)): it calls the function itself; write socket.on_close(waits), without calling it",
    ),
    "an event that is a number": (lambda socket: socket.push(7, {}), "event 7: it takes the name of an event"),
    "a topic that is none": (lambda socket: socket.subscribe(None), "socket.subscribe(None): it takes the name"),
}


@pytest.mark.anyio
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", MISUSES)
async def test_a_wrong_argument_in_a_handler_is_raised_where_it_is_given(name: str) -> None:
    misuse, text = MISUSES[name]

    @channel("room")
    async def here(socket: Socket, payload: Any) -> dict[str, str]:
        try:
            misuse(socket)
        except TypeError as error:
            return {"text": str(error)}
        return {}

    async with connect(Channels([here])) as client:
        assert text in (await client.join("room")).reply.payload["text"]


@pytest.mark.anyio
async def test_a_child_that_is_no_async_function_ends_the_channel_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @channel("room")
    async def here(socket: Socket, payload: Any) -> None:
        socket.start_soon(plain)

    async with connect(Channels([here])) as client:
        await (await client.join("room")).receive("phx_error")
    assert "start_soon(tests.test_argument_mistakes.plain): it must be `async def`" in caplog.text


# Patterns that never match.


async def anything(socket: Socket, payload: Any, **segments: Any) -> None: ...


@pytest.mark.parametrize(
    ("patterns", "hidden"),
    [
        (["room:*", "room:lobby"], "room:lobby"),
        (["room:*", "room:{room_id}"], "room:{room_id}"),
        (["room:{room_id}", "room:lobby"], "room:lobby"),
        (["room:{a}:{b}", "room:{x}:y"], "room:{x}:y"),
        (["room:{a}*", "room:{b}:*"], "room:{b}:*"),
        (["*", "lobby"], "lobby"),
        (["lobby", "lobby"], "lobby"),
        (["room:*", "room:a*"], "room:a*"),
        (["room:lobby", "room:*"], None),
        (["room:{room_id}", "room:*"], None),
        (["room:{a}", "room:{a}:{b}"], None),
        (["room:a*", "room:{b}"], None),
        (["room:*", "rooms"], None),
        (["room:{a}*", "room:*"], None),
    ],
)
def test_a_pattern_that_never_matches_is_logged_once(
    patterns: list[str], hidden: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    Channels([channel(pattern)(anything) for pattern in patterns])
    lines = [record.getMessage() for record in caplog.records if "never matches" in record.getMessage()]
    assert len(lines) == (hidden is not None)
    if hidden is not None:
        assert lines[0].startswith(
            f"The pattern {hidden!r} of anything never matches: {patterns[0]!r} of anything comes"
        )


def test_a_pattern_behind_one_whose_segments_have_a_type_may_match(caplog: pytest.LogCaptureFixture) -> None:
    async def by_number(socket: Socket, payload: Any, room_id: int) -> None: ...

    Channels([channel("room:{room_id}")(by_number), channel("room:{name}")(anything)])
    assert "never matches" not in caplog.text


# The lifespan.


async def handshake_without_lifespan(channels: Channels[Any]) -> None:
    """Open a connection as a server does that runs no lifespan."""

    async def receive() -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        return {"type": "websocket.connect"} if not sent else {"type": "websocket.disconnect", "code": 1001}

    async def send(message: Any) -> None:
        await anyio.lowlevel.checkpoint()
        sent.append(message)

    sent: list[Any] = []
    scope: dict[str, Any] = {
        "type": "websocket",
        "path": "/websocket",
        "headers": [],
        "query_string": b"vsn=2.0.0",
        "subprotocols": [],
    }
    await channels(scope, receive, send)
    assert sent[0]["type"] == "websocket.accept"


@pytest.mark.anyio
async def test_a_lifespan_that_nobody_runs_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    channels = Channels([lobby])
    for _ in range(2):
        await handshake_without_lifespan(channels)
    (record,) = [one for one in caplog.records if "lifespan" in one.getMessage()]
    assert "Starlette(lifespan=channels.lifespan)" in record.getMessage()


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["with the lifespan", "without a drain", "in a test"])
async def test_a_lifespan_that_is_run_or_not_needed_is_not_warned_of(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    channels = Channels([lobby], drain=how != "without a drain")
    if how == "in a test":
        async with connect(channels) as client:
            await client.heartbeat()
    elif how == "without a drain":
        await handshake_without_lifespan(channels)
    else:
        async with channels.lifespan():
            await handshake_without_lifespan(channels)
    assert "lifespan" not in caplog.text
