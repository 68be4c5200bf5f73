"""Mistakes that strict type checking must find, each where it is made: every line marked ERR is an error, no other."""

from typing import Any

from msgspec import Struct
from starlette.requests import Request

from starlette_channels import (
    Broadcast,
    Channel,
    Channels,
    ConnectError,
    EndReason,
    Handshake,
    JoinError,
    Limits,
    Presence,
    Reply,
    Socket,
    channel,
)


class User(Struct):
    name: str


class Visitor(Struct):
    address: str


class NewMsg(Struct):
    body: str


class Tick(Struct):
    number: int


class Tock(Struct):
    number: int


# Join handlers.


@channel("room:*")  # ERR
def join_not_async(socket: Socket[User], payload: object) -> None: ...


@channel("room:*")  # ERR
async def join_without_payload(socket: Socket[User]) -> None: ...


@channel("room:*")  # ERR
async def join_without_socket() -> None: ...


@channel("room:*")  # ERR
async def join_of_something_else(socket: User, payload: object) -> None: ...


@channel("room:*")  # ERR
async def join_that_returns_a_number(socket: Socket[User], payload: object) -> int:
    return 1


@channel("room:*")  # ERR
async def join_that_returns_a_text(socket: Socket[User], payload: object) -> str:
    return "ok"


@channel("room:*")  # ERR
async def join_that_returns_a_list(socket: Socket[User], payload: object) -> list[int]:
    return [1]


@channel("room:*")  # ERR
async def join_that_returns_a_truth(socket: Socket[User], payload: object) -> bool:
    return True


@channel(7)  # ERR
async def join_of_a_number(socket: Socket[User], payload: object) -> None: ...


@channel  # ERR
async def join_without_a_pattern(socket: Socket[User], payload: object) -> None: ...


@channel("room:*")
async def room(socket: Socket[User], payload: object) -> None:
    raise JoinError("no", {"reason": "no"})  # ERR


@channel("visit:*")
async def visit(socket: Socket[Visitor], payload: object) -> None:
    _ = socket.assigns.name  # ERR


# Event handlers.


@room.on("e")  # ERR
def on_not_async(socket: Socket[User], msg: NewMsg) -> None: ...


@room.on("e")  # ERR
async def on_wrong_assigns(socket: Socket[Visitor], msg: NewMsg) -> None: ...


@room.on("e")  # ERR
async def on_default_assigns(socket: Socket, msg: NewMsg) -> None: ...


@room.on("e")  # ERR
async def on_without_payload(socket: Socket[User]) -> None: ...


@room.on("e")  # ERR
async def on_too_much(socket: Socket[User], msg: NewMsg, more: int) -> None: ...


@room.on("e")  # ERR
async def on_the_wrong_way_round(msg: NewMsg, socket: Socket[User]) -> None: ...


@room.on("e")  # ERR
async def on_returns_a_number(socket: Socket[User], msg: NewMsg) -> int:
    return 1


@room.on("e")  # ERR
async def on_returns_a_text_perhaps(socket: Socket[User], msg: NewMsg) -> str | None: ...


@room.on("e")  # ERR
async def on_returns_a_list(socket: Socket[User], msg: NewMsg) -> list[NewMsg]:
    return [msg]


@room.on("e")  # ERR
async def on_returns_a_tuple(socket: Socket[User], msg: NewMsg) -> tuple[str, NewMsg]:
    return "ok", msg


@room.on("e")  # ERR
async def on_returns_a_class(socket: Socket[User], msg: NewMsg) -> type[NewMsg]:
    return NewMsg


@room.on  # ERR
async def on_without_an_event(socket: Socket[User], msg: NewMsg) -> None: ...


@room.on_any  # ERR
async def any_without_event(socket: Socket[User], msg: object) -> None: ...


@room.on_any  # ERR
def any_not_async(socket: Socket[User], event: str, msg: object) -> None: ...


@room.on_any  # ERR
async def any_wrong_assigns(socket: Socket[Visitor], event: str, msg: object) -> None: ...


@room.on_any  # ERR
async def any_with_a_number_as_event(socket: Socket[User], event: int, msg: object) -> None: ...


@room.on_any  # ERR
async def any_returns_a_number(socket: Socket[User], event: str, msg: object) -> int:
    return 1


@room.on_any("e")  # ERR
async def any_with_an_event(socket: Socket[User], event: str, msg: object) -> None: ...


# Broadcasts, messages and the end.


@room.intercept("e")  # ERR
async def intercept_returns_a_value(socket: Socket[User], msg: NewMsg) -> NewMsg:
    return msg


@room.intercept("e")  # ERR
def intercept_not_async(socket: Socket[User], msg: NewMsg) -> None: ...


@room.intercept("e")  # ERR
async def intercept_wrong_assigns(socket: Socket[Visitor], msg: NewMsg) -> None: ...


@room.info(Tick)  # ERR
async def info_of_another_class(socket: Socket[User], message: Tock) -> None: ...


@room.info(Tick)  # ERR
async def info_returns_a_value(socket: Socket[User], message: Tick) -> dict[str, Any]:
    return {}


