"""Programs that must pass strict type checking as they stand, and run."""

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict, assert_type

import attrs
import pydantic
from fastapi import FastAPI
from msgspec import Raw, Struct
from pydantic.dataclasses import dataclass as pydantic_dataclass
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from starlette_channels import (
    V1,
    V2,
    Broadcast,
    Broker,
    Channel,
    Channels,
    ConnectError,
    EndReason,
    Handshake,
    JoinError,
    LaterReply,
    Limits,
    Payload,
    Presence,
    PresenceDiff,
    Reply,
    Socket,
    Statistics,
    channel,
)
from starlette_channels.testing import Client, Joined, Received, connect
from starlette_channels.tokens import Tokens

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager


class User(Struct):
    name: str


class NewMsg(Struct):
    body: str


class Typing(TypedDict):
    user: str


@dataclass
class Point:
    x: int


@attrs.define
class Colour:
    name: str


class Model(pydantic.BaseModel):
    body: str


@pydantic_dataclass
class Order:
    item: str = pydantic.Field(min_length=1)


class Tick(Struct):
    number: int


class FastTick(Tick):
    pass


# The program of the README, with assigns of its own.


async def identify(conn: HTTPConnection) -> User:
    name = conn.query_params.get("user")
    if not name:
        raise ConnectError("no user given", status=401)
    return User(name)


@channel("room:*")
async def room(socket: Socket[User], payload: dict[str, Any]) -> None:
    if socket.subtopic == "private":
        raise JoinError("unauthorized")
    raise JoinError({"reason": "full", "max": 10})


assert_type(room, Channel[User])


@room.on("new_msg")
async def new_msg(socket: Socket[User], msg: NewMsg) -> None:
    assert_type(socket.assigns, User)
    socket.broadcast("new_msg", {"body": msg.body, "user": socket.assigns.name})


# Join handlers: segments, several patterns, every kind of reply.


@channel("game:{game_id}", "play:{game_id}")
async def game(socket: Socket[User], payload: NewMsg, game_id: str) -> Point:
    return Point(len(game_id) + len(payload.body))


@channel("org:{org}:user:{user_id}")
async def nested(socket: Socket[User], payload: object, org: str, user_id: str) -> dict[str, str]:
    return {"org": org, "user": user_id, **socket.topic_params}


@channel("order:{order_id}:{day}")
async def order(socket: Socket[User], payload: Model | None, *, order_id: int, day: date) -> Model | None:
    return payload


@channel("status")
async def status(socket: Socket[User], payload: Any) -> Reply:
    return Reply("created", [1, 2, 3])


# Event handlers: every kind of payload and reply.


@room.on("struct")
async def on_struct(socket: Socket[User], msg: NewMsg) -> NewMsg:
    return msg


@room.on("dict")
async def on_dict(socket: Socket[User], msg: dict[str, int]) -> dict[str, int]:
    return msg


@room.on("typed_dict")
async def on_typed_dict(socket: Socket[User], msg: Typing) -> Typing:
    return msg


@room.on("mapping")
async def on_mapping(socket: Socket[User], msg: Mapping[str, Any]) -> Mapping[str, Any]:
    return msg


@room.on("dataclass")
async def on_dataclass(socket: Socket[User], msg: Point) -> Point:
    return msg


@room.on("attrs")
async def on_attrs(socket: Socket[User], msg: Colour) -> Colour:
    return msg


@room.on("pydantic")
async def on_pydantic(socket: Socket[User], msg: Model) -> Model:
    return msg


@room.on("order")
async def on_order(socket: Socket[User], msg: list[Model] | Order | None) -> Order | Reply:
    return msg if isinstance(msg, Order) else Reply("ok", msg)


@room.on("bytes")
async def on_bytes(socket: Socket[User], msg: bytes) -> bytes:
    return msg


@room.on("raw")
async def on_raw(socket: Socket[User], msg: Raw) -> Raw:
    return msg


