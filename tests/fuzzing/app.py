"""The app that hostile clients meet: `uvicorn tests.fuzzing.app:app`. It reports on itself at `/statistics/{mount}`."""

import contextlib
import ctypes
import gc
import logging
import os
import sys
from collections import Counter
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from starlette_channels import Channel, Channels, Handshake, JoinError, Limits, Reply, Socket, channel
from starlette_channels.wire.messages import Frame, Message
from starlette_channels.wire.serializers import V1, V2

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override

PACKAGE = "starlette_channels."
WATCHED = ("Connection", "WebSocketTransport", "Lane", "JoinedChannel", "Handshake")


class Asked(Exception):
    """A handler was asked to crash: the only exception that may be in the log."""


class NewMsg(Struct):
    """A payload with types that a client can miss."""

    body: str
    count: int = 0


class CountingV2(V2):
    """Counts the messages that get as far as us, whatever the transport."""

    messages = 0

    @override
    def decode(self, frame: Frame) -> Message:
        CountingV2.messages += 1
        return super().decode(frame)


class CountingV1(V1):
    """The same for the old version."""

    messages = 0

    @override
    def decode(self, frame: Frame) -> Message:
        CountingV1.messages += 1
        return super().decode(frame)


class Failures(logging.Handler):
    """Keeps what was logged with a traceback, unless `Asked` is the cause, and whatever asyncio complains of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[0] if record.exc_info else None
        unexpected = cause not in (None, Asked) or record.name == "asyncio"
        if unexpected and len(self.texts) < 20:
            self.texts.append(logging.Formatter("%(name)s: %(message).500s").format(record)[-4000:])


FAILURES = Failures()
for name in ("starlette_channels", "asyncio"):  # and no other handler: the log is for what nobody expects
    logging.getLogger(name).addHandler(FAILURES)
GATES: dict[str, anyio.Event] = {}


@channel("room:*")
async def room(socket: Socket, payload: Any) -> dict[str, Any] | None:
    match socket.subtopic:
        case "refused":
            raise JoinError("not you")
        case "crash":
            raise Asked
        case "slow":
            await anyio.sleep(0.01)
        case _:
            pass
    return {"joined": socket.subtopic} if payload == {"greet": True} else None


@room.on("echo")
async def echo(socket: Socket, payload: Any) -> Reply | bytes:
    return payload if isinstance(payload, bytes) else Reply("ok", payload)


@room.on("new_msg")
async def new_msg(socket: Socket, payload: NewMsg) -> dict[str, Any]:
    socket.broadcast("new_msg", payload)
    return {"count": payload.count}


@room.on("shout")
async def shout(socket: Socket, payload: dict[str, Any]) -> None:
    socket.broadcast("shout", payload)


@room.on("relay")
async def relay(socket: Socket, payload: Raw) -> None:
    socket.broadcast("relay", {"said": payload})  # JSON that nobody has decoded, on its way to everybody


@room.on("flood")
async def flood(socket: Socket, payload: dict[str, int]) -> None:
    first = payload.get("first", 0)
    for number in range(first, first + payload["messages"]):
        socket.broadcast("flood", {"number": number, "filler": "x" * payload["size"]})


@room.on("bin")
async def bin_(socket: Socket, payload: bytes) -> bytes:
    socket.broadcast("bin", payload)
    return payload


@room.on("wait")
async def wait(socket: Socket, payload: Any) -> dict[str, Any]:
    await anyio.lowlevel.checkpoint()
    return {}


@room.on("hold")
async def hold(socket: Socket, payload: str) -> None:
    await GATES.setdefault(payload, anyio.Event()).wait()


@room.on("release")
async def release(socket: Socket, payload: str) -> None:
    GATES.setdefault(payload, anyio.Event()).set()


@room.on("later")
async def later(socket: Socket, payload: Any) -> None:
    socket.start_soon(anyio.sleep_forever)
    try:
        socket.send_info(socket.reply_later())
    except RuntimeError:  # the client gave no ref
        raise Asked from None


@room.info(object)
async def info(socket: Socket, message: Any) -> None:
    message({"late": True})


@room.on("crash")
async def crash(socket: Socket, payload: Any) -> None:
    raise Asked


@room.on("stop")
async def stop(socket: Socket, payload: Any) -> None:
    socket.stop()


@channel("any:*")
async def anything(socket: Socket, payload: dict[str, Any]) -> None:
    socket.push("hello", {})


@anything.on_any
async def on_any(socket: Socket, event: str, payload: Any) -> Reply:
    return Reply("ok", {"event": event, "binary": isinstance(payload, bytes)})


@channel("typed:{number}")
async def typed(socket: Socket, payload: NewMsg, number: str) -> None:
    return None


async def connect(conn: Handshake) -> dict[str, Any]:
    return {"user": conn.params.get("user")}


def user_id(assigns: dict[str, Any]) -> str | None:
    return None if assigns["user"] is None else f"user:{assigns['user']}"


CHANNELS: list[Channel[dict[str, Any]]] = [room, anything, typed]
# What is attacked here lies behind the limits on rates, which have tests of their own.
ANY_RATE = Limits(message_rate=None, identity_message_rate=None, join_rate=None, identity_join_rate=None)
SMALL = replace(ANY_RATE, channels=5, message_bytes=4096, outbox_bytes=256 * 1024, backlog=50, idle_seconds=30.0)
IMPATIENT = replace(ANY_RATE, idle_seconds=1.0, outbox_bytes=64 * 1024)
SERIALIZERS = (CountingV2(), CountingV1())


def mount(limits: Limits = ANY_RATE, *, longpoll: bool = False) -> Channels[dict[str, Any]]:
    common: dict[str, Any] = {"connect": connect, "socket_id": user_id, "serializers": SERIALIZERS}
    return Channels(CHANNELS, **common, limits=limits, longpoll=longpoll)


MOUNTS = {"socket": mount(), "small": mount(SMALL), "impatient": mount(IMPATIENT)}


def memory() -> int:
    """Bytes of this process that are in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Have glibc return the memory that it keeps for later, so that what is in memory is what is in use."""
    with contextlib.suppress(OSError, AttributeError):  # another system
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def left_over() -> dict[str, int]:
    """How many objects there are of the kinds that each client has some of; what is free goes back to the system."""
    gc.collect()
    give_back()
    found = Counter(kind.__name__ for kind in map(type, gc.get_objects()) if str(kind.__module__).startswith(PACKAGE))
    return {name: found[name] for name in WATCHED}


async def statistics(request: Request) -> Response:
    """What the mount says of itself, and what the process does: memory, tasks, objects that should have gone."""
    objects = left_over() if "collect" in request.query_params else {}
    about: dict[str, Any] = {
        "tasks": len(anyio.get_running_tasks()),
        "rss": memory(),
        "objects": objects,
        "messages": CountingV2.messages + CountingV1.messages,
        "failures": FAILURES.texts,
    }
    return JSONResponse(about | msgspec.to_builtins(MOUNTS[request.path_params["mount"]].statistics()))


async def disconnect(request: Request) -> Response:
    for channels in MOUNTS.values():
        channels.disconnect(f"user:{request.path_params['user']}")
    return Response()


routes = [
    Route("/statistics/{mount}", statistics),
    Route("/disconnect/{user}", disconnect, methods=["POST"]),
    *(Mount(f"/{name}", app=channels) for name, channels in MOUNTS.items()),
]
app = Starlette(routes=routes)
