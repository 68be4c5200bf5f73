# pyright: basic, reportMissingImports=false
"""python-socketio, on its own wire: rooms, and the answer to `echo` is an acknowledgement."""

from typing import Any
from urllib.parse import parse_qs

import socketio

server = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")


@server.event
async def connect(sid: str, environ: dict[str, Any]) -> None:
    """Accept every client, and enter the room in its address."""
    (room,) = parse_qs(environ["QUERY_STRING"])["room"]
    await server.enter_room(sid, room)


@server.event
async def new_msg(sid: str, message: dict[str, Any]) -> None:
    """Broadcast to the room."""
    await server.emit("new_msg", message, room=message["room"])


@server.event
async def echo(sid: str, message: dict[str, Any]) -> dict[str, Any]:
    """Echo the payload."""
    return message


app = socketio.ASGIApp(server)
