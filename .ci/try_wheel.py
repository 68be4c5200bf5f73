"""Chat once over the installed wheel: what it holds must be enough, without the project's folder."""

from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.routing import Mount

import starlette_channels
from starlette_channels import Channels, Reply, Socket, channel
from starlette_channels.testing import connect


@channel("room:*")
async def room(socket: Socket, payload: dict) -> None:
    """Let everybody in."""


@room.on("new_msg")
async def new_msg(socket: Socket, payload: dict) -> Reply:
    """Tell everybody."""
    socket.broadcast("new_msg", payload)
    return Reply("ok")


async def main() -> None:
    """Join, push, receive."""
    app = Starlette(routes=[Mount("/socket", app=Channels([room]))])
    async with connect(app, "/socket") as client:
        lobby = await client.join("room:lobby")
        assert await lobby.push("new_msg", {"body": "hi"}) == Reply("ok")
        assert await lobby.receive("new_msg") == {"body": "hi"}
    static = Path(starlette_channels.__file__).parent / "static"
    files = {path.name for path in static.iterdir()}
    assert files == {"channels.js", "channels.d.ts", "presence.js", "presence.d.ts", "shared.js"}, files
    print(f"the wheel of {starlette_channels.__version__} works")


anyio.run(main)
