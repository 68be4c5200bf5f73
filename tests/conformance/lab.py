"""The channel Lab of channels.md: the same behaviour under four patterns, each with a colour of its own."""

from typing import Any, cast

from msgspec import Struct

from starlette_channels import Broadcast, Channel, JoinError, Reply, channel
from tests.conformance.lab_events import EVENTS, EndLater
from tests.conformance.session import Client, Crash, broadcast, json, wait


class Welcome(Struct):
    """Left for after the join: push, broadcast, and broadcast what is intercepted."""

    n: Any


class Greet(Struct):
    """Left for after the join: push only."""

    n: Any


def lab(pattern: str, color: str | None) -> Channel[Any]:
    """A Lab under this pattern."""

    @channel(pattern)
    async def room(socket: Client, payload: Any) -> Reply | None:
        socket.assigns.color = color
        return await join(socket, cast("dict[str, Any]", payload) if isinstance(payload, dict) else {})

    for name, handler in EVENTS.items():
        room.on(name)(handler)
    room.on_any(unmatched)
    room.intercept("spy")(spy)
    room.info(Broadcast)(heard)
    room.info(Welcome)(welcome)
    room.info(Greet)(greet)
    room.info(EndLater)(end)
    room.terminate(bye)
    return room


async def join(socket: Client, params: dict[str, Any]) -> Reply | None:
    match params:
        case {"refuse": reason}:
            raise JoinError(payload=reason)
        case {"exit": True}:
            raise Crash("asked for")
        case {"bad_return": True}:
            return cast("Reply", object())
        case {"push": True}:
            socket.push("too_early", {})
            raise Crash("pushes made before the join is done go nowhere")
        case {"broadcast": payload}:
            broadcast(socket, socket.topic, "news", payload)
            return None
        case {"binary": True}:
            return Reply("ok", b"\x01\x02\xff")
        case {"welcome": n}:
            socket.send_info(Welcome(n))
            return Reply("ok", {"n": n})
        case {"greet": n}:
            socket.send_info(Greet(n))
            return None
        case {"slow": milliseconds}:
            await wait(milliseconds)
            return Reply("ok", {"slept": milliseconds})
        case {"reply": response}:
            return Reply("ok", response)
        case {"bye": text}:
            socket.assigns.bye = text
            return None
        case _:
            return None


async def unmatched(socket: Client, event: Any, payload: Any) -> None:
    raise Crash(f"no entry for the event {event!r}")


async def welcome(socket: Client, message: Welcome) -> None:
    socket.push("welcome", {"n": message.n})
    socket.broadcast("arrived", {"n": message.n})
    socket.broadcast("spy", {"n": message.n})


async def greet(socket: Client, message: Greet) -> None:
    socket.push("welcome", {"n": message.n})


async def end(socket: Client, message: EndLater) -> None:
    match message.payload:
        case {"crash": True}:
            raise Crash("asked for")
        case _:
            socket.stop()


async def spy(socket: Client, payload: Any) -> None:
    me = socket.assigns.user_id
    match payload:
        case {"stop_for": user} if user == me:
            socket.stop()
        case {"hide_from": user} if user == me:
            pass
        case _:
            socket.push("spied", {"by": me, "what": json(payload)})


async def heard(socket: Client, message: Broadcast) -> None:
    if message.topic != socket.topic:
        relayed = {"topic": message.topic, "event": message.event, "payload": json(message.payload)}
        socket.push("relayed", relayed)
    elif message.event == "spy":
        await spy(socket, message.payload)
    else:
        raise Crash(f"no entry for the broadcast {message.event!r}")


async def bye(socket: Client, reason: str) -> None:
    if socket.assigns.bye is not None and socket.assigns.bye is not False:
        socket.push("bye", {"text": socket.assigns.bye})
