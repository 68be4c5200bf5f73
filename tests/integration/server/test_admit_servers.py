"""`await socket.admit()` through real servers, on the fast lane and elsewhere: no row is missed, whoever joins when."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fuzzing.wire import SECONDS, Address, Wire, text
from tests.support.servers import FAST_LANE, HYPERCORN_TRIO, UVICORN, Kind, Server, serve

pytestmark = pytest.mark.anyio

PATH = "/socket/websocket?vsn=2.0.0"
CLIENTS, ROWS = 30, 150


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=[FAST_LANE, UVICORN, HYPERCORN_TRIO], ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    kind: Kind = request.param
    with serve("tests.support.admit_app:app", kind) as server:
        yield server


async def test_every_client_knows_every_row_once_and_in_order(server: Server) -> None:
    done = asyncio.Event()

    async def write(http: httpx.AsyncClient) -> None:
        for number in range(ROWS):
            await http.post("/add", params={"name": "busy", "n": str(number)})
        done.set()

    async def read(number: int) -> tuple[list[int], list[int]]:
        wire = await Wire.open(Address(server.port), PATH)
        reply = await wire.join("list:busy", payload={"seconds": 0.01 * number})
        state: list[int] = reply["rows"]
        await done.wait()
        wire.send(text(None, "end", "phoenix", "heartbeat", {}))
        came = await wire.until("end")
        wire.abort()
        return state, [frame[4]["n"] for frame in came if frame[3] == "added"]

    async with httpx.AsyncClient(base_url=server.http, trust_env=False) as http, asyncio.TaskGroup() as tasks:
        tasks.create_task(write(http))
        readers = [tasks.create_task(read(number)) for number in range(CLIENTS)]
    for reader in readers:
        state, added = reader.result()
        assert [*state, *(number for number in added if number not in state)] == list(range(ROWS))
        assert added == sorted(set(added))


async def test_a_broadcast_to_the_joining_client_follows_the_reply_on_the_wire(server: Server) -> None:
    wire = await Wire.open(Address(server.port), PATH)
    async with httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
        before = (await http.post("/add", params={"name": "none", "n": "0"})).text
        wire.send(text("1", "1", "list:a", "phx_join", {"seconds": 0.5}))
        async with asyncio.timeout(SECONDS):
            while (await http.post("/add", params={"name": "a", "n": "1"})).text == before:
                pass
    came: list[Any] = [json.loads(await wire.receive()) for _ in range(2)]
    assert [frame[3] for frame in came] == ["phx_reply", "added"]
    wire.abort()
