"""The subscribing process of the command `relays`: it answers pings, counts messages and measures its CPU time."""

import sys
import time
from typing import Any

import anyio
import msgspec

from starlette_channels import Broker, Gap
from starlette_channels.pubsub.hub import Publication

TOPIC = "bench"
ANSWERS = "bench:answers"


class Hearer:
    """A subscriber that answers pings and counts other messages."""

    def __init__(self, broker: Broker) -> None:
        self.heard = 0
        self.lost = 0
        self.stop: anyio.Event = anyio.Event()
        self._broker = broker
        self._cpu = 0.0

    def deliver(self, publication: Publication) -> None:
        """Handle a message."""
        match publication.event:
            case "news":
                self.heard += 1
            case "ping":
                self._broker.broadcast(ANSWERS, "pong", publication.body)
            case "begin":
                self.heard, self._cpu = 0, time.process_time()
                self._broker.broadcast(ANSWERS, "begun", {})
            case "end":
                spent = time.process_time() - self._cpu
                self._broker.broadcast(ANSWERS, "ended", {"heard": self.heard, "lost": self.lost, "cpu": spent})
            case _:
                self.stop.set()

    def miss(self, gap: Gap) -> None:
        """Handle a gap."""
        self.lost += gap.lost


async def hear(url: str) -> None:
    """Run until the message "stop"."""
    broker = Broker(url)
    hearer = Hearer(broker)
    broker.hub().subscribe(TOPIC, hearer)
    await hearer.stop.wait()
    await broker.close()


def report(publication: Publication) -> Any:
    """Return the counts and CPU time for an answer."""
    return msgspec.json.decode(bytes(publication.body))


if __name__ == "__main__":
    anyio.run(hear, sys.argv[1])
