"""Honest clients: they push all the time, measure latencies, and detect missing messages."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence

from benchmarks.apps.attacked_app import tokens
from tests.fuzzing.wire import Address, Wire, text

CLIENTS = 100
ROOMS = 10
PAUSE = 0.1
"""Seconds between two messages of one client, on average."""

SHOUT_EVERY = 10
PATIENCE = 60.0


class Lost(AssertionError):
    """A reply or broadcast is missing, or a connection has ended."""


class Honest:
    """A client in one room that pushes for echoes, and sometimes broadcasts to its room."""

    def __init__(self, wire: Wire, number: int) -> None:
        self.topic = f"room:{number % ROOMS}"
        self.said = 0
        self.heard: Counter[str] = Counter()
        self.waits: list[float] = []
        self._wire = wire
        self._number = number
        self._sent: dict[str, float] = {}

    @property
    def waiting(self) -> int:
        """The number of missing replies."""
        return len(self._sent)

    async def talk(self) -> None:
        """Push until cancelled."""
        random_ = random.Random(self._number)
        count = 0
        while True:
            await asyncio.sleep(random_.uniform(0, 2 * PAUSE))
            count += 1
            if count % SHOUT_EVERY == 0:
                self.said += 1
                self._wire.send(text("1", None, self.topic, "shout", {"from": self._number, "n": self.said}))
            ref = str(count)
            self._sent[ref] = time.perf_counter()
            self._wire.send(text("1", ref, self.topic, "echo", {"n": count}))

    async def listen(self) -> None:
        """Receive until cancelled. Raises `Lost` if a broadcast is missing, duplicated or out of order."""
        while True:
            _, ref, _, event, payload = json.loads(await self._wire.receive())
            if event == "shout":
                speaker = str(payload["from"])
                self.heard[speaker] += 1
                if self.heard[speaker] != payload["n"]:
                    raise Lost(f"{self.topic}: {payload} was number {self.heard[speaker]}")
            elif event == "phx_reply" and ref in self._sent:
                if payload["status"] != "ok":
                    raise Lost(f"{self.topic}: an echo was answered {payload}")
                self.waits.append(time.perf_counter() - self._sent.pop(ref))


class Crowd:
    """A hundred honest clients."""

    def __init__(self, clients: Sequence[Honest]) -> None:
        self.clients = clients
        self._listening: list[asyncio.Task[None]] = []

    @classmethod
    async def gather(cls, port: int) -> "Crowd":
        """Connect all clients."""
        clients: list[Honest] = []
        for number in range(CLIENTS):
            token = tokens.sign(f"honest {number}")
            wire = await Wire.open(Address(port), f"/socket/websocket?vsn=2.0.0&token={token}")
            client = Honest(wire, number)
            await wire.join(client.topic)
            clients.append(client)
        crowd = cls(clients)
        crowd._listening = [asyncio.create_task(client.listen()) for client in clients]
        return crowd

    async def talk(self, seconds: float) -> list[float]:
        """Let all clients push for a time; return the sorted latencies. Raises `Lost`."""
        for client in self.clients:
            client.waits.clear()
        talking = [asyncio.create_task(client.talk()) for client in self.clients]
        await asyncio.wait(self._listening, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in talking:
            task.cancel()
        await asyncio.wait(talking)
        await self._hear_out()
        return sorted(wait for client in self.clients for wait in client.waits)

    async def _hear_out(self) -> None:
        """Wait for all replies and broadcasts."""
        deadline = time.monotonic() + PATIENCE
        while missing := self._missing():
            ended = [task for task in self._listening if task.done()]
            for task in ended:
                task.result()
            if time.monotonic() > deadline:
                raise Lost(f"after {PATIENCE:g} seconds {missing} answers and broadcasts have not come")
            await asyncio.sleep(0.01)  # a hundred clients make progress, and no event says when all have

    def _missing(self) -> int:
        said = Counter({str(number): client.said for number, client in enumerate(self.clients)})
        missing = 0
        for client in self.clients:
            missing += client.waiting
            wanted = (number for number, other in enumerate(self.clients) if other.topic == client.topic)
            missing += sum(said[str(number)] - client.heard[str(number)] for number in wanted)
        return missing

    async def part(self) -> None:
        """Disconnect all clients."""
        for task in self._listening:
            task.cancel()
        await asyncio.wait(self._listening)
