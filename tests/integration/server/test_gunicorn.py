"""Under gunicorn, with uvicorn's worker or one of the fast lane, a stop and a reload send clients away in order."""

import signal

import pytest

from tests.integration.server.test_drain_servers import (
    APP,
    AT_ONCE,
    clients,
    ended,
    environment,
    goodbyes,
    tell,
    until_logged,
)
from tests.integration.server.test_runner import FAST
from tests.support.ports import HOST
from tests.support.servers import Kind, serve

pytestmark = pytest.mark.anyio

GUNICORN = f"gunicorn {{app}} --bind {HOST}:{{port}} -k"
PLAIN = Kind("uvicorn's worker", f"{GUNICORN} uvicorn_worker.UvicornWorker")
LANE = Kind("worker with the fast lane", f"{GUNICORN} tests.support.gunicorn_worker.ChannelsWorker")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("kind", [PLAIN, LANE], ids=str)
async def test_clients_are_sent_away_in_order_by_a_reload_and_by_a_stop(kind: Kind) -> None:
    with serve(APP, kind, environment=environment()) as server:
        async with clients(server, 2) as wires:
            tell(server, signal.SIGHUP)
            assert await goodbyes(wires) == [AT_ONCE] * 2
        await until_logged(server, "Application startup complete", 2)
        await until_logged(server, "Finished server process")
        async with clients(server, 2) as wires:
            tell(server, signal.SIGTERM)
            assert await goodbyes(wires) == [AT_ONCE] * 2
        await ended(server)
        log = server.log.read_text()
    assert log.count("terminate: draining") == 4
    assert kind is PLAIN or FAST in log
