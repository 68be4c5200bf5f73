"""The trips of a message through the package: calls, files, and moves between files, without a network.

`scripts/trips` prints them. Only functions of the package count, where Python calls them: a generator that is resumed
counts, a method of C does not. A move is a call into another file than that of the call before it. Figures of one
version of Python are exact; another version may inline a comprehension.
"""

import asyncio
import json
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from msgspec import Struct

import starlette_channels
from starlette_channels import Limits, Payload, Presence, Socket, channel
from starlette_channels.connection.connection import Connection
from starlette_channels.connection.registry import Service
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.broker import Broker
from starlette_channels.transports.uvicorn_lane.connection import Lane
from starlette_channels.transports.uvicorn_lane.idle_sweep import IdleSweep
from starlette_channels.wire.serializers import V2

ROOT = Path(starlette_channels.__file__).parent
TURNS = 20
"""Turns of the event loop, more than any of the trips takes."""


class Trip(Struct):
    """The calls of one trip: the file and the function of each, in order."""

    calls: list[tuple[str, str]] = []

    @property
    def files(self) -> int:
        """How many files take part."""
        return len({file for file, _ in self.calls})

    @property
    def moves(self) -> int:
        """How often a call goes into another file than the one before."""
        files = ["", *(file for file, _ in self.calls)]
        return sum(before != after for before, after in pairwise(files))

    def __str__(self) -> str:
        return f"{len(self.calls)} calls, {self.files} files, {self.moves} moves"


class Pipe(asyncio.Transport):
    """A transport that records writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self._protocol: asyncio.BaseProtocol = asyncio.Protocol()

    def write(self, data: Any) -> None:
        """Keep it."""
        self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        """Return 0: the client has read everything."""
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Take a protocol."""
        self._protocol = protocol

    def pause_reading(self) -> None:
        """Do nothing: nothing is read."""

    def resume_reading(self) -> None:
        """Do nothing: nothing is read."""

    def is_closing(self) -> bool:
        """Return false."""
        return False

    def close(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


class Crowd:
    """Clients of the fast lane, and one event loop's worth of what they share."""

    def __init__(self) -> None:
        self._service = Service([room, hall], Broker(), Limits())
        self._loop = asyncio.get_running_loop()
        self._pulse = IdleSweep(self._loop)
        self._serializer = V2()

    def client(self) -> "Client":
        """Return one more client."""
        pipe = Pipe()
        limits, error_log = self._service.limits, ErrorLog(Counter())
        lane = Lane(pipe, self._loop, self._pulse, limits, error_log, 1 << 20, set(), set())
        lane.start(lambda transport: Connection(self._service, transport, self._serializer, None))
        return Client(lane, pipe)


class Client:
    """One client, that sends messages and sees what comes."""

    def __init__(self, lane: Lane, pipe: Pipe) -> None:
        self._lane, self._pipe = lane, pipe

    async def send(self, *message: object) -> None:
        """Send a message, and wait until it is fully handled."""
        self._lane.data_received(text(json.dumps(message)))
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def received(self, event: str) -> bool:
        """Whether a message with this event has come."""
        return any(f'"{event}"'.encode() in data for data in self._pipe.written)


def text(message: str) -> bytes:
    """Return a masked text frame; the mask is zero."""
    data = message.encode()
    assert len(data) < 126
    return bytes((0x81, 0x80 | len(data), 0, 0, 0, 0)) + data


@channel("room:*")
async def room(socket: Socket, payload: dict[str, Any]) -> None:
    """Accept every join."""


@room.on("say")
async def say(socket: Socket, payload: dict[str, Any]) -> Payload:
    """Broadcast."""
    socket.broadcast("said", payload)
    return payload


presence = Presence()


@channel("hall:*")
async def hall(socket: Socket, payload: dict[str, Any]) -> None:
    """Accept every join, and track it."""
    presence.track(socket, "ann", {"status": "here"})
    presence.push_state(socket)


@contextmanager
def counted() -> Generator[Trip]:
    """Count the calls of functions of the package."""
    trip, root = Trip(), f"{ROOT}/"

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(root):
            trip.calls.append((frame.f_code.co_filename.removeprefix(root), frame.f_code.co_qualname))

    sys.setprofile(count)
    try:
        yield trip
    finally:
        sys.setprofile(None)


async def trips() -> dict[str, Trip]:
    """Make each trip once, after an uncounted one."""
    crowd = Crowd()
    one, other = crowd.client(), crowd.client()
    for client in (one, other):
        await client.send("1", "1", "room:a", "phx_join", {})
        await client.send("2", "2", "hall:a", "phx_join", {})
    await one.send("1", "3", "room:a", "say", {"n": 1})
    found: dict[str, Trip] = {}
    with counted() as found["frame, handler, broadcast and reply"]:
        await one.send("1", "4", "room:a", "say", {"n": 2})
    with counted() as found["join"]:
        await one.send("5", "5", "room:b", "phx_join", {})
    with counted() as found["join, presence.track and push_state"]:
        await one.send("6", "6", "hall:b", "phx_join", {})
    assert other.received("said")
    assert one.received("presence_state")
    return found


def main() -> None:
    """Print the counts."""
    parser = ArgumentParser(prog="scripts/trips", description=__doc__)
    parser.add_argument("--calls", action="store_true", help="list the calls, too")
    options = parser.parse_args()
    for name, trip in asyncio.run(trips()).items():
        print(f"{name}: {trip}")
        for file, function in trip.calls if options.calls else ():
            print(f"    {file}: {function}")


if __name__ == "__main__":
    main()
