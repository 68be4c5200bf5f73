"""An application whose ASGI calls are counted, for the tests of the fast lane. Its garbage is not collected."""

import gc
import os
from collections import Counter
from typing import Any

import anyio
from httptools import HttpRequestParser
from itsdangerous import BadSignature
from msgspec import Raw, Struct
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from starlette_channels import Channels, ConnectError, Handshake, Limits, Socket, channel, latest_by_key
from starlette_channels.connection.connection import Connection
from starlette_channels.tokens import Tokens
from starlette_channels.transports.uvicorn import FastLane, SlicedHTTP
from starlette_channels.transports.uvicorn_lane.closing import Closing
from starlette_channels.transports.uvicorn_lane.connection import Lane
from starlette_channels.transports.uvicorn_lane.http_slices import HTTPSlices
from starlette_channels.transports.uvicorn_lane.uvicorn_websocket import UvicornWebSocket

gc.disable()

WATCHED = (
    *(FastLane, UvicornWebSocket, Closing, Lane, Connection, Handshake),
    *(SlicedHTTP, HTTPSlices, HttpRequestParser, BadSignature),
)
"""Kinds of which every client, or every refused one, has an instance for some time."""

tokens = Tokens("the key of a test is no secret", salt="lane")
open_calls = hanging = 0
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
    """Refuse those with a bad token or the wish to be refused; who wants to be held waits at the gate."""
    if "token" in conn.params:
        tokens.verify(conn.params["token"])
    if "close" in conn.params:
        raise ConnectError("as you wish", close=4401)
    if "hold" in conn.params:
        await gate.wait()
    return {}


@channel("room:*")
async def room(socket: Socket, payload: Any) -> None:
    """Let everybody in."""


@room.on("echo")
async def echo(socket: Socket, payload: Raw | bytes) -> Raw | bytes:
    return payload


@room.on("hang")
async def hang(socket: Socket, payload: Any) -> None:
    """Wait for ever, and tell the log when that is over."""
    global hanging
    hanging += 1
    try:
        await anyio.sleep_forever()
    finally:
        print("handler cancelled")


@room.terminate
async def terminate(socket: Socket, reason: str) -> None:
    print(f"terminate: {reason}")


class Tick(Struct):
    symbol: str
    price: int
    text: str = ""


@channel("pictures:*", when_slow="drop_oldest")
async def pictures(socket: Socket, payload: Any) -> None:
    """Only the newest are of interest, and only to those who keep up."""


@channel("prices:*", when_slow=latest_by_key("symbol"))
async def prices(socket: Socket, payload: Any) -> None:
    """Only the last of each symbol is of interest."""


@prices.on("echo")
@pictures.on("echo")
async def same(socket: Socket, payload: Raw) -> Raw:
    return payload


async def publish(request: Request) -> JSONResponse:
    """Broadcast prices of two symbols, in turns."""
    query = request.query_params
    for number in range(int(query["first"]), int(query["first"]) + int(query["number"])):
        tick = Tick("EUR" if number % 2 else "USD", number, "x" * int(query["size"]))
        channels.broadcast(query["topic"], "tick", tick)
    return JSONResponse({})


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
    kept = Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, WATCHED))
    return JSONResponse(
        {"open_calls": open_calls, "hanging": hanging, "kept": {kind.__name__: kept[kind.__name__] for kind in WATCHED}}
        | {"connections": numbers.connections, "counts": dict(numbers.counts)}
    )


channels = Channels(
    [room, pictures, prices],
    connect=connect,
    limits=Limits(outbox_bytes=200_000),
    drain="UNDRAINED" not in os.environ,
)
app = Starlette(
    routes=[
        Route("/figures", figures),
        Route("/release", release),
        Route("/publish", publish),
        WebSocketRoute("/plain", plain),
        Mount("/socket", app=channels),
    ],
    middleware=[Middleware(CountCalls)],
    lifespan=channels.lifespan,
)
