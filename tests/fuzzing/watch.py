"""Hostile clients under watch: what they may be told, and what must be true while and after they do their worst."""

import contextlib
import re
import sys
from collections.abc import AsyncGenerator

from tests.fuzzing.honest import Figures, figures_when, honest_pair, nothing_left
from tests.fuzzing.wire import PATH, Address, Closed, Frame, Wire
from tests.support.servers import FAST_LANE, Kind, Server, uvicorn

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override

PYTHON = re.compile(r"Traceback|File \"|(Error|Exception)\b|\.py\b|0x[0-9a-f]{6}| object at |=<")


ANY = -1
# The two ways that bytes can take to us: through any server's own websocket implementation, and through ours.
LANES = (
    uvicorn("websockets-sansio", "--log-level warning"),
    Kind(str(FAST_LANE), f"{FAST_LANE.command} --log-level warning"),
)


class Watched(Wire):
    """A client that fails when it is told anything about the server's insides."""

    @override
    async def receive(self) -> Frame:
        message = await super().receive()
        assert not tells_of_python(message), message
        return message

    @override
    async def closed(self) -> Closed:
        closed = await super().closed()
        assert not tells_of_python(closed.reason), closed
        return closed


def tells_of_python(message: Frame) -> bool:
    """Whether a message holds words that only a traceback, or the text of an exception, can have."""
    return PYTHON.search(message if isinstance(message, str) else message.decode(errors="replace")) is not None


@contextlib.asynccontextmanager
async def hostile(server: Server, path: str = PATH, *, extra: str = "") -> AsyncGenerator[Watched]:
    """A client of whom the server must expect everything."""
    wire = await Watched.open(Address(server.port), path, extra=extra)
    try:
        yield wire
    finally:
        await wire.discard()


@contextlib.asynccontextmanager
async def under_watch(server: Server, mount: str = "socket", **counted: int) -> AsyncGenerator[dict[str, int]]:
    """Do bad things: honest clients go on, these error_log are counted and no others, and nothing is left behind.

    How many error_log of each code are right can be changed in what the block gets; `ANY` number may be.
    """
    before = await figures_when(nothing_left, server.http, mount, collect=True)
    async with honest_pair(Address(server.port), mount):
        yield counted
    after = await figures_when(nothing_left, server.http, mount, collect=True)
    assert after["failures"] == before["failures"], after["failures"]
    assert after["tasks"] == before["tasks"], (before, after)
    more, wanted = (
        {code: n for code, n in one.items() if counted.get(code) != ANY} for one in (grown(before, after), counted)
    )
    assert more == {code: times for code, times in wanted.items() if times}, more


def fast(server: Server) -> bool:
    """Whether the server reads frames with our own reader, which counts those that are broken."""
    return server.kind in LANES[1:]


def grown(before: Figures, after: Figures) -> dict[str, int]:
    """How often each kind of mishap was counted in between."""
    counts: dict[str, int] = after["counts"]
    return {code: more for code in counts if (more := counts[code] - before["counts"].get(code, 0))}
