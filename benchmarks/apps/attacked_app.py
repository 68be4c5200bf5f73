"""What is attacked: an application with signed tokens, a feed, and the limits that are there by default."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from msgspec import Raw, Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from starlette_channels import Channels, Handshake, JoinError, Socket, channel
from starlette_channels.tokens import Tokens

FEED_BYTES = 20_000
FEED_SECONDS = 0.1

tokens = Tokens("the key of a benchmark is no secret", salt="attack")


class User(Struct):
    """Who has shown a token."""

    name: str


async def connect(conn: Handshake) -> User:
    """Let in whoever has a token of ours."""
    return User(tokens.verify(conn.params.get("token"), str))


@channel("room:*", "feed")
async def room(socket: Socket[User], payload: dict[str, Any]) -> None:
    """Let everybody in."""


@room.on("echo")
async def echo(socket: Socket[User], payload: Raw) -> Raw:
    """Answer with what came."""
    return payload


@room.on("shout")
async def shout(socket: Socket[User], payload: Raw) -> None:
    """Tell everybody in the room."""
    socket.broadcast("shout", payload)


@room.on("crash")
async def crash(socket: Socket[User], payload: Raw) -> None:
    """Have a bug."""
    raise ZeroDivisionError


@channel("relay:*")
async def relay(socket: Socket[User], payload: dict[str, Any]) -> None:
    """Let everybody in who is not to be refused."""
    if "refuse" in payload:
        raise JoinError("no")


@relay.on_any
async def pass_on(socket: Socket[User], event: str, payload: Raw) -> None:
    """Tell everybody whatever it is, by the name that the client has chosen."""
    socket.broadcast(event, payload)


channels = Channels([room, relay], connect=connect, socket_id=lambda user: f"user:{user.name}", longpoll=True)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    """Feed those who listen, and those who only pretend to."""
    async with channels.lifespan(app), anyio.create_task_group() as tasks:
        tasks.start_soon(_feed)
        yield
        tasks.cancel_scope.cancel()


async def _feed() -> None:
    while True:
        channels.broadcast("feed", "news", {"text": "x" * FEED_BYTES})
        await anyio.sleep(FEED_SECONDS)


async def statistics(request: Request) -> JSONResponse:
    """Say what there is, and what has been counted."""
    found = channels.statistics()
    return JSONResponse({"connections": found.connections, "counts": found.counts})


app = Starlette(routes=[Route("/statistics", statistics), Mount("/socket", app=channels)], lifespan=lifespan)
