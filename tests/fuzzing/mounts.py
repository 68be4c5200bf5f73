"""One `Channels` in the places where people put it: `uvicorn tests.fuzzing.mounts:nested`, and so on."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from msgspec import Struct
from starlette.applications import Starlette
from starlette.routing import Mount, Router

from starlette_channels import Channels, ConnectError, Handshake, Socket, channel


class User(Struct):
    name: str


class NewMsg(Struct):
    body: str


class Asked(Exception):
    """A handler was asked to crash."""


async def connect(conn: Handshake) -> User:
    name = conn.params.get("user")
    if not name:
        raise ConnectError("who are you?", 401)
    return User(name)


def socket_id(user: User) -> str:
    return f"user:{user.name}"


@channel("room:{number}")
async def room(socket: Socket[User], payload: Any, number: str) -> dict[str, str]:
    socket.broadcast_from("came", {"user": socket.assigns.name})
    return {"room": number, "user": socket.assigns.name}


@room.on("new_msg")
async def new_msg(socket: Socket[User], payload: NewMsg) -> dict[str, bool]:
    socket.broadcast("new_msg", {"body": payload.body, "user": socket.assigns.name})
    return {"sent": True}


@room.on("bytes")
async def some_bytes(socket: Socket[User], payload: bytes) -> bytes:
    socket.broadcast_from("bytes", payload)
    return payload[::-1]


@room.on("crash")
async def crash(socket: Socket[User], payload: Any) -> None:
    raise Asked


@room.on("where")
async def where(socket: Socket[User], payload: Any) -> dict[str, str]:
    return {"app": socket.app.state.name}


@room.on("kick")
async def kick(socket: Socket[User], payload: dict[str, str]) -> None:
    channels.disconnect(f"user:{payload['user']}")


@room.terminate
async def left(socket: Socket[User], reason: str) -> None:
    socket.broadcast_from("gone", {"user": socket.assigns.name, "reason": reason})


channels = Channels([room], connect=connect, socket_id=socket_id)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    app.state.name = type(app).__name__
    async with channels.lifespan(app):
        yield


mounted = Starlette(routes=[Mount("/socket", app=channels)], lifespan=lifespan)
nested = Starlette(
    routes=[Mount("/api", routes=[Mount("/v{version}", app=Router([Mount("/socket", app=channels)]))])],
    lifespan=lifespan,
)
fast = FastAPI(lifespan=lifespan)
fast.mount("/socket", channels)
fast_inside = Starlette(routes=[Mount("/inner", app=fast)], lifespan=lifespan)
