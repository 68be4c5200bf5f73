"""A chat with several rooms over one connection, presence, a private room, and announcements over HTTP.

`python -m example_app` runs it, and so does `uvicorn example_app.app:app`. Open the page in two windows.
"""

import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
import msgspec
from msgspec import Meta, Struct, field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from example_app.history import History, Message, new_id
from starlette_channels import (
    Channels,
    ConnectError,
    Handshake,
    JoinError,
    Presence,
    PresenceError,
    PresenceTiming,
    Socket,
    channel,
)

PASSPHRASE = os.environ.get("CHAT_PASSPHRASE", "open sesame")
BROKER = os.environ.get("CHAT_BROKER", "memory://")  # several workers need zenoh://, several hosts redis:// or nats://
HISTORY = os.environ.get("CHAT_HISTORY", ":memory:")  # a file, for several workers

Body = Annotated[str, Meta(min_length=1, max_length=2000, pattern=r"\S")]


class User(Struct, frozen=True):
    """The user of a connection."""

    name: Annotated[str, Meta(min_length=1, max_length=24, pattern=r"^\S(.*\S)?\Z")]


class Room(Struct, frozen=True):
    """A room in the page's list."""

    id: str
    title: str
    about: str
    private: bool = False


class JoinRoom(Struct):
    """The payload of a join; only the private room checks it."""

    passphrase: str = ""


class NewMessage(Struct):
    """A message from a client. Its author chooses the id, so that a message that is sent again is not stored twice."""

    body: Body
    id: Annotated[str, Meta(min_length=8, max_length=36)] = field(default_factory=new_id)


class Announcement(Struct):
    """The JSON body of `POST /announce`."""

    room: str
    body: Body


ROOMS = [
    Room("lobby", "Lobby", "Where everybody comes in"),
    Room("garden", "Garden", "Small talk and fresh air"),
    Room("workshop", "Workshop", "Show what you are making"),
    Room("attic", "Attic", "By invitation only", private=True),
]
known = {room.id for room in ROOMS}
private = {room.id for room in ROOMS if room.private}
history = History(HISTORY)
presence = Presence(timing=PresenceTiming(news_seconds=0.5))


async def connect(conn: Handshake) -> User:
    """Accept a client under the name that it gives; the user is `socket.assigns` in all channels."""
    try:
        return msgspec.convert(conn.params, User)
    except msgspec.ValidationError as error:
        raise ConnectError(str(error)) from error


@channel("room:*")
async def room(socket: Socket[User], join: JoinRoom) -> dict[str, list[Message]]:
    """Join a room: track the user, and reply with the latest messages, oldest first."""
    if socket.subtopic not in known:
        raise JoinError("there is no such room")
    if socket.subtopic in private and not secrets.compare_digest(join.passphrase.encode(), PASSPHRASE.encode()):
        raise JoinError("that is not the passphrase")
    await socket.admit()  # subscribe before reading: no message is missed in between
    try:
        presence.track(socket, socket.assigns.name)
    except PresenceError as error:
        raise JoinError("that name is reserved") from error
    presence.push_state(socket)
    return {"messages": await anyio.to_thread.run_sync(history.latest, socket.subtopic)}


@room.on("new_msg")
async def new_msg(socket: Socket[User], new: NewMessage) -> Message:
    """Store a message; the others get it as an event, its author as the reply."""
    message = Message(socket.assigns.name, new.body, new.id)
    kept = await anyio.to_thread.run_sync(history.add, socket.subtopic, message)
    if kept is message:  # else the first reply was lost, and this is the retry
        socket.broadcast_from("new_msg", message)
    return kept


@room.on("typing")
async def typing(socket: Socket[User], _: dict[str, Any]) -> None:
    """Tell the others who is typing, without a reply."""
    socket.broadcast_from("typing", socket.assigns)


async def rooms(_: Request) -> JSONResponse:
    """List the rooms for the page."""
    return JSONResponse(msgspec.to_builtins(ROOMS))


async def announce(request: Request) -> JSONResponse:
    """Broadcast an announcement to a room. Add authorization before you copy this."""
    try:
        new = msgspec.json.decode(await request.body(), type=Announcement)
    except (ValueError, RecursionError) as error:
        return JSONResponse({"error": str(error)}, status_code=422)
    if new.room not in known:
        return JSONResponse({"error": "there is no such room"}, status_code=404)
    message = Message(None, new.body)
    await anyio.to_thread.run_sync(history.add, new.room, message)
    channels.broadcast(f"room:{new.room}", "new_msg", message)
    return JSONResponse(msgspec.to_builtins(message), status_code=201)


CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class PageFiles(StaticFiles):
    """The page's files, with fixed content types; those in the registry or `mime.types` of some machines would keep
    browsers from running modules.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the response with its content type."""
        response = await super().get_response(path, scope)
        if isinstance(response, FileResponse):
            response.headers["content-type"] = CONTENT_TYPES.get(Path(response.path).suffix, "application/octet-stream")
        response.headers["x-content-type-options"] = "nosniff"
        return response


channels = Channels([room], connect=connect, broker=BROKER, presence=presence)

app = Starlette(
    routes=[
        Route("/rooms", rooms),
        Route("/announce", announce, methods=["POST"]),
        Mount("/socket", app=channels),
        Mount("/", app=PageFiles(directory=Path(__file__).parent / "static", html=True)),
    ],
    lifespan=channels.lifespan,
)
