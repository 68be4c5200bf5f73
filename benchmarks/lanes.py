"""Clients of the fast lane without a network: the real lane over a transport that keeps what is written."""

import asyncio
import json
from collections import Counter
from typing import Any

from starlette_channels import Limits, Payload, Presence, Socket, channel
from starlette_channels.connection.connection import Connection
from starlette_channels.connection.registry import Service
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.broker import Broker
from starlette_channels.runtime.turn_budget import Turns
from starlette_channels.transports.uvicorn_lane.connection import Lane
from starlette_channels.transports.uvicorn_lane.idle_sweep import IdleSweep
from starlette_channels.wire.serializers import V2

TURNS = 20
"""Turns of the event loop: more than a trip of a message takes."""


class Pipe(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self._protocol: asyncio.BaseProtocol = asyncio.Protocol()
        self.write = self.written.append  # pyright: ignore[reportAttributeAccessIssue] - in C as a real one, so that no cost of it is taken for ours

    def get_write_buffer_size(self) -> int:
        """Return 0: the client has taken everything."""
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set the protocol."""
        self._protocol = protocol

    def pause_reading(self) -> None:
        """Do nothing: nothing is read."""

    def resume_reading(self) -> None:
        """Do nothing: nothing is read."""

    def is_closing(self) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


class Crowd:
    """Clients of the fast lane in one event loop, and their shared objects."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._service = Service([room, hall], Broker(), limits or Limits())
        self._loop = asyncio.get_running_loop()
        # Turns have all the time that they need: an interpreter that is being traced is slow.
        self._sweep = IdleSweep(self._loop, Turns(self._loop.call_soon, clock=lambda: 0.0))
        self._serializer = V2()

    def client(self) -> "Client":
        """Connect one more client."""
        pipe = Pipe()
        limits, error_log = self._service.limits, ErrorLog(Counter())
        lane = Lane(pipe, self._loop, self._sweep, limits, error_log, 1 << 20, set(), set())
        lane.start(lambda transport: Connection(self._service, transport, self._serializer, None))
        return Client(lane, pipe)


class Client:
    """A client: sends messages, and sees the answers."""

    def __init__(self, lane: Lane, pipe: Pipe) -> None:
        self.lane = lane
        self.written = pipe.written

    async def send(self, *message: object) -> None:
        """Send a message, and wait until all its consequences are done."""
        self.lane.data_received(text(json.dumps(message)))
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def received(self, event: str) -> bool:
        """Whether a message with this event has arrived."""
        return any(f'"{event}"'.encode() in data for data in self.written)


def text(message: str) -> bytes:
    """Return a masked text frame; the mask is zero."""
    data = message.encode()
    assert len(data) < 126
    return bytes((0x81, 0x80 | len(data), 0, 0, 0, 0)) + data


@channel("room:*")
async def room(socket: Socket, payload: dict[str, Any]) -> None:
    """Admit every client."""


@room.on("echo")
async def echo(socket: Socket, payload: dict[str, Any]) -> Payload:
    """Reply with the payload."""
    return payload


@room.on("publish")
async def publish(socket: Socket, payload: dict[str, Any]) -> None:
    """Broadcast the payload, without a reply."""
    socket.broadcast("published", payload)


@room.on("say")
async def say(socket: Socket, payload: dict[str, Any]) -> Payload:
    """Broadcast the payload, and reply with it."""
    socket.broadcast("said", payload)
    return payload


presence = Presence()


@channel("hall:*")
async def hall(socket: Socket, payload: dict[str, Any]) -> None:
    """Admit every client, and track its presence."""
    presence.track(socket, "ann", {"status": "here"})
    presence.push_state(socket)
