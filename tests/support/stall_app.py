"""An application that can be made to block its event loop, and that soon calls clients silent."""

import time
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount

from starlette_channels import Channels, Limits, LongPoll, Socket, channel


@channel("room:*")
async def room(socket: Socket, payload: dict[str, Any]) -> None:
    """Let everybody in."""


@room.on("echo")
async def echo(socket: Socket, payload: dict[str, Any]) -> dict[str, Any]:
    return payload


@room.on("block")
async def block(socket: Socket, payload: dict[str, Any]) -> None:
    time.sleep(payload["seconds"])  # noqa: ASYNC251 - that is what it is for


channels = Channels([room], limits=Limits(idle_seconds=2.0), longpoll=LongPoll(window_seconds=0.5))
app = Starlette(routes=[Mount("/socket", app=channels)], lifespan=channels.lifespan)
