"""SIGTERM and Ctrl-C under real servers: who is sent away when, and when the server is gone."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from benchmarks.drain import drain, histogram
from tests.fuzzing.wire import SECONDS, Address, Refused, Wire, text
from tests.support.ports import HOST
from tests.support.servers import FAST_LANE, GRANIAN, HYPERCORN, HYPERCORN_TRIO, UVICORN, Kind, Server, hypercorn, serve

pytestmark = pytest.mark.anyio

HYPERCORN_UVLOOP = hypercorn("uvloop")
RUNNER = Kind("runner", f"starlette_channels run {{app}} --host {HOST} --port {{port}}")
APP, TWO = "tests.support.drain_app:app", "tests.support.drain_app:two"
ROOM, OTHER = "/socket/websocket?vsn=2.0.0", "/others/websocket?vsn=2.0.0"
AT_ONCE = "1012 restart retry_after=0.00"
FIRST_ONLY = {"batch_size": 1, "interval_seconds": 600.0, "timeout_seconds": 3_600.0}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def environment(**drain: Any) -> dict[str, str]:
    return {"DRAIN": msgspec.json.encode(drain).decode()}


@asynccontextmanager
async def clients(server: Server, number: int, path: str = ROOM) -> AsyncGenerator[list[Wire]]:
    """Clients that have joined a room."""
    wires = [await Wire.open(Address(server.port), path) for _ in range(number)]
    try:
        for wire in wires:
            await wire.join("room:a")
        yield wires
    finally:
        for wire in wires:
            await wire.discard()


async def goodbye(wire: Wire) -> str:
    """How a client is closed, which answers as clients do."""
    closed = await wire.closed()
    await wire.end()
    return str(closed)


async def goodbyes(wires: list[Wire]) -> list[str]:
    return sorted(await asyncio.gather(*map(goodbye, wires)))


async def first_goodbye(wires: list[Wire]) -> list[Wire]:
    """Wait for the first client to be closed; return the others, which stay."""
    waiting = {asyncio.ensure_future(wire.closed()): wire for wire in wires}
    (done,), pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    assert str(await done) == AT_ONCE
    await waiting[done].end()
    return [waiting[task] for task in pending]


def tell(server: Server, number: int = signal.SIGTERM) -> None:
    os.kill(server.pid, number)


async def ended(server: Server) -> None:
    """Wait for the process."""
    await asyncio.to_thread(server.wait, SECONDS)


async def alive(wire: Wire) -> bool:
    return await wire.call(None, "beat", "phoenix", "heartbeat") == {"status": "ok", "response": {}}


async def status(server: Server, path: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.get(server.http + path)


async def until_logged(server: Server, line: str, times: int = 1) -> None:
    deadline = time.monotonic() + SECONDS
    while server.log.read_text().count(line) < times:
        assert time.monotonic() < deadline, server.tail()
        await asyncio.sleep(0.01)


# ---- SIGTERM

HELD_BACK = [RUNNER, UVICORN, FAST_LANE, HYPERCORN_UVLOOP, HYPERCORN_TRIO]


@pytest.mark.parametrize("kind", HELD_BACK, ids=str)
async def test_clients_leave_in_batches_and_then_the_server_ends(kind: Kind) -> None:
    pace = environment(batch_size=1, interval_seconds=0.3, timeout_seconds=60.0)
    with serve(APP, kind, environment=pace) as server:
        async with clients(server, 4) as wires:
            began = time.monotonic()
            tell(server)
            assert await goodbyes(wires) == [AT_ONCE] * 4
            assert time.monotonic() - began >= 0.9
        await ended(server)
        assert server.log.read_text().count("terminate: draining") == 4


async def test_nobody_new_is_let_in_while_those_who_are_there_are_served() -> None:
    with serve(APP, FAST_LANE, environment=environment(**FIRST_ONLY)) as server:
        async with clients(server, 2) as wires:
            assert (await status(server, "/ready")).status_code == 200
            tell(server)
            (last,) = await first_goodbye(wires)
            ready = await status(server, "/ready")
            assert ready.status_code == 503
            assert 600 - SECONDS < int(ready.headers["retry-after"]) <= 600  # what is left of the interval
            with pytest.raises(Refused, match="503"):
                await Wire.open(Address(server.port), ROOM)
            assert (await last.call("9", "9", "room:b", "phx_join"))["response"] == {"reason": "restarting"}
            assert await alive(last)


async def test_hypercorn_on_asyncio_stops_at_once_and_clients_hear_why() -> None:
    with serve(APP, HYPERCORN, environment=environment(**FIRST_ONLY)) as server:
        async with clients(server, 3) as wires:
            tell(server)
            assert {said[:12] for said in await goodbyes(wires)} == {"1012 restart"}
        await ended(server)


@pytest.mark.parametrize("kind", [UVICORN, HYPERCORN, GRANIAN], ids=str)
async def test_whoever_runs_a_server_that_does_not_wait_can_drain_it_first(kind: Kind) -> None:
    pace = environment(batch_size=1, interval_seconds=0.3, timeout_seconds=60.0)
    with serve(APP, kind, environment=pace) as server:
        async with clients(server, 3) as wires:
            draining = asyncio.create_task(status(server, "/drain"))
            assert await goodbyes(wires) == [AT_ONCE] * 3
            assert (await draining).status_code == 200
            assert (await status(server, "/ready")).status_code == 503
            tell(server)
        await ended(server)


async def test_a_handler_at_work_answers_first() -> None:
    with serve(APP, FAST_LANE) as server:
        async with clients(server, 2) as (busy, idle):
            busy.send(text("1", "2", "room:a", "work", {"body": "héllo"}))
            await until_logged(server, "at work")
            tell(server)
            assert await goodbye(idle) == AT_ONCE
            await status(server, "/open")
            reply = msgspec.json.decode(await busy.receive())
            assert reply[1:] == ["2", "room:a", "phx_reply", {"status": "ok", "response": {"body": "héllo"}}]
            assert (await goodbye(busy)).startswith("1012 ")
        await ended(server)


@pytest.mark.parametrize("command", [RUNNER.command, UVICORN.command], ids=["runner", "uvicorn"])
async def test_each_of_several_workers_drains_its_own_clients(command: str) -> None:
    pace = environment(batch_size=1, interval_seconds=0.2, timeout_seconds=60.0)
    with serve(APP, Kind("two workers", f"{command} --workers 2"), environment=pace) as server:
        async with clients(server, 6) as wires:
            os.killpg(server.pid, signal.SIGTERM)  # to workers and supervisor, which tells the workers again
            assert await goodbyes(wires) == [AT_ONCE] * 6
        await ended(server)
        assert server.log.read_text().count("terminate: draining") == 6


async def test_two_channels_of_one_application_drain_side_by_side() -> None:
    pace = environment(batch_size=1, interval_seconds=0.2, timeout_seconds=60.0)
    with serve(TWO, FAST_LANE, environment=pace) as server:
        async with clients(server, 2) as ours, clients(server, 2, OTHER) as theirs:
            tell(server)
            assert await goodbyes([*ours, *theirs]) == [AT_ONCE] * 4
        await ended(server)


async def test_a_poll_that_waits_does_not_hold_up_the_end() -> None:
    with serve(APP, FAST_LANE) as server:
        async with httpx.AsyncClient(base_url=server.http, trust_env=False, timeout=SECONDS) as http:
            url = "/socket/longpoll?vsn=2.0.0"
            url += f"&token={(await http.get(url)).json()['token']}"
            poll = asyncio.create_task(http.get(url))
            await status(server, "/ready")  # the poll waits by now
            began = time.monotonic()
            tell(server)
            assert (await poll).json()["status"] == 410
        await ended(server)
        assert time.monotonic() - began < 5.0


# ---- signals


async def test_sigterm_heard_twice_is_one_order_but_after_a_while_it_means_now() -> None:
    with serve(APP, FAST_LANE, environment=environment(**FIRST_ONLY)) as server:
        async with clients(server, 2) as wires:
            tell(server)
            (last,) = await first_goodbye(wires)
            tell(server)
            assert await alive(last)
            leaving = asyncio.create_task(goodbye(last))
            while not leaving.done():
                tell(server)
                await asyncio.sleep(0.1)
            assert await leaving == "1012 restart"
        await ended(server)


async def test_ctrl_c_sends_all_away_at_once() -> None:
    with serve(APP, FAST_LANE, environment=environment(**FIRST_ONLY)) as server:
        async with clients(server, 3) as wires:
            tell(server, signal.SIGINT)
            assert await goodbyes(wires) == [
                f"1012 restart retry_after={wait}" for wait in ("0.00", "1200.00", "600.00")
            ]
        await ended(server)


async def test_ctrl_c_in_the_middle_of_a_drain_means_now() -> None:
    with serve(APP, FAST_LANE, environment=environment(**FIRST_ONLY)) as server:
        async with clients(server, 3) as wires:
            tell(server)
            others = await first_goodbye(wires)
            tell(server, signal.SIGINT)
            assert await goodbyes(others) == ["1012 restart"] * 2
        await ended(server)


@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_cancels_handlers_that_hang(again: int) -> None:
    with serve(APP, FAST_LANE) as server:
        async with clients(server, 1) as (wire,):
            wire.send(text("1", "2", "room:a", "hang"))
            await until_logged(server, "at work")
            tell(server)
            leaving = asyncio.create_task(goodbye(wire))
            while not leaving.done():
                tell(server, again)
                await asyncio.sleep(0.1)
            assert (await leaving).startswith("1012 ")
        await ended(server)


async def test_a_reload_does_not_wait_for_batches() -> None:
    kind = Kind("reload", f"{FAST_LANE.command} --reload --reload-dir docs")
    with serve(APP, kind, environment=environment(**FIRST_ONLY)) as server:
        async with clients(server, 3) as wires:
            tell(server)
            assert await goodbyes(wires) == [
                f"1012 restart retry_after={wait}" for wait in ("0.00", "1200.00", "600.00")
            ]
        await ended(server)


# ---- coming back


async def test_clients_come_back_over_the_promised_time_and_not_at_once() -> None:
    pace = environment(batch_size=5, interval_seconds=0.5)
    with serve(APP, FAST_LANE, environment=pace) as old, serve(APP, FAST_LANE, environment=pace) as new:
        back = sorted(await drain(old, new, 15))
        assert all(moment > number * 0.1 - 0.01 for number, moment in enumerate(back)), back
        await ended(old)
        assert (await status(new, "/ready")).status_code == 200


def test_the_histogram_shows_how_many_came_when() -> None:
    assert histogram([0.1, 0.2, 1.4, 1.3, 1.2, 1.1], 0.5).splitlines() == [
        "  seconds   joins",
        f"     0.00       2 {'#' * 30}",
        "     0.50       0",
        f"     1.00       4 {'#' * 60}",
    ]
