"""An application that refuses whoever wants to be refused, with a status or with a close code."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from starlette_channels import Channels, ConnectError, Handshake, LogOptions, Socket, channel

events: list[str] = []


async def connect(conn: Handshake) -> dict[str, Any]:
    """Let those in who give no code; `code=none` is a refusal with a status."""
    code, reason = conn.params.get("code"), str(conn.params.get("reason", "expired"))
    if code == "none":
        raise ConnectError(reason, 401)
    if code is not None:
        raise ConnectError(reason, 401, close=int(str(code)))
    return {}


@channel("room:*")
async def room(socket: Socket, payload: Any) -> None:
    events.append("join")


async def figures(request: Request) -> JSONResponse:
    numbers = channels.statistics()
    return JSONResponse({"connections": numbers.connections, "counts": numbers.counts, "events": events})


channels = Channels(
    [room],
    connect=connect,
    subprotocols=["chat", "sip"],
    auth_token=True,
    longpoll=True,
    log=LogOptions(connect="info"),
)
app = Starlette(
    routes=[Route("/figures", figures), Mount("/socket", app=channels)],
    lifespan=channels.lifespan,
)
