"""The application of this library; the server's command line chooses the transport."""

import os
from typing import Any

from msgspec import Struct
from starlette.applications import Starlette
from starlette.routing import Mount

from starlette_channels import Channels, Limits, Rate, Socket, channel


class Message(Struct):
    """A payload of the load generator: a timestamp, and padding up to the size of the frame."""

    ts: int
    body: str


@channel("room:*")
async def room(socket: Socket, payload: dict[str, Any]) -> None:
    """Accept every join."""


@room.on("new_msg")
async def new_msg(socket: Socket, message: Message) -> None:
    """Broadcast to the room."""
    socket.broadcast("new_msg", message)


@room.on("echo")
async def echo(socket: Socket, message: Message) -> Message:
    """Echo the payload."""
    return message


# The load generator sends as fast as it is answered: its messages are counted as any others, but never too many.
limits = Limits(message_rate=Rate(1_000_000, burst=1_000_000))
channels = Channels([room], broker=os.environ.get("BROKER", "memory://"), limits=limits)
app = Starlette(routes=[Mount("/socket", app=channels)], lifespan=channels.lifespan)
