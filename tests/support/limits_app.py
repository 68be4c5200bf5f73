"""An application whose limits are hit at once, and whose buckets fill so slowly that no test sees it."""

from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from starlette_channels import Channels, Handshake, JoinError, Limits, Rate, Socket, channel

SLOW = 0.001


@channel("room:*")
async def room(socket: Socket, payload: dict[str, Any]) -> None:
    """Let those in who are not told to stay outside."""
    if "refuse" in payload:
        raise JoinError("no")
    if "hang" in payload:
        await anyio.sleep_forever()


@room.on("echo")
async def echo(socket: Socket, payload: dict[str, Any]) -> dict[str, Any]:
    return payload


@room.on("hang")
async def hang(socket: Socket, payload: Any) -> None:
    await anyio.sleep_forever()


async def connect(conn: Handshake) -> dict[str, Any]:
    if "hang" in conn.params:
        await anyio.sleep_forever()
    return dict(conn.params)


def channels(**limits: Any) -> Channels[dict[str, Any]]:
    return Channels(
        [room],
        connect=connect,
        socket_id=lambda assigns: assigns.get("user"),
        longpoll=True,
        limits=Limits(**limits),
    )


MOUNTS = {
    "rates": channels(
        message_rate=Rate(SLOW, burst=3), join_rate=Rate(SLOW, burst=2), refusal_rate=Rate(SLOW, burst=4)
    ),
    "shared": channels(
        identity_message_rate=Rate(SLOW, burst=3), identity_join_rate=Rate(SLOW, burst=3), identity_connections=2
    ),
    "full": channels(connections=1),
    "times": channels(connect_seconds=0.2, handler_seconds=0.2),
    "nodes": channels(message_rate=Rate(SLOW, burst=12), message_nodes=2_000),
    "delay": channels(refusal_seconds=0.2),
}


async def figures(request: Request) -> JSONResponse:
    return JSONResponse(dict(MOUNTS[request.path_params["name"]].statistics().counts))


app = Starlette(
    routes=[Route("/figures/{name}", figures), *(Mount(f"/{name}", app=mounted) for name, mounted in MOUNTS.items())]
)
