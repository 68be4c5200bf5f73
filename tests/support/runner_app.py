"""Channels that know their process, for the tests of `python -m starlette_channels run`."""

import logging
import os
from typing import Any

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from starlette_channels import Channels, Socket, channel
from tests.fuzzing.mounts import mounted


@channel("room:*")
async def room(socket: Socket, payload: Any) -> None:
    """Let everybody in."""


@room.on("process")
async def process(socket: Socket, payload: Any) -> dict[str, int]:
    return {"id": os.getpid()}


app = Starlette(routes=[Mount("/socket", app=Channels([room]))])


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """No channel at all, and no Starlette."""
    if scope["type"] == "http":
        await PlainTextResponse("hello")(scope, receive, send)


def make() -> Starlette:
    """Make an application that logs in a way of its own."""
    logging.basicConfig(format="the app's own log: %(message)s", level=logging.INFO)
    return mounted
