"""An application whose ASGI calls are counted, for the tests of the fast lane."""

from typing import Any

import anyio
from msgspec import Raw
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from starlette_channels import Channels, Handshake, Socket, channel

open_calls = 0
gate = anyio.Event()


class CountCalls:
    """Knows how many WebSocket calls have not returned."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        global open_calls
        if scope["type"] != "websocket":
            return await self.app(scope, receive, send)
        open_calls += 1
        try:
            await self.app(scope, receive, send)
        finally:
            open_calls -= 1


async def connect(conn: Handshake) -> dict[str, Any]:
    """Let everybody in; who wants to be held waits at the gate."""
    if "hold" in conn.params:
        await gate.wait()
    return {}


@channel("room:*")
async def room(socket: Socket, payload: Any) -> None:
    """Let everybody in."""


@room.on("echo")
async def echo(socket: Socket, payload: Raw | bytes) -> Raw | bytes:
    return payload


async def plain(websocket: WebSocket) -> None:
    """No channel: an ordinary WebSocket endpoint behind the same server."""
    await websocket.accept()
    try:
        async for text in websocket.iter_text():
            await websocket.send_text(text.upper())
            if text == "bye":
                await websocket.close(4001, "as you wish")
    except WebSocketDisconnect:
        return


async def release(request: Request) -> JSONResponse:
    gate.set()
    return JSONResponse({})


async def figures(request: Request) -> JSONResponse:
    numbers = channels.statistics()
    return JSONResponse({"open_calls": open_calls, "connections": numbers.connections, "counts": dict(numbers.counts)})


channels = Channels([room], connect=connect)
app = Starlette(
    routes=[
        Route("/figures", figures),
        Route("/release", release),
        WebSocketRoute("/plain", plain),
        Mount("/socket", app=channels),
    ],
    middleware=[Middleware(CountCalls)],
    lifespan=channels.lifespan,
)
