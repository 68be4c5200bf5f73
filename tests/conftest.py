"""What the tests share: the event loops they run on, a clock that jumps, tasks that can be counted, and engines."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from trio.testing import MockClock

from starlette_channels.testing import Client, Received
from tests.support.effort import IS_FULL
from tests.support.engines import ENGINES, EngineServer, engine

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}

OK: dict[str, Any] = {"status": "ok", "response": {}}


def error(reason: str) -> dict[str, Any]:
    """Return the payload of a `phx_reply` that gives a reason."""
    return {"status": "error", "response": {"reason": reason}}


ONLY_BACKENDS = {"virtual_clock": "virtual", "engine_server": "asyncio"}
"""The event loop for tests with these: the clock that jumps is trio's, and relays have event loops of their own."""


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on one event loop where others make no sense, or, unless all is tried, no difference."""
    if "anyio_backend" not in metafunc.fixturenames:
        return
    only = [ONLY_BACKENDS[fixture] for fixture in ONLY_BACKENDS.keys() & set(metafunc.fixturenames)]
    if not only and not IS_FULL and metafunc.definition.get_closest_marker("one_loop"):
        only = ["asyncio"]
    for backend in only:
        metafunc.definition.add_marker(pytest.mark.parametrize("anyio_backend", [backend], indirect=True))


LOOPS = list(BACKENDS) if IS_FULL else ["asyncio", "trio"]
"""In memory, as most of these tests talk, uvloop is asyncio; servers show what it does with sockets."""


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every async test runs on each of these; a new clock for each test that wants a virtual one."""
    if request.param == "virtual":
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    return BACKENDS[request.param]


@pytest.fixture
def virtual_clock(anyio_backend: tuple[str, dict[str, Any]]) -> MockClock:
    """A clock that jumps to the next deadline as soon as every task waits."""
    return anyio_backend[1]["clock"]


@pytest.fixture
def count_tasks(anyio_backend_name: str) -> Callable[[], int]:
    """Counts the tasks that live in the running event loop."""
    if anyio_backend_name == "trio":
        return lambda: trio.lowlevel.current_statistics().tasks_living
    return lambda: len(asyncio.all_tasks())


@pytest.fixture(scope="module", params=list(ENGINES))
def engine_server(request: pytest.FixtureRequest) -> Generator[EngineServer]:
    """Each engine, for all tests of a module that want one."""
    with engine(request.param) as running:
        yield running


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until this is so."""
    with anyio.fail_after(5):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def frames(client: Client, number: int) -> list[Received]:
    """Take the next frames, in order."""
    return [await client.receive() for _ in range(number)]


def lines(received: list[Received]) -> list[tuple[Any, Any, str]]:
    """Leave out topic and payload, where a test is about who is told what, in which order."""
    return [(one.join_ref, one.ref, one.event) for one in received]
