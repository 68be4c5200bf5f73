"""One topic with presence."""

import os
from itertools import count
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from starlette_channels import Channels, Presence, PresenceDiff, Socket, channel

presence = Presence()
keys = count()
diffs = {"diffs": 0, "changes": 0, "bytes": 0}


@channel("hall:*")
async def hall(socket: Socket, payload: dict[str, Any]) -> None:
    """Track the client, and push the state."""
    presence.track(socket, f"user-{os.getpid()}-{next(keys)}", {"online_at": 1_800_000_000})
    presence.push_state(socket)


@presence.on_diff
async def changed(topic: str, diff: PresenceDiff) -> None:
    """Count."""
    diffs["diffs"] += 1
    diffs["changes"] += len(diff.joins) + len(diff.leaves)
    diffs["bytes"] += len(msgspec.json.encode({"joins": diff.joins, "leaves": diff.leaves}))


async def statistics(request: Request) -> JSONResponse:
    """Return the numbers of diffs, changes and presences."""
    return JSONResponse({**diffs, "members": presence.count("hall:1")})


channels = Channels([hall], broker=os.environ.get("BROKER", "memory://"))
app = Starlette(routes=[Route("/statistics", statistics), Mount("/socket", app=channels)], lifespan=channels.lifespan)
