"""The application of the cluster's nodes: one room, whose clients are present, and talk.

`BROKER` is the broker's address, and `NODE` the name by which the tests know this node.
"""

import itertools
import os
from typing import Any

from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Mount, Route

from starlette_channels import Broker, Channels, Gap, Handshake, Presence, PresenceTiming, Reply, Socket, channel

NODE = os.environ.get("NODE", "")
HALL = "room:hall"

TIMING = PresenceTiming(news_seconds=0.1, heartbeat_seconds=0.3, down_seconds=1.4)
presence = Presence(timing=TIMING)
broker = Broker(os.environ.get("BROKER", "memory://"))
said = itertools.count(1)


class User(Struct):
    """Whoever connects says who that is, and nobody who is only here to look on."""

    name: str


async def connect(handshake: Handshake) -> User:
    return User(handshake.query_params.get("user", ""))


@channel("room:*")
async def room(socket: Socket[User], payload: Any) -> None:
    if socket.assigns.name:
        presence.track(socket, socket.assigns.name, {"node": NODE})
    presence.push_state(socket)


@room.on("say")
async def say(socket: Socket[User], payload: Any) -> None:
    """Say the next number of this life of this node to all."""
    socket.broadcast("said", {"life": broker.node, "number": next(said)})


@room.on("done")
async def done(socket: Socket[User], payload: Any) -> Reply:
    """Answer when all that was to be said before is said."""
    return Reply("ok")


@room.info(Gap)
async def gap(socket: Socket[User], gap: Gap) -> None:
    socket.push("gap", {"life": gap.publisher, "lost": gap.lost})


@channel("quiet:*")
async def quiet(socket: Socket[User], payload: Any) -> None:
    """Be where nobody has spoken yet."""


@quiet.info(Gap)
async def quiet_gap(socket: Socket[User], gap: Gap) -> None:
    socket.push("gap", {"life": gap.publisher, "lost": gap.lost})


async def break_silence(request: Request) -> JSONResponse:
    """Say something on topics."""
    for topic in request.query_params["topics"].split(","):
        channels.broadcast(topic, "said", {"life": broker.node})
    return JSONResponse(broker.node)


async def disconnect(request: Request) -> JSONResponse:
    """Disconnect a user, and kick another out of a topic."""
    channels.disconnect(request.query_params["user"], code=4001)
    channels.kick(request.query_params["kicked"], request.query_params["topic"], reason="out")
    return JSONResponse(broker.node)


async def speak(request: Request) -> JSONResponse:
    """Say a number, and tell which."""
    number = next(said)
    channels.broadcast(HALL, "said", {"life": broker.node, "number": number})
    return JSONResponse([broker.node, number])


async def report(request: Request) -> JSONResponse:
    """Who is there, as this node knows it, and what has gone wrong."""
    who = [[key, meta["phx_ref"]] for key, one in (await presence.list(HALL)).items() for meta in one["metas"]]
    return JSONResponse({"who": sorted(who), "counts": dict(channels.statistics().counts)})


async def page(request: Request) -> HTMLResponse:
    """An empty page, from which the test that opens it connects."""
    return HTMLResponse("<!doctype html><title>watcher</title>")


channels = Channels(
    [room, quiet], connect=connect, socket_id=lambda user: user.name or None, broker=broker, presence=presence
)
routes = [
    Route("/page", page),
    Route("/speak", speak),
    Route("/break_silence", break_silence),
    Route("/disconnect", disconnect),
    Route("/report", report),
    Mount("/socket", app=channels),
]
app = Starlette(routes=routes, lifespan=channels.lifespan)
