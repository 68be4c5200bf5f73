"""NATS that is more than one server, and what it does to its clients."""

import contextlib
import signal
from collections.abc import Generator
from pathlib import Path

import anyio.to_thread
import pytest

from tests.support.engines import EngineServer, nats, running
from tests.support.ports import HOST, free_port
from tests.support.relaying import Ear, all_is_accounted_for, broadcast, brokers

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.contextmanager
def two_servers() -> Generator[tuple[EngineServer, EngineServer]]:
    """A cluster, whose lame ducks do not take long."""
    ports = [free_port(), free_port()]

    def member(own: int, other: int) -> contextlib.AbstractContextManager[EngineServer]:
        def command(port: int, folder: Path) -> list[str]:
            routes = {"name": "both", "listen": f"{HOST}:{own}", "routes": [f"nats://{HOST}:{other}"]}
            lame = {"lame_duck_duration": "30s", "lame_duck_grace_period": "100ms"}
            return nats(port, folder, {"server_name": f"n{own}", "cluster": routes, **lame})

        return running("nats", command)

    with member(*ports) as one, member(*reversed(ports)) as two:
        yield one, two


async def test_who_is_on_a_lame_duck_goes_to_the_other_server() -> None:
    with two_servers() as (lame, well):
        async with brokers(f"{lame.url},{HOST}:{well.port}", 3) as (one, two, three):
            ears = [Ear(two, "t"), Ear(three, "t")]
            for ear in ears:
                await ear.hears(one)
            await broadcast(one, range(100))
            lame.tell(signal.SIGUSR2)
            await broadcast(one, range(100, 1_000))
            for ear in ears:
                await all_is_accounted_for(ear, 1_000)
            await anyio.to_thread.run_sync(lame.wait)
            for ear in ears:
                await ear.hears(one)
