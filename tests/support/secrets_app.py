"""An application with everything switched on that logs: each of our loggers, and its own, at DEBUG."""

import logging
import sys
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from starlette_channels import (
    Channels,
    Expiry,
    Handshake,
    JoinError,
    Limits,
    LogContext,
    LogOptions,
    Presence,
    Rate,
    Socket,
    channel,
)
from starlette_channels.tokens import Tokens

handler = logging.StreamHandler(sys.stdout)
handler.addFilter(LogContext())
handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(topic)s %(event)s %(socket_id)s %(message)s"))
logging.basicConfig(level=logging.DEBUG, handlers=[handler])

KEY = "the-key-that-signs-hunter2-key"
tokens = Tokens(KEY, salt="secrets")
presence = Presence()


async def connect(conn: Handshake) -> dict[str, Any]:
    if "crash" in conn.params:
        raise ZeroDivisionError("a bug")
    if conn.auth_token is not None:
        tokens.verify(conn.auth_token)
    return {"name": "ann"}


async def refresh(assigns: dict[str, Any], payload: dict[str, Any]) -> dict[str, Any]:
    if "crash" in payload:
        raise ZeroDivisionError("a bug")
    return assigns


@channel("room:*")
async def room(socket: Socket, payload: dict[str, Any]) -> None:
    if "refuse" in payload:
        raise JoinError("no")
    if "crash" in payload:
        raise ZeroDivisionError("a bug")
    presence.track(socket, "ann", {"password": payload.get("password")})


@room.on("echo")
async def echo(socket: Socket, payload: Any) -> dict[str, Any]:
    return {"echo": payload}


@room.on("typed")
async def typed(socket: Socket, payload: dict[str, int]) -> dict[str, Any]:
    return {}


@room.on("shout")
async def shout(socket: Socket, payload: dict[str, Any]) -> None:
    socket.broadcast("shout", payload)
    socket.send_info(payload["password"])


@room.on("crash")
async def crash(socket: Socket, payload: Any) -> None:
    raise ZeroDivisionError("a bug")


async def token(request: Request) -> JSONResponse:
    return JSONResponse({"token": tokens.sign({"hunter2": "in a signed token"})})


channels = Channels(
    [room],
    connect=connect,
    socket_id=lambda assigns: assigns["name"],
    auth_token=True,
    expiry=Expiry(at=lambda assigns: None, refresh=refresh),
    presence=presence,
    longpoll=True,
    limits=Limits(message_rate=Rate(0.01, burst=40), refusal_rate=Rate(0.01, burst=5)),
    log=LogOptions(connect="debug"),
)
app = Starlette(routes=[Mount("/socket", app=channels), Route("/token", token)], lifespan=channels.lifespan)
