"""A client of the fast lane without a network: an event loop and a transport that do what the test says."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from starlette_channels.connection.connection import Connection
from starlette_channels.connection.registry import Service
from starlette_channels.connection.transport import Transport
from starlette_channels.limits import Limits
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.broker import Broker
from starlette_channels.transports.uvicorn_lane.connection import Lane
from starlette_channels.transports.uvicorn_lane.idle_sweep import IdleSweep
from starlette_channels.wire.serializers import V2

LIMIT = 10_000


class Loop:
    """An event loop whose time a test lets pass."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[..., Any], tuple[Any, ...]]] = []
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        self.call_later(0, function, *args)

    def call_later(self, seconds: float, function: Callable[..., Any], *args: Any) -> "Loop":
        self.timers.append((self.now + seconds, function, args))
        return self

    def cancel(self) -> None:
        """Timers are not cancelled here: those that matter know themselves whether they still do."""

    def when(self) -> float:
        return self.now

    def turn(self) -> None:
        due, self.timers = self.timers, []
        for when, function, args in due:
            if when <= self.now:
                function(*args)
            else:
                self.timers.append((when, function, args))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now, function, args = timer
            function(*args)
        self.now = end


class Pipe(asyncio.Transport):
    """What the client has not taken yet waits here."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.reading = True
        self.waiting = 0
        self.written: list[bytes] = []
        self._protocol: asyncio.BaseProtocol = asyncio.Protocol()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def write(self, data: Any) -> None:
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The client hears that nothing more comes."""

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        """Nobody is there."""


class Client:
    """A client of the fast lane that takes what it wants when it wants."""

    def __init__(
        self,
        loop: Loop | None = None,
        pulse: IdleSweep | None = None,
        service: Service | None = None,
        serializer: V2 | None = None,
    ) -> None:
        self.loop, self.pipe, self.counts = loop or Loop(), Pipe(), Counter[str]()
        service = service or Service([], Broker(), Limits(outbox_bytes=LIMIT))
        any_loop: Any = self.loop
        pulse = pulse or IdleSweep(any_loop)
        self.lane = Lane(self.pipe, any_loop, pulse, service.limits, ErrorLog(self.counts), 1 << 20, set(), set())
        self.lane.start(lambda transport: self._connect(service, transport, serializer or V2()))

    def _connect(self, service: Service, transport: Transport, serializer: V2) -> Connection:
        self.connection = Connection(service, transport, serializer, {})
        return self.connection

    def get_a_burst(self, frames: int) -> None:
        self.pipe.waiting = 65_536
        self.lane.pause_writing()
        for _ in range(frames):
            self.lane.write("x" * 1000)

    def take_everything(self) -> None:
        self.pipe.waiting = 0
        self.lane.resume_writing()
