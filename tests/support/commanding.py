"""What the tests of commands between processes share: channels that stand for processes."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio

from starlette_channels import Broker, Channels, Handshake, Socket, channel
from starlette_channels.testing import Client
from tests.support.relaying import PATIENCE


async def who(conn: Handshake) -> dict[str, Any]:
    return {"id": conn.params.get("user")}


@channel("room:*")
async def room(socket: Socket, payload: Any) -> None:
    """Let everybody in."""


@asynccontextmanager
async def processes(url: str, number: int = 2) -> AsyncGenerator[list[Channels[Any]]]:
    """Channels that know each other only over the engine, as those of different processes do."""
    async with AsyncExitStack() as stack:
        those: list[Channels[Any]] = []
        for _ in range(number):
            those.append(Channels([room], connect=who, socket_id=lambda user: user["id"], broker=Broker(url)))
            await stack.enter_async_context(those[-1].lifespan())
        yield those


async def closed(client: Client) -> int:
    with anyio.fail_after(PATIENCE):
        return await client.closed()
