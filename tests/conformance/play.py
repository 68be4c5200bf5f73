"""Plays scenarios against a server of the tests, many at the same time."""

import asyncio
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import httpx

from tests.conformance import run
from tests.support.servers import Kind, Server, serve

Scenario: TypeAlias = Mapping[str, Any]

AT_ONCE = 12
TIMES = {"sleep", "ms", "min_ms", "max_ms"}
TIMED = {"sleep", "max_ms"}  # keys of steps whose outcome depends on how quick client and server are
SLOWNESS = 3  # of the scenarios' times, here and in the app: a busy machine must not decide what comes first
SECONDS = 10.0  # that a frame may take on a busy machine; the scenarios' own times are theirs


class Player(run.Player):
    """The runner's player, without the 20 ms that it takes to load certificates, which would disturb others' times."""

    def __init__(self, server: Server) -> None:
        self.root, self.timeout, self.record = server.ws, SECONDS, False
        once = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.AsyncClient(base_url=server.http, limits=once, timeout=30, trust_env=False, verify=False)
        self.sockets, self.requests, self.sent, self.env = {}, {}, {}, {}


def serve_slowly(kind: Kind) -> AbstractContextManager[Server]:
    """Serve the app of the scenarios, whose times are as slow as those that `play` keeps to."""
    return serve("tests.conformance.app:app", kind, environment={"SLOWNESS": str(SLOWNESS)})


def slowed(scenario: Scenario) -> dict[str, Any]:
    """The same scenario at the slower pace."""
    steps = [
        {key: value * SLOWNESS if key in TIMES else value for key, value in step.items()} for step in scenario["steps"]
    ]
    return {**scenario, "steps": steps}


async def attempt(server: Server, scenario: Scenario) -> str | None:
    """Play a scenario; the answer is what went wrong, if anything did."""
    try:
        await Player(server).play(slowed(scenario))  # pyright: ignore[reportUnknownMemberType] - the runner has no types
    except run.Mismatch as error:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever it was, it is the outcome of this scenario
        return traceback.format_exc(limit=-3)
    return None


async def play(server: Server, scenarios: Mapping[str, Scenario]) -> dict[str, str | None]:
    """Play scenarios; the answer is what went wrong in each. Those that measure time come first."""
    wrong: dict[str, str | None] = dict.fromkeys(scenarios, "not played")
    timed = {name for name, scenario in scenarios.items() if any(TIMED & set(step) for step in scenario["steps"])}
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        wrong[name] = await attempt(server, scenarios[name])

    async def one_of_many(name: str) -> None:
        async with gate:
            await one(name)

    await asyncio.gather(*(one(name) for name in timed))
    await asyncio.gather(*(one_of_many(name) for name in scenarios if name not in timed))
    return wrong


class Outcomes(NamedTuple):
    """What went wrong in each scenario, `None` if nothing did, and the end of the server's log."""

    wrong: dict[str, str | None]
    log: str


def play_on(kind: Kind, scenarios: Mapping[str, Scenario]) -> Outcomes:
    """Play scenarios against a server of their own, which must be well afterwards."""
    with serve_slowly(kind) as server:
        wrong = asyncio.run(play(server, scenarios))
        assert httpx.get(server.http, trust_env=False).text == "ok"
        return Outcomes(wrong, server.tail())
