"""Honest clients on a server that is under attack, and what the server says of itself."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx

from tests.fuzzing.wire import SECONDS, Address, Wire, strict, text

Figures = dict[str, Any]


async def figures(base: str, mount: str = "socket", *, collect: bool = False) -> Figures:
    """What `/statistics` of the test app says; `collect` makes it look for objects that are left over."""
    async with httpx.AsyncClient(base_url=base, timeout=SECONDS, trust_env=False, verify=False) as client:
        response = await client.get(f"/statistics/{mount}", params={"collect": "1"} if collect else {})
        return response.json()


async def figures_when(
    wanted: Callable[[Figures], bool], base: str, mount: str = "socket", *, collect: bool = False
) -> Figures:
    """The first figures of which something is true; `SECONDS` later it is an error that there are none."""
    last: Figures = {}
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                last = await figures(base, mount, collect=collect)
                if wanted(last):
                    return last
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"the server never came to what was wanted; at last it said {last}") from None


def nothing_left(found: Figures) -> bool:
    """Whether the server has forgotten all clients."""
    return found["connections"] == found["channels"] == found["topics"] == 0 and not any(found["objects"].values())


class Pair:
    """Two clients in one room. One says something, and both must hear it; nothing may come that makes no sense."""

    def __init__(self, speaker: Wire, listener: Wire, topic: str) -> None:
        self.rounds = 0
        self.heard = 0
        self._speaker = speaker
        self._listener = listener
        self._topic = topic

    @property
    def sent(self) -> int:
        """How many messages the two have sent."""
        return 2 + 2 * self.rounds + self.rounds // 100

    async def round(self) -> None:
        """Echo, and a broadcast that reaches both."""
        self.rounds += 1
        ref = f"honest {self.rounds}"
        said = {"from": "an honest client", "number": str(self.rounds)}
        if self.rounds % 100 == 0:  # who says nothing for a minute is closed
            self._listener.send(text(None, "alive", "phoenix", "heartbeat"))
        self._speaker.send(text("1", ref, self._topic, "echo", said), text("1", None, self._topic, "shout", said))
        await self._hear(self._speaker, ["1", ref, self._topic, "phx_reply", {"status": "ok", "response": said}])
        for wire in (self._speaker, self._listener):
            await self._hear(wire, [None, None, self._topic, "shout", said])

    async def _hear(self, wire: Wire, wanted: list[Any]) -> None:
        while True:
            message = await wire.receive()
            self.heard += 1
            if isinstance(message, str):  # others may speak here as well; but what they say must be JSON
                found = strict(message)
                assert found is None or len(found) == 5, message
                if found == wanted:
                    return

    async def go_on(self) -> None:
        """One round after the other, with breaks that leave the processor to others."""
        while True:
            await self.round()
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def honest_pair(where: Address, mount: str = "socket", topic: str = "room:honest") -> AsyncGenerator[Pair]:
    """Two honest clients that talk as long as the block runs; it fails if they notice anything."""
    path = f"/{mount}/websocket?vsn=2.0.0"
    speaker, listener = await Wire.open(where, path), await Wire.open(where, path)
    for wire in (speaker, listener):
        await wire.join(topic)
    pair = Pair(speaker, listener, topic)
    await pair.round()
    talk = asyncio.create_task(pair.go_on())
    try:
        before = pair.rounds
        yield pair
        while pair.rounds < before + 2 and not talk.done():  # the last round began after the block ended
            await asyncio.wait([talk], timeout=0.01)
        if talk.done():
            talk.result()
    finally:
        talk.cancel()
        await asyncio.wait([talk])
        for wire in (speaker, listener):
            await wire.discard()
