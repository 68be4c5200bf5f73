"""When the fast lane gives up on a client that does not read: a burst alone is no reason, nor is a busy server."""

import sys
from typing import Any

import pytest

from starlette_channels.transports.slow_client import SlowClientCheck
from starlette_channels.transports.uvicorn_lane.frames import text_frame
from starlette_channels.transports.uvicorn_lane.write_batch import WRITES_AT_ONCE
from tests.support.lanes import Client


def test_a_client_is_slow_when_no_less_waits_after_ten_looks() -> None:
    suspicion = SlowClientCheck(1000)
    assert [suspicion.is_confirmed(1000) for _ in range(10)] == [False] * 9 + [True]


def test_any_progress_begins_the_wait_anew() -> None:
    suspicion = SlowClientCheck(sys.maxsize)
    looks = [suspicion.is_confirmed(waiting) for waiting in range(5000, 4900, -1)]
    assert not any(looks)
    assert [suspicion.is_confirmed(4901) for _ in range(10)] == [False] * 9 + [True]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_a_client_that_takes_nothing_is_closed_and_told_why() -> None:
    client = Client()
    client.get_a_burst(20)
    client.loop.pass_time(0.05)
    assert not client.counts
    client.loop.pass_time(0.1)
    assert client.counts == {"slow_client": 1}
    assert client.pipe.written[-1] == b"\x88\x0d\x03\xf0slow_client"


@pytest.mark.anyio
async def test_less_than_the_limit_may_wait_for_as_long_as_the_client_is_not_silent() -> None:
    client = Client()
    client.get_a_burst(5)
    client.loop.pass_time(1)
    assert not client.counts
    client.take_everything()
    client.loop.pass_time(0)
    assert b"".join(client.pipe.written) == text_frame(b"x" * 1000) * 5


@pytest.mark.anyio
async def test_a_client_that_is_behind_again_at_once_gets_everything_in_order() -> None:
    client = Client()
    client.get_a_burst(5)

    def fill(data: Any) -> None:
        client.pipe.written.append(data)
        client.get_a_burst(0)

    others = tuple(list[bytes]().append for _ in range(2 * WRITES_AT_ONCE))
    client.lane.outlet.spread(others, "to many others")
    client.loop.turn()  # a long flush has begun: what is sent to one client now is written at once
    client.lane.writer = fill
    client.take_everything()
    assert not client.connection._flowing  # pyright: ignore[reportPrivateUsage]
    client.lane.write("y")
    client.lane.writer = client.pipe.write
    client.take_everything()
    client.loop.pass_time(0)
    assert client.connection._flowing  # pyright: ignore[reportPrivateUsage]
    assert b"".join(client.pipe.written) == text_frame(b"x" * 1000) * 5 + text_frame(b"y")


@pytest.mark.anyio
async def test_one_burst_after_the_other_is_no_reason_if_the_client_takes_each() -> None:
    client = Client()
    client.get_a_burst(20)
    client.loop.pass_time(0.03)
    client.take_everything()
    client.loop.pass_time(0.05)
    client.get_a_burst(40)  # 20 ms before the first one would have been looked at for the last time
    client.loop.pass_time(0.04)
    client.take_everything()
    client.loop.pass_time(1)
    assert not client.counts


@pytest.mark.anyio
async def test_broadcasts_to_a_client_that_is_behind_wait_on_a_shelf_among_its_replies() -> None:
    client = Client()
    client.get_a_burst(0)
    assert client.lane.shelf is not None
    outlet, keep = client.lane.shelf
    outlet.spread((keep,), "1")
    client.lane.write("2")
    outlet.spread((keep,), "3")
    assert client.pipe.written == []
    client.take_everything()
    outlet.spread((keep,), "4")  # it has caught up in the middle of a broadcast
    client.loop.pass_time(0)
    assert b"".join(client.pipe.written) == b"".join(text_frame(text) for text in (b"1", b"2", b"3", b"4"))
    client.lane.close(1000)
    client.loop.pass_time(0)
    written = len(client.pipe.written)
    outlet.spread((keep,), "5")
    client.loop.pass_time(0)
    assert len(client.pipe.written) == written


@pytest.mark.anyio
async def test_broadcasts_on_the_shelf_count_against_a_client_that_hangs() -> None:
    client = Client()
    client.get_a_burst(0)
    assert client.lane.shelf is not None
    outlet, keep = client.lane.shelf
    for _ in range(20):
        outlet.spread((keep,), "x" * 1000)
    client.loop.pass_time(1)
    assert client.counts == {"slow_client": 1}
