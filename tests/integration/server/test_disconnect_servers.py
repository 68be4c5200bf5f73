"""Somebody is thrown out, or out of one topic, under every server that we name as supported."""

import json

import httpx
import pytest

from tests.fuzzing.wire import Address, opened
from tests.support.servers import FAST_LANE, GRANIAN, HYPERCORN, HYPERCORN_TRIO, UVICORN, UVICORN_WSPROTO, Kind, serve

pytestmark = pytest.mark.anyio

ROOM = "/socket/websocket?vsn=2.0.0"
REASON = "déjà vu " * 11 + "1234567890123"  # 123 bytes


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("kind", [FAST_LANE, UVICORN, UVICORN_WSPROTO, HYPERCORN, HYPERCORN_TRIO, GRANIAN], ids=str)
async def test_a_client_is_kicked_and_then_closed_with_code_and_reason(kind: Kind) -> None:
    assert len(REASON.encode()) == 123
    with serve("tests.support.drain_app:app", kind) as server:
        async with opened(Address(server.port), ROOM) as wire, httpx.AsyncClient(trust_env=False) as http:
            await wire.join("room:a")
            await wire.join("room:b", "2")
            await http.get(f"{server.http}/kick", params={"topic": "room:a", "reason": "flooding"})
            assert json.loads(await wire.receive()) == ["1", None, "room:a", "kicked", {"reason": "flooding"}]
            assert json.loads(await wire.receive()) == ["1", "1", "room:a", "phx_close", {}]
            await http.get(f"{server.http}/disconnect", params={"code": 4321, "reason": REASON})
            closed = await wire.closed()
            assert (closed.code, closed.reason) == (4321, REASON)
            await wire.end()
