"""Channels for servers with several workers: without a broker, with one, and without need of any."""

import os
from typing import Any

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


def alone() -> Channels[dict[str, Any]]:
    return Channels([room])


def together() -> Channels[dict[str, Any]]:
    return Channels([room], broker="zenoh://")


def apart() -> Channels[dict[str, Any]]:
    return Channels([room], broker=Broker())
