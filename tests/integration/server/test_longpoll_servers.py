"""Long-polling through real servers: clients that hang up, bodies that are too big, several processes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support.polling import BEAT, BEATEN
from tests.support.servers import (
    FAST_LANE,
    GRANIAN,
    HOST,
    HYPERCORN,
    HYPERCORN_TRIO,
    UVICORN,
    UVICORN_WSPROTO,
    Kind,
    Server,
    serve,
)

pytestmark = pytest.mark.anyio

URL = "/socket/longpoll?vsn=2.0.0"
APP = "tests.conformance.app:app"
MEGABYTE = 1 << 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(
    scope="module",
    params=[FAST_LANE, UVICORN, UVICORN_WSPROTO, HYPERCORN, HYPERCORN_TRIO, GRANIAN],
    ids=str,
)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    kind: Kind = request.param
    with serve(APP, kind) as server:
        yield server


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    # A connection whose request was refused may be closed by the server while the next request is on its way.
    once = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.http, limits=once, trust_env=False, timeout=30) as client:
        yield client


async def opened(http: httpx.AsyncClient) -> str:
    """The address of a new session."""
    return f"{URL}&token={(await http.get(URL)).json()['token']}"


async def post(http: httpx.AsyncClient, url: str, *frames: Any) -> Any:
    body = "\n".join(map(json.dumps, frames))
    return (await http.post(url, content=body, headers={"content-type": "application/x-ndjson"})).json()["status"]


async def fetched(http: httpx.AsyncClient, url: str) -> list[Any]:
    return list(map(json.loads, (await http.get(url)).json()["messages"]))


async def test_a_client_that_hangs_up_loses_nothing(server: Server, http: httpx.AsyncClient) -> None:
    url = await opened(http)
    for number in range(5):
        _, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(f"GET {url} HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode())
        await writer.drain()
        await http.get("/")  # the poll waits by now
        writer.close()
        await writer.wait_closed()
        await http.get("/")  # the server knows by now
        beat: list[Any] = [None, str(number), "phoenix", "heartbeat", {}]
        assert await post(http, url, beat) == 200
        assert [frame[1] for frame in await fetched(http, url)] == [str(number)]


async def test_large_bodies_and_large_answers_arrive_whole(http: httpx.AsyncClient) -> None:
    url = await opened(http)
    assert await post(http, url, ["1", "1", "room:large", "phx_join", {}]) == 200
    await fetched(http, url)
    payload = {"text": "é" * (MEGABYTE // 4)}
    assert await post(http, url, *[["1", str(ref), "room:large", "echo", payload] for ref in (2, 3, 4)]) == 200
    answers: list[Any] = []
    while len(answers) < 3:
        answers += await fetched(http, url)
    assert [answer[4]["response"] for answer in answers] == [payload] * 3


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 65_536):
        yield b" " * 65_536


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "not announced"])
async def test_a_body_that_is_too_big_is_refused_and_the_session_lives(
    announced: bool, http: httpx.AsyncClient
) -> None:
    url = await opened(http)
    size = 9 * MEGABYTE
    body = b" " * size if announced else chunks(size)
    with contextlib.suppress(httpx.TransportError):  # servers may hang up rather than read the rest
        assert (await http.post(url, content=body)).status_code == 400
    assert await post(http, url, BEAT) == 200
    assert await fetched(http, url) == [BEATEN]


async def test_a_session_of_another_process_is_gone_and_the_log_says_why() -> None:
    with serve(APP) as one, serve(APP) as other:
        async with (
            httpx.AsyncClient(base_url=one.http, trust_env=False) as here,
            httpx.AsyncClient(base_url=other.http, trust_env=False) as there,
        ):
            url = await opened(there)
            for _ in range(3):
                assert await post(here, url, BEAT) == 410
            assert await post(there, url, BEAT) == 200
            assert (await here.get(url)).json()["status"] == 410
        assert one.tail().count("several processes need sticky sessions") == 4
        assert "sticky" not in other.tail()
