"""Channels for the tests of what servers do when they are told to stop: how they drain, the environment says."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from starlette_channels import Broker, Channels, Drain, Limits, Reply, Socket, channel

gate = anyio.Event()


@channel("room:*")
async def room(socket: Socket, payload: Any) -> None:
    """Let everybody in."""


@room.on("process")
async def process(socket: Socket, payload: Any) -> dict[str, int]:
    return {"id": os.getpid()}


@room.on("work")
async def work(socket: Socket, payload: Any) -> Reply:
    """Take as long as whoever opens the gate does."""
    print("at work", flush=True)
    await gate.wait()
    return Reply("ok", payload)


@room.on("hang")
async def hang(socket: Socket, payload: Any) -> None:
    """Wait for ever."""
    print("at work", flush=True)
    await anyio.sleep_forever()


@room.terminate
async def terminate(socket: Socket, reason: str) -> None:
    print(f"terminate: {reason}", flush=True)


async def open_gate(request: Request) -> JSONResponse:
    gate.set()
    return JSONResponse({})


async def send_away(request: Request) -> JSONResponse:
    """Drain because an operator says so."""
    await channels.drain()
    return JSONResponse({})


async def disconnect(request: Request) -> JSONResponse:
    channels.disconnect("everybody", code=int(request.query_params["code"]), reason=request.query_params["reason"])
    return JSONResponse({})


async def kick(request: Request) -> JSONResponse:
    channels.kick("everybody", request.query_params["topic"], reason=request.query_params["reason"])
    return JSONResponse({})


drain = msgspec.convert(msgspec.json.decode(os.environ.get("DRAIN", "{}")), Drain)
# A broker each, said so: workers need not hear each other here.
channels = Channels(
    [room],
    socket_id=lambda _: "everybody",
    drain=drain,
    longpoll=True,
    limits=Limits(shutdown_seconds=30.0),
    broker=Broker(),
)
others = Channels([room], drain=drain, broker=Broker())
routes = [
    Route("/ready", channels.ready),
    Route("/open", open_gate),
    Route("/drain", send_away),
    Route("/disconnect", disconnect),
    Route("/kick", kick),
    Mount("/socket", app=channels),
    Mount("/others", app=others),
]


@asynccontextmanager
async def both(app: Starlette) -> AsyncGenerator[None]:
    """Two lifespans, one inside the other."""
    async with channels.lifespan(app), others.lifespan(app):
        yield


app = Starlette(routes=routes, lifespan=channels.lifespan)
two = Starlette(routes=routes, lifespan=both)
