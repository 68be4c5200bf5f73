"""Handlers of every kind that is async and takes what it must, beside plain functions."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec import Struct

from starlette_channels import Channel, Channels, Handshake, Reply, Socket, channel
from starlette_channels.testing import connect

pytestmark = pytest.mark.anyio


class Say(Struct):
    text: str


class Service:
    """Handlers as methods, with what they need in `self`."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def say(self, socket: Socket, payload: Say) -> dict[str, str]:
        return {self.name: payload.text}

    @staticmethod
    async def static(socket: Socket, payload: Say) -> dict[str, str]:
        return {"static": payload.text}

    @classmethod
    async def of_class(cls, socket: Socket, payload: Say) -> dict[str, str]:
        return {cls.__name__: payload.text}


class Answer:
    """An object that is called as a handler."""

    async def __call__(self, socket: Socket, payload: Say) -> dict[str, str]:
        return {"object": payload.text}


async def with_database(database: str, socket: Socket, payload: Say, *, shout: bool = False) -> dict[str, str]:
    return {database: payload.text.upper() if shout else payload.text}


def logged(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def with_session(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Fill a parameter that the handler takes beside what we give it."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, session="session", **kwargs)

    return wrapper


def first_filled(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def wrapper(socket: Socket, payload: Any) -> Any:
        return await function("filled", socket, payload)

    return wrapper


@logged
async def decorated(socket: Socket, payload: Say) -> dict[str, str]:
    return {"decorated": payload.text}


@with_session
async def in_session(socket: Socket, payload: Say, session: str) -> dict[str, str]:
    return {session: payload.text}


@first_filled
async def filled(first: str, socket: Socket, payload: Say) -> dict[str, str]:
    return {first: payload.text}


async def keyword_default(socket: Socket, payload: Say, times: int = 2, *, sep: str = "-") -> dict[str, str]:
    return {"defaults": sep.join([payload.text] * times)}


HANDLERS: dict[str, Any] = {
    "service": Service("service").say,
    "static": Service.static,
    "Service": Service.of_class,
    "object": Answer(),
    "database": functools.partial(with_database, "database"),
    "partial of partial": functools.partial(functools.partial(with_database, "partial of partial"), shout=False),
    "partial of a method": functools.partial(Service("partial of a method").say),
    "decorated": decorated,
    "session": in_session,
    "filled": filled,
    "partial of decorated": functools.partial(decorated),
}


def room_with(handler: Any) -> Channel[Any]:
    @channel("room")
    async def room(socket: Socket, payload: Any) -> None: ...

    room.on("say")(handler)
    return room


@pytest.mark.parametrize("name", HANDLERS)
async def test_a_handler_may_be_anything_that_is_async_and_its_payload_is_decoded(name: str) -> None:
    async with connect(Channels([room_with(HANDLERS[name])])) as client:
        joined = await client.join("room")
        (answer,) = (await joined.push("say", {"text": "hi"})).payload.values()
        assert answer == "hi"
        refused = await joined.push("say", {"text": 1})
        assert refused.payload["reason"] == "invalid payload"


async def test_ordinary_defaults_stay() -> None:
    async with connect(Channels([room_with(keyword_default)])) as client:
        assert await (await client.join("room")).push("say", {"text": "a"}) == Reply("ok", {"defaults": "a-a"})


async def test_joins_may_be_objects_and_take_segments_in_any_way() -> None:
    class Join:
        async def __call__(self, socket: Socket, payload: Any, **segments: str) -> dict[str, str]:
            return segments

    async def join(prefix: str, socket: Socket, payload: Any, *, room_id: str) -> dict[str, str]:
        return {prefix: room_id}

    channels = Channels([channel("a:{room_id}")(Join()), channel("b:{room_id}")(functools.partial(join, "prefix"))])
    async with connect(channels) as client:
        assert (await client.join("a:7")).reply == Reply("ok", {"room_id": "7"})
        assert (await client.join("b:7")).reply == Reply("ok", {"prefix": "7"})


async def test_connect_and_the_others_may_be_objects_too() -> None:
    class Connect:
        async def __call__(self, conn: Handshake) -> dict[str, Any]:
            return {"name": conn.query_params["name"]}

    class Name:
        def __call__(self, assigns: dict[str, Any]) -> str:
            return assigns["name"]

    class Check:
        def __call__(self, conn: Handshake) -> bool:
            return True

    @channel("room")
    async def room(socket: Socket, payload: Any) -> dict[str, Any]:
        return socket.assigns

    channels = Channels([room], connect=Connect(), socket_id=Name(), check_origin=Check())
    async with connect(channels, name="ann", headers={"origin": "https://elsewhere.example"}) as client:
        assert (await client.join("room")).reply == Reply("ok", {"name": "ann"})
