"""A process that hears one topic: `python -m tests.support.relay_listener URL NUMBER`.

It says `ready` when the first broadcast has come. When as many have come, or were reported as lost, it says which.
"""

import sys

import anyio
import msgspec

from starlette_channels.pubsub.broker import Broker
from tests.support.relaying import Ear


async def main(url: str, number: int) -> None:
    """Hear everything."""
    broker = Broker(url)
    ear = Ear(broker, "t")
    await ear.until(lambda: bool(ear.heard), 30)
    print("ready", flush=True)
    await ear.until(lambda: len(ear.numbers) + ear.lost >= number, 60)
    print(msgspec.json.encode({"numbers": ear.numbers, "lost": ear.lost, "counts": broker.counts}).decode(), flush=True)
    await broker.close()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]))