@room.info(Tick)  # ERR
def info_not_async(socket: Socket[User], message: Tick) -> None: ...


@room.info(Broadcast)  # ERR
async def info_wrong_assigns(socket: Socket[Visitor], message: Broadcast) -> None: ...


@room.info(Tick(1))  # ERR
async def info_of_an_instance(socket: Socket[User], message: Tick) -> None: ...


@room.terminate  # ERR
async def terminate_without_reason(socket: Socket[User]) -> None: ...


@room.terminate  # ERR
def terminate_not_async(socket: Socket[User], reason: EndReason) -> None: ...


@room.terminate  # ERR
async def terminate_with_an_exception(socket: Socket[User], reason: Exception) -> None: ...


@room.terminate  # ERR
async def terminate_returns_a_value(socket: Socket[User], reason: EndReason) -> Reply:
    return Reply("ok")


@room.terminate
async def terminate_for_a_reason_that_does_not_exist(socket: Socket[User], reason: EndReason) -> None:
    if reason == "crashed":  # ERR
        socket.push("crashed", {})


# What a socket does.


async def double(number: int) -> int:
    return 2 * number


def plain(number: int) -> None: ...


async def use_socket(socket: Socket[User]) -> None:
    socket.push("e")  # ERR
    socket.push("e", "text")  # ERR
    socket.push("e", 1)  # ERR
    socket.push("e", None)  # ERR
    socket.push("e", [1])  # ERR
    socket.push("e", NewMsg)  # ERR
    socket.push("e", {1: "a"})  # ERR
    socket.push(1, {})  # ERR
    socket.broadcast("e", "text")  # ERR
    socket.broadcast_from("e", [NewMsg("hi")])  # ERR
    socket.start_soon(double)  # ERR
    socket.start_soon(double, "2")  # ERR
    socket.start_soon(double, 1, 2)  # ERR
    socket.start_soon(double(1))  # ERR
    socket.start_soon(plain, 1)  # ERR
    socket.on_close(double)  # ERR
    socket.subscribe(7)  # ERR
    await socket.push("e", {})  # ERR
    socket.reply_later()("text")  # ERR
    socket.reply_later()(1)  # ERR
    _ = socket.assigns.address  # ERR
    socket.assigns = Visitor("here")  # ERR
    socket.topic_params["room_id"] = "7"  # ERR


Reply()  # ERR
Reply(404)  # ERR
Reply("ok").status = "error"  # ERR


# Connections.


async def identify(conn: Handshake) -> User:
    raise ConnectError("no", "403")  # ERR


async def identify_request(conn: Request) -> User:
    return User(conn.method)


async def identify_visitor(conn: Handshake) -> Visitor:
    return Visitor(conn.url.path)


async def identify_perhaps(conn: Handshake) -> User | None: ...


async def identify_nobody(conn: Handshake) -> None: ...


def identify_at_once(conn: Handshake) -> User:
    return User(conn.url.path)


async def identify_two(conn: Handshake, more: int) -> User:
    return User(str(more))


def name_of(user: User) -> str:
    return user.name


def number_of(user: User) -> int:
    return len(user.name)


Channels([room], connect=identify_visitor)  # ERR
Channels([room], connect=identify_perhaps)  # ERR
Channels([room], connect=identify_nobody)  # ERR
Channels([room], connect=identify_at_once)  # ERR
Channels([room], connect=identify_two)  # ERR
Channels([room], connect=identify_request)  # ERR
Channels([room])  # ERR
Channels([room, visit], connect=identify)  # ERR
Channels([room], connect=identify, socket_id=number_of)  # ERR
Channels([visit], connect=identify_visitor, socket_id=name_of)  # ERR
Channels(room, connect=identify)  # ERR
Channels([identify], connect=identify)  # ERR
Channels([room], connect=identify, broker=7)  # ERR
Channels([room], connect=identify, serializers=["2.0.0"])  # ERR
Channels([room], connect=identify, limits={"channels": 10})  # ERR
Channels([room], connect=identify, check_origin=7)  # ERR
Channels([room], connect=identify, check_origin=identify)  # ERR
Channels([room], connect=identify, auth_token="secret")  # ERR
Limits(10)  # ERR
Limits(channel=10)  # ERR
Limits().channels = 10  # ERR

channels = Channels([room], connect=identify)
channels.broadcast("t", "e", "text")  # ERR
channels.broadcast("t", "e")  # ERR
channels.disconnect(7)  # ERR
other: Channel[Visitor] = room  # ERR


async def look_up(topic: str, presences: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {}


def look_up_at_once(topic: str, presences: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {}


presence = Presence(fetch=look_up)
Presence(fetch=look_up_at_once)  # ERR
Presence(look_up)  # ERR
presence.on_diff(look_up)  # ERR


@room.on("present")
async def present(socket: Socket[User], payload: dict[str, Any]) -> dict[str, Any]:
    presence.track(socket, socket.assigns)  # ERR
    presence.track(socket.topic, "ann")  # ERR
    presence.track(socket, "ann", "online")  # ERR
    presence.update(socket, "ann", lambda meta: "online")  # ERR
    return presence.list(socket)  # ERR
