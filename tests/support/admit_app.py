"""An application whose join handlers read a list slowly, after `socket.admit()`: see test_admit_servers.py."""

from collections import defaultdict

import anyio
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from starlette_channels import Channels, Socket, channel

rows: defaultdict[str, list[int]] = defaultdict(list)
reading = 0


class Rows(Struct):
    """What the join answers."""

    rows: list[int]


@channel("list:*")
async def listing(socket: Socket, payload: dict[str, float]) -> Rows:
    """Read the list before the round trip to a database, and answer after it."""
    global reading
    await socket.admit()
    found = list(rows[socket.subtopic])
    reading += 1
    await anyio.sleep(payload.get("seconds", 0.0))
    return Rows(found)


channels = Channels([listing], longpoll=True)


async def add(request: Request) -> PlainTextResponse:
    """Add a row, as anybody may at any time, and tell how many joins were reading by then."""
    name, number = request.query_params["name"], int(request.query_params["n"])
    rows[name].append(number)
    channels.broadcast(f"list:{name}", "added", {"n": number})
    return PlainTextResponse(str(reading))


app = Starlette(
    routes=[Route("/add", add, methods=["POST"]), Mount("/socket", app=channels)], lifespan=channels.lifespan
)
