"""A process that was blocked or suspended reads what has come meanwhile, before it calls anybody silent."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.fuzzing.wire import Address, Wire, opened, text
from tests.support.servers import FAST_LANE, UVICORN, Kind, Server, serve

pytestmark = pytest.mark.anyio
PATH = "/socket/websocket?vsn=2.0.0"
IDLE_SECONDS = 2.0
STALL_SECONDS = 3.5
CLIENTS = 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=[FAST_LANE, UVICORN], ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    kind: Kind = request.param
    with serve("tests.support.stall_app:app", kind) as server:
        yield server


async def block(server: Server, wire: Wire) -> None:
    """Block the event loop of the server for as long as it says."""
    wire.send(text("1", "9", "room:a", "block", {"seconds": STALL_SECONDS}))


async def suspend(server: Server, wire: Wire) -> None:
    """Suspend the process of the server for a while."""
    os.kill(server.pid, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(STALL_SECONDS, os.kill, server.pid, signal.SIGCONT)


@pytest.mark.parametrize("stall", [block, suspend])
async def test_clients_whose_heartbeats_lie_unread_are_not_closed_and_those_who_were_silent_are(
    server: Server, stall: Callable[[Server, Wire], Awaitable[None]]
) -> None:
    async with AsyncExitStack() as stack:
        silent, *wires = [
            await stack.enter_async_context(opened(Address(server.port), PATH)) for _ in range(CLIENTS + 1)
        ]
        for wire in wires:
            await wire.join("room:a")
        beating = asyncio.create_task(beat(wires))
        await stall(server, wires[0])
        assert (await silent.closed()).code == 1002
        for number, wire in enumerate(wires):
            wire.send(text("1", f"echo {number}", "room:a", "echo", {"n": number}))
            assert (await wire.until(f"echo {number}"))[-1][4] == {"status": "ok", "response": {"n": number}}
        beating.cancel()


async def beat(wires: list[Wire]) -> None:
    """Send heartbeats at a sixth of the time that a client may be silent."""
    for ref in range(1_000):
        for wire in wires:
            wire.send(text(None, f"beat {ref}", "phoenix", "heartbeat"))
        await asyncio.sleep(IDLE_SECONDS / 6)


async def test_a_session_whose_poll_lies_unread_does_not_end(server: Server) -> None:
    async with (
        httpx.AsyncClient(trust_env=False, timeout=30) as http,
        opened(Address(server.port), PATH) as wire,
    ):
        url = f"{server.http}/socket/longpoll?vsn=2.0.0"
        token = (await http.get(url)).json()["token"]
        assert (await http.get(f"{url}&token={token}")).json()["status"] == 204
        await suspend(server, wire)
        assert (await http.get(f"{url}&token={token}")).json()["status"] == 204
