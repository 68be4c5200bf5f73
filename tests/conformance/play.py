"""Plays scenarios against a server of the tests, many at the same time."""

import asyncio
import traceback
from collections.abc import Mapping
from typing import Any

import httpx

from tests.conformance import run
from tests.conformance.selection import SCENARIOS, TIMED
from tests.servers import Server

AT_ONCE = 12
SECONDS = 10.0  # that a frame may take on a busy machine; the scenarios' own times are theirs


class Player(run.Player):
    """The runner's player, without the 20 ms that it takes to load certificates, which would disturb others' times."""

    def __init__(self, server: Server) -> None:
        self.root, self.timeout, self.record = server.ws, SECONDS, False
        once = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.AsyncClient(base_url=server.http, limits=once, timeout=30, trust_env=False, verify=False)
        self.sockets, self.requests, self.sent, self.env = {}, {}, {}, {}


async def attempt(server: Server, scenario: Mapping[str, Any]) -> str | None:
    """Play a scenario; the answer is what went wrong, if anything did."""
    try:
        await Player(server).play(dict(scenario))  # pyright: ignore[reportUnknownMemberType]
    except run.Mismatch as error:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever it was, it is the outcome of this scenario
        return traceback.format_exc(limit=-3)
    return None


async def play(server: Server, names: list[str]) -> dict[str, str | None]:
    """Play the scenarios, those that depend on time first and, as the machine may be busy, up to three times."""
    wrong: dict[str, str | None] = dict.fromkeys(names, "not played")
    for _ in range(3):
        late = [name for name in names if name in TIMED and wrong[name]]
        wrong.update(zip(late, await asyncio.gather(*(attempt(server, SCENARIOS[name]) for name in late)), strict=True))
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with gate:
            wrong[name] = await attempt(server, SCENARIOS[name])

    await asyncio.gather(*(one(name) for name in names if name not in TIMED))
    return wrong
