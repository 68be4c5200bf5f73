"""An application whose handlers are slow now and then, so that connections are paused and resumed all the time."""

from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.routing import Mount

from starlette_channels import Channels, Limits, Socket, channel


@channel("room:*")
async def room(socket: Socket, payload: dict[str, Any]) -> None:
    """Let everybody in."""


@room.on("echo")
async def echo(socket: Socket, payload: dict[str, Any]) -> dict[str, Any]:
    if "wait" in payload:
        await anyio.sleep(payload["wait"])
    return payload


limits = Limits(
    backlog=8, message_rate=None, identity_message_rate=None, join_rate=None, identity_join_rate=None, refusal_rate=None
)
channels = Channels([room], limits=limits)
app = Starlette(routes=[Mount("/socket", app=channels)], lifespan=channels.lifespan)
