"""Thousands of clients come and go, politely or not, and the server must be afterwards what it was before.

`python -m benchmarks soak` is the same with a million of them; CI has twenty thousand.
"""

import pytest

from benchmarks.soak import soak
from tests.fuzzing.watch import LANES
from tests.support.servers import Kind, serve

CYCLES = 400


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize("kind", LANES, ids=str)
async def test_thousands_of_clients_that_come_and_go_leave_nothing_behind(kind: Kind) -> None:
    with serve("tests.fuzzing.app:app", kind) as server:
        after = await soak(server, CYCLES, rounds=5, seed=1)
        assert not after["failures"]
        expected = {"channel_crashed", "malformed_message", "unmatched_event"}
        assert expected <= set(after["counts"])
        assert not {"transport_failed", "delivery_failed", "end_failed"} & set(after["counts"])