@room.on("either")
async def on_either(socket: Socket[User], msg: NewMsg | bytes | None) -> NewMsg | bytes | Reply | None:
    return msg or Reply("error", {"reason": "empty"})


@room.on("list")
async def on_list(socket: Socket[User], msg: list[int]) -> Reply:
    return Reply("ok", msg)


@room.on("later")
async def on_later(socket: Socket[User], msg: object) -> None:
    reply: LaterReply = socket.reply_later()

    async def work(answer: NewMsg, times: int) -> None:
        reply(Reply("ok", [answer] * times))
        reply(answer)
        reply()

    socket.start_soon(work, NewMsg("done"), 2)


@room.on_any
async def anything(socket: Socket[User], event: str, msg: Any) -> Reply | None:
    return Reply("error", {"event": event}) if msg else None


@room.intercept("new_msg")
async def seen(socket: Socket[User], msg: NewMsg) -> None:
    socket.push("new_msg", msg)


@room.info(Tick)
async def ticked(socket: Socket[User], tick: Tick) -> None:
    socket.push("tick", {"number": tick.number})


@room.info(FastTick)
async def ticked_fast(socket: Socket[User], tick: Tick) -> None:
    """A handler may take a base of the class that it is for."""


@room.info(Broadcast)
async def heard(socket: Socket[User], broadcast: Broadcast) -> None:
    socket.push(broadcast.event, {"topic": broadcast.topic, "payload": broadcast.payload})


@room.terminate
async def left(socket: Socket[User], reason: EndReason) -> None:
    if reason == "duplicate_join":
        return
    socket.broadcast_from("left", {"reason": reason})


# What decorators return is the handler, with its type.


async def use_handlers_as_functions(socket: Socket[User]) -> None:
    assert_type(await on_struct(socket, NewMsg("hi")), NewMsg)
    assert_type(await on_either(socket, b""), NewMsg | bytes | Reply | None)
    assert_type(await seen(socket, NewMsg("hi")), None)
    assert_type(await anything(socket, "event", 1), Reply | None)


room.on("again")(on_struct)


# What a socket does.


async def use_socket(socket: Socket[User]) -> None:
    payloads: list[Payload] = [
        {},
        {"a": [1, None]},
        NewMsg("hi"),
        Point(1),
        Colour("red"),
        Model(body="hi"),
        Order("tea"),
        MappingProxyType({"a": Order("tea")}),
        ChainMap({"a": 1}),
        Raw(b"{}"),
    ]
    payloads.append(b"\x00")
    for payload in payloads:
        socket.push("event", payload)
        socket.broadcast("event", payload)
        socket.broadcast_from("event", payload)
    assert_type(socket.topic, str)
    assert_type(socket.subtopic, str)
    assert_type(socket.topic_params, Mapping[str, str])
    assert_type(socket.app, Starlette)
    socket.send_info(Tick(1))
    socket.subscribe("other")
    socket.unsubscribe("other")

    async def forever() -> None: ...

    async def count(start: int, *, step: int = 1) -> int:
        return start + step

    async def close() -> None: ...

    socket.start_soon(forever)
    socket.start_soon(count, 1)
    socket.start_soon(partial(count, step=2), 1)
    socket.on_close(close)
    socket.on_close(lambda: None)
    socket.stop()


# Without assigns of one's own they are a dict.


@channel("lobby")
async def lobby(socket: Socket, payload: dict[str, Any]) -> None:
    assert_type(socket.assigns, dict[str, Any])
    socket.assigns["seen"] = True


assert_type(lobby, Channel[dict[str, Any]])
anybody = Channels([lobby])
assert_type(anybody, Channels[dict[str, Any]])
named = Channels([lobby], socket_id=lambda assigns: assigns.get("user"))


# Assigns that are optional, a union, or nothing at all.


async def maybe_identify(conn: Handshake) -> User | None:
    assert_type(conn.params, dict[str, Any])
    return User("ann") if conn.params else None


