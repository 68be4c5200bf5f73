"""The application under attack, with signed tokens, a feed, and default limits."""

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
    """The owner of a token."""

    name: str


async def connect(conn: Handshake) -> User:
    """Accept clients with a valid token."""
    return User(tokens.verify(conn.params.get("token"), str))


@channel("room:*", "feed")
async def room(socket: Socket[User], payload: dict[str, Any]) -> None:
    """Accept every join."""


@room.on("echo")
async def echo(socket: Socket[User], payload: Raw) -> Raw:
    """Echo the payload."""
    return payload


@room.on("shout")
async def shout(socket: Socket[User], payload: Raw) -> None:
    """Broadcast to the room."""
    socket.broadcast("shout", payload)


@room.on("crash")
async def crash(socket: Socket[User], payload: Raw) -> None:
    """Crash."""
    raise ZeroDivisionError


@channel("relay:*")
async def relay(socket: Socket[User], payload: dict[str, Any]) -> None:
    """Accept all joins but those that ask to be refused."""
    if "refuse" in payload:
        raise JoinError("no")


@relay.on_any
async def pass_on(socket: Socket[User], event: str, payload: Raw) -> None:
    """Broadcast an event with the name and payload that the client has chosen."""
    socket.broadcast(event, payload)


channels = Channels([room, relay], connect=connect, socket_id=lambda user: f"user:{user.name}", longpoll=True)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    """Broadcast the feed."""
    async with channels.lifespan(app), anyio.create_task_group() as tasks:
        tasks.start_soon(_feed)
        yield
        tasks.cancel_scope.cancel()


async def _feed() -> None:
    while True:
        channels.broadcast("feed", "news", {"text": "x" * FEED_BYTES})
        await anyio.sleep(FEED_SECONDS)


async def statistics(request: Request) -> JSONResponse:
    """Return the statistics."""
    found = channels.statistics()
    return JSONResponse({"connections": found.connections, "counts": found.counts})


app = Starlette(routes=[Route("/statistics", statistics), Mount("/socket", app=channels)], lifespan=lifespan)
