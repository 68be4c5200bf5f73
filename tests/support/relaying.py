"""What the tests of relays share: brokers that stand for processes, and ears that wait for what comes."""

import contextlib
import json
from collections.abc import AsyncGenerator, Callable

import anyio

from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.hub import Publication
from starlette_channels.wire.messages import Gap

PATIENCE = 15.0


class Ear:
    """Hears a topic of one broker, and keeps what it hears."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.heard: list[Publication] = []
        self.gaps: list[Gap] = []
        self._numbers: list[int] = []
        self._read = 0
        self.broker, self.topic = broker, topic
        self._news = anyio.Event()
        broker.hub().subscribe(topic, self)

    def deliver(self, publication: Publication) -> None:
        self.heard.append(publication)
        self._news.set()

    def miss(self, gap: Gap) -> None:
        self.gaps.append(gap)
        self._news.set()

    @property
    def numbers(self) -> list[int]:
        """The numbers in the payloads, but for those that looked for a connection."""
        for publication in self.heard[self._read :]:
            if publication.event != "probe":
                self._numbers.append(json.loads(bytes(publication.body))["n"])
        self._read = len(self.heard)
        return self._numbers

    @property
    def lost(self) -> int:
        return sum(gap.lost for gap in self.gaps)

    async def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait for something that is heard."""
        with anyio.fail_after(seconds):
            while not condition():
                self._news = anyio.Event()
                await self._news.wait()

    async def hears(self, other: Broker) -> None:
        """Wait until there is a way from another broker: joins do not wait for it."""
        before = len(self.heard)
        with anyio.fail_after(PATIENCE):
            while len(self.heard) == before:
                other.broadcast(self.topic, "probe", {})
                with anyio.move_on_after(0.05):
                    await self.until(lambda: len(self.heard) > before)
        self.gaps.clear()  # what was tried while the subscription took its time

    def leave(self) -> None:
        self.broker.hub().unsubscribe(self.topic, self)


@contextlib.asynccontextmanager
async def brokers(url: str, number: int = 2) -> AsyncGenerator[list[Broker]]:
    """Brokers that know each other only over the engine, as those of different processes do."""
    those = [Broker(url) for _ in range(number)]
    try:
        yield those
    finally:
        for one in those:
            await one.close()


async def broadcast(broker: Broker, numbers: range, size: int = 10) -> None:
    """Broadcast so that the engine has a turn now and then."""
    for number in numbers:
        broker.broadcast("t", "e", {"n": number, "filler": "x" * size})
        if number % 20 == 0:
            await anyio.sleep(0.001)


async def all_is_accounted_for(ear: Ear, number: int) -> None:
    """Wait until so many have come or are known to be lost."""
    await ear.until(lambda: len(ear.numbers) + ear.lost >= number)
    assert ear.numbers == sorted(set(ear.numbers)), "nothing comes twice, or out of order"
    assert len(ear.numbers) + ear.lost == number


class Phone:
    """An end of a line, that keeps what it hears."""

    def __init__(self, broker: Broker, name: str = "presence") -> None:
        self.heard: list[bytes] = []
        self._news = anyio.Event()
        self.line = broker.exchange(name, self._hear, stopping=lambda: self.line.send(b"goodbye"))

    def _hear(self, data: bytes) -> None:
        self.heard.append(data)
        self._news.set()

    async def until_heard(self, data: bytes) -> None:
        with anyio.fail_after(PATIENCE):
            while data not in self.heard:
                self._news = anyio.Event()
                await self._news.wait()

    async def hears(self, other: "Phone", data: bytes) -> None:
        """Wait until there is a way from another end."""
        with anyio.fail_after(PATIENCE):
            while data not in self.heard:
                other.line.send(data)
                with anyio.move_on_after(0.05):
                    await self.until_heard(data)