@channel("open")
async def open_to_all(socket: Socket[User | None], payload: object) -> None:
    if socket.assigns is not None:
        assert_type(socket.assigns, User)


guests = Channels([open_to_all], connect=maybe_identify)
assert_type(guests, Channels[User | None])


# A client that is more than the channels want, and a channel for any client.


class Admin(User):
    rights: list[str] = []


async def identify_admin(conn: Handshake) -> Admin:
    return Admin(conn.headers["x-admin"])


@channel("any:*")
async def for_anybody(socket: Socket[Any], payload: object) -> None:
    socket.push("welcome", {})


admins = Channels([room, for_anybody], connect=identify_admin)


# Channels, and the application around them.


def name_of(user: User) -> str | None:
    return f"user:{user.name}"


channels = Channels(
    [room, game, nested, status],
    connect=identify,
    socket_id=name_of,
    broker=Broker(),
    serializers=(V2(), V1()),
    path="/ws/{region}",
    subprotocols=["chat"],
    check_origin=["//chat.example", "https://*.chat.example"],
    auth_token=True,
    limits=Limits(channels=10, idle_seconds=30),
)
assert_type(channels, Channels[User])
app = Starlette(routes=[Mount("/socket", app=channels), Mount("/open", app=anybody)], lifespan=channels.lifespan)


FastAPI().mount("/socket", channels)


def of_the_tenant(conn: Handshake) -> bool:
    return conn.headers["origin"] == conn.params["tenant"]


tokens = Tokens(["a key of twenty bytes", "another of 20 bytes.."], salt="user socket", max_age=3600)


async def identify_by_token(conn: Handshake) -> User:
    assert_type(conn.auth_token, str | None)
    assert_type(tokens.sign(User("ann")), str)
    assert_type(tokens.expires_at(conn.auth_token), float)
    return assert_type(tokens.verify(conn.auth_token, User), User)


Channels([room], connect=identify_by_token, check_origin=of_the_tenant, auth_token=True)
Channels([lobby], check_origin=False)
rooms: list[Channel[User]] = [room, game]
some = Channels(rooms, connect=identify)


def use_channels() -> None:
    channels.broadcast("room:lobby", "announcement", {"body": "hello"})
    channels.broadcast("room:lobby", "announcement", NewMsg("hello"))
    channels.disconnect("user:ann")
    assert_type(channels.statistics(), Statistics)
    assert_type(channels.statistics().counts, Mapping[str, int])


# Presence.


async def look_up(topic: str, presences: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {key: {"name": key.title()} for key in presences}


presence = Presence(fetch=look_up, fetch_seconds=1.0, grace_seconds=5)


@presence.on_diff
async def changed(topic: str, diff: PresenceDiff) -> None:
    assert_type(diff.joins, dict[str, dict[str, Any]])


async def use_presence(socket: Socket[User]) -> dict[str, Any]:
    presence.track(socket, 7)
    presence.track(socket, "ann", NewMsg("here"))
    presence.update(socket, "ann", {"status": "busy"})
    presence.update(socket, "ann", lambda meta: {**meta, "status": "busy"})
    presence.untrack(socket, "ann")
    presence.untrack(socket)
    presence.push_state(socket)
    assert_type(presence.count(socket), int)
    assert_type(await presence.get_by_key("room:lobby", 7), dict[str, Any] | None)
    return await presence.list(socket)


# The test kit.


async def use_kit() -> None:
    connection: AbstractAsyncContextManager[Client] = connect(app, "/socket", user="ann", filter={"tags": ["a"]})
    async with connection as client:
        joined = await client.join("room:lobby", {"since": 7})
        assert_type(joined, Joined)
        assert_type(joined.reply, Reply)
        assert_type(await joined.push("new_msg", {"body": "hi"}), Reply)
        assert_type(await client.receive(), Received)
        assert_type(await joined.leave(), Reply)
        assert_type(await client.closed(), int)
