"""Plays scenarios against a server of the tests, many at the same time."""

import asyncio
import traceback
from collections.abc import Mapping
from typing import Any, TypeAlias

import httpx

from tests.conformance import run
from tests.servers import Server

Scenario: TypeAlias = Mapping[str, Any]

AT_ONCE = 12
TIMES = {"sleep", "max_ms"}  # keys of steps whose outcome depends on how quick client and server are
SECONDS = 10.0  # that a frame may take on a busy machine; the scenarios' own times are theirs


class Player(run.Player):
    """The runner's player, without the 20 ms that it takes to load certificates, which would disturb others' times."""

    def __init__(self, server: Server) -> None:
        self.root, self.timeout, self.record = server.ws, SECONDS, False
        once = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.AsyncClient(base_url=server.http, limits=once, timeout=30, trust_env=False, verify=False)
        self.sockets, self.requests, self.sent, self.env = {}, {}, {}, {}


async def attempt(server: Server, scenario: Scenario) -> str | None:
    """Play a scenario; the answer is what went wrong, if anything did."""
    try:
        await Player(server).play(dict(scenario))  # pyright: ignore[reportUnknownMemberType]
    except run.Mismatch as error:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever it was, it is the outcome of this scenario
        return traceback.format_exc(limit=-3)
    return None


async def play(server: Server, scenarios: Mapping[str, Scenario]) -> dict[str, str | None]:
    """Play scenarios; the answer is what went wrong in each.

    Those that measure time come first and, as the machine may be busy with something else, up to three times.
    """
    wrong: dict[str, str | None] = dict.fromkeys(scenarios, "not played")
    timed = {name for name, scenario in scenarios.items() if any(TIMES & set(step) for step in scenario["steps"])}
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        wrong[name] = await attempt(server, scenarios[name])

    async def one_of_many(name: str) -> None:
        async with gate:
            await one(name)

    for _ in range(3):
        await asyncio.gather(*(one(name) for name in timed if wrong[name]))
    await asyncio.gather(*(one_of_many(name) for name in scenarios if name not in timed))
    return wrong
