"""Channels that drain as the environment says."""

import os
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.routing import Mount

from starlette_channels import Channels, Drain, Socket, channel


@channel("room:*")
async def room(socket: Socket, payload: dict[str, Any]) -> None:
    """Accept every client."""


channels = Channels([room], drain=msgspec.convert(msgspec.json.decode(os.environ["DRAIN"]), Drain))
app = Starlette(routes=[Mount("/socket", app=channels)], lifespan=channels.lifespan)
