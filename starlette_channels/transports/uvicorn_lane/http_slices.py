"""HTTP of clients in slices: however a request is cut up, others have their turn while it is read.

uvicorn parses all that has come of a client at once. A body in chunks of one byte, or a thousand requests in a row, are
a fraction of a second of that for each client. Here a slice is parsed at a time, out of the budget of the turn, and the
parser gets no more of them while uvicorn has asked for a pause.
"""

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import ref

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.flow_control import FlowControl

from starlette_channels.runtime.turn_budget import EVENTS_AT_ONCE, Pace, Turns, turns_of_this_loop

if TYPE_CHECKING:

    class Base(asyncio.Protocol):
        """What both of uvicorn's protocols have, of which a part has no types."""

        flow: FlowControl
        transport: asyncio.Transport
        tasks: set[asyncio.Task[Any]]

        def __init__(self, *args: Any, **options: Any) -> None: ...
        def _unset_keepalive_if_required(self) -> None: ...

else:
    Base = AutoHTTPProtocol  # with httptools if that is installed, else with h11

SLICE_BYTES = 2_048
"""So much of what a client sends is parsed at once; most requests without a body are no larger."""


class Pausing(FlowControl):
    """uvicorn's pauses of reading, with slices that wait in between."""

    def __init__(self, transport: asyncio.Transport, protocol: "SlicedHTTP") -> None:
        super().__init__(transport)
        self._protocol = ref(protocol)  # which refers to this object: no cycle is left to the garbage collector

    def resume_reading(self) -> None:
        """Parse what waits, and read on when nothing does; not while requests wait for the answer to one before them.

        uvicorn with httptools would parse more after each answer, and keep it all.
        """
        protocol = self._protocol()
        if protocol is not None and protocol.has_requests:
            return
        if protocol is not None and protocol.has_unread and self.read_paused:
            self.read_paused = False
            protocol.go_on()
        else:
            super().resume_reading()


class SlicedHTTP(Base):
    """uvicorn's HTTP/1.1, one slice of a client's bytes at a time."""

    flow: FlowControl
    _turns: Turns
    _pace: Pace | None = None
    _unread: bytes = b""
    _queued: bool = False

    def connection_made(self, transport: Any) -> None:
        """Begin, and see to it that pauses hold for slices as well."""
        super().connection_made(transport)
        self.flow = Pausing(transport, self)
        self._turns = turns_of_this_loop()

    @property
    def has_unread(self) -> bool:
        """Whether something has come and has yet to be parsed."""
        return bool(self._unread)

    @property
    def has_requests(self) -> bool:
        """Whether requests have been parsed that wait for the answer to one before them."""
        return bool(getattr(self, "pipeline", None))

    def data_received(self, data: bytes) -> None:
        """Parse what is small at once; let the rest wait for the next turns, and read nothing more meanwhile."""
        if not self._unread and len(data) <= SLICE_BYTES:
            self._turns.left -= 1
            super().data_received(data)
            return
        self._unset_keepalive_if_required()
        self._unread += data
        self.transport.pause_reading()
        self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; nothing more is parsed."""
        self._unread = b""
        super().connection_lost(exc)

    def go_on(self) -> None:
        """Parse more in one of the next turns, unless uvicorn wants a pause."""
        if self._unread and not self._queued and not self.flow.read_paused:
            self._queued = True
            self._pace = self._pace or Pace()
            self._turns.enter(self, fresh=self._pace.is_fresh(asyncio.get_running_loop().time()))

    def visit(self, most: int) -> int:
        """Parse some slices; return how many there were."""
        self._queued = False
        at, done, unread = 0, 0, self._unread
        while at < len(unread) and done < min(most, EVENTS_AT_ONCE) and not self.flow.read_paused:
            super().data_received(unread[at : at + SLICE_BYTES])
            at, done = at + SLICE_BYTES, done + 1
            if self.transport.is_closing():
                self._unread = b""
                return done
            if self.transport.get_protocol() is not self:
                self._hand_over(unread[at:])
                return done
        self._unread = unread[at:]
        if self._unread:
            self.go_on()
        elif not self.flow.read_paused:
            self.transport.resume_reading()
        return done or 1

    def _hand_over(self, rest: bytes) -> None:
        """Let the connection's new protocol, that of WebSockets, have what came behind its request.

        httptools has dropped the first of it, so the rest would make no sense.
        """
        self._unread = b""
        successor: Any = self.transport.get_protocol()
        if rest and hasattr(self, "conn"):
            successor.data_received(rest)
