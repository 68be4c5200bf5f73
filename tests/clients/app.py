"""The small app that real JavaScript clients talk to: `uvicorn tests.clients.app:app`."""

from time import time
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

from starlette_channels import (
    Broker,
    Channels,
    ConnectError,
    Expiry,
    Handshake,
    JoinError,
    LongPoll,
    Presence,
    PresenceError,
    Reply,
    Socket,
    channel,
)


class User(Struct):
    name: str
    tags: Any = None
    expires_at: float | None = None


class Renewal(Struct):
    seconds: float


class Said(Struct):
    body: str


class Joined(Struct):
    """The joining client's own wish to be announced, once it is in."""


async def connect(conn: Handshake) -> User:
    name = conn.auth_token or conn.params.get("user")
    if not name:
        raise ConnectError("no user given")
    if conn.params.get("token") == "expired":
        raise ConnectError("expired token", 401, close=4401)
    seconds = conn.params.get("seconds")
    return User(name, conn.params.get("tags"), None if seconds is None else time() + float(str(seconds)))


async def refresh(user: User, renewal: Renewal) -> User:
    return replace(user, expires_at=time() + renewal.seconds)


@channel("room:*")
async def room(socket: Socket[User], payload: dict[str, Any]) -> dict[str, Any]:
    if socket.subtopic == "private" and payload.get("password") != "sesame":
        raise JoinError("unauthorized")
    socket.send_info(Joined())
    return {"you": socket.assigns.name, "topic": socket.topic, "tags": socket.assigns.tags}


@room.info(Joined)
async def joined(socket: Socket[User], message: Joined) -> None:
    socket.push("welcome", {"to": socket.assigns.name})
    socket.broadcast_from("joined", {"user": socket.assigns.name})


@room.terminate
async def left(socket: Socket[User], reason: str) -> None:
    socket.broadcast("left", {"user": socket.assigns.name, "reason": reason})


@room.on("say")
async def say(socket: Socket[User], said: Said) -> Said:
    socket.broadcast("said", {"user": socket.assigns.name, "body": said.body})
    return said


@room.on("whisper")
async def whisper(socket: Socket[User], said: Said) -> None:
    socket.broadcast_from("said", {"user": socket.assigns.name, "body": said.body})


@room.on("echo")
async def echo(socket: Socket[User], payload: Any) -> Reply:
    return Reply("ok", payload)


@room.on("refuse")
async def refuse(socket: Socket[User], payload: Any) -> Reply:
    return Reply("error", {"reason": "not today"})


@room.on("ignore")
async def ignore(socket: Socket[User], payload: Any) -> None:
    """No reply: the client's push times out."""


@room.on("bytes")
async def reverse(socket: Socket[User], payload: bytes) -> bytes:
    socket.broadcast_from("bytes", payload)
    socket.push("pushed", payload[:2])
    return payload[::-1]


@room.on("sum")
async def add_up(socket: Socket[User], payload: bytes) -> dict[str, int]:
    return {"sum": sum(payload)}


@room.on("crash")
async def crash(socket: Socket[User], payload: Any) -> None:
    raise RuntimeError("asked for by a test")


@room.on("stop")
async def stop(socket: Socket[User], payload: Any) -> None:
    socket.stop()


@room.on("kick")
async def kick(socket: Socket[User], payload: dict[str, str]) -> None:
    channels.disconnect(f"user:{payload['user']}")


async def fetch(topic: str, presences: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {key: {"called": key.title()} for key in presences}


presence = Presence(fetch=fetch)


@channel("hall:*")
async def hall(socket: Socket[User], payload: Any) -> None:
    try:
        presence.track(socket, socket.assigns.name, {"status": "here"})
    except PresenceError as error:
        raise JoinError(error.reason) from None
    presence.push_state(socket)


@hall.on("status")
async def status(socket: Socket[User], payload: dict[str, Any]) -> Reply:
    presence.update(socket, socket.assigns.name, payload)
    return Reply("ok")


@hall.on("hide")
async def hide(socket: Socket[User], payload: Any) -> Reply:
    presence.untrack(socket)
    return Reply("ok")


@hall.on("who")
async def who(socket: Socket[User], payload: Any) -> dict[str, Any]:
    return await presence.list(socket)


@hall.on("crash")
async def fall(socket: Socket[User], payload: Any) -> None:
    raise RuntimeError("asked for by a test")


def socket_id(user: User) -> str:
    return f"user:{user.name}"


BROKER, POLLS = Broker(), LongPoll(window_seconds=1.0)
channels = Channels(
    [room, hall],
    connect=connect,
    socket_id=socket_id,
    broker=BROKER,
    auth_token=True,
    expiry=Expiry(at=lambda user: user.expires_at, refresh=refresh),
    longpoll=POLLS,
)
polled = Channels([room], connect=connect, broker=BROKER, path="/nowhere", check_origin=False, longpoll=POLLS)
"""What a proxy that lets no WebSocket through leaves of it."""


async def blank(request: Request) -> HTMLResponse:
    """A page with nothing on it, in which a browser can import `/socket/channels.js`."""
    return HTMLResponse('<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>blank</title>')


app = Starlette(routes=[Route("/", blank), Mount("/socket", app=channels), Mount("/polled", app=polled)])
