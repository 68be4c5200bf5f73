"""Channels that know their process, for the tests of `python -m starlette_channels run`."""

import logging
import os
from typing import Any

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from starlette_channels import Broker, Channels, Socket, channel


@channel("room:*")
async def room(socket: Socket, payload: Any) -> None:
    """Let everybody in."""


@room.on("process")
async def process(socket: Socket, payload: Any) -> dict[str, int]:
    return {"id": os.getpid()}


@room.on("tell")
async def tell(socket: Socket, payload: Any) -> None:
    socket.broadcast("told", {})


app = Starlette(routes=[Mount("/socket", app=Channels([room]))])


def together() -> Starlette:
    """Make an application whose workers hear each other."""
    channels = Channels([room], broker="zenoh://")
    return Starlette(routes=[Mount("/socket", app=channels)], lifespan=channels.lifespan)


def apart() -> Starlette:
    """Make one whose workers need not hear each other."""
    return Starlette(routes=[Mount("/socket", app=Channels([room], broker=Broker()))])


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """No channel at all, and no Starlette."""
    if scope["type"] == "http":
        await PlainTextResponse("hello")(scope, receive, send)


def make() -> Starlette:
    """Make an application that logs in a way of its own."""
    from tests.fuzzing.mounts import mounted

    logging.basicConfig(format="the app's own log: %(message)s", level=logging.INFO)
    return mounted
