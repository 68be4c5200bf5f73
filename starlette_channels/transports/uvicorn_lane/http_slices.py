"""HTTP of uvicorn, parsed in slices, so that no request delays other clients; upgrade requests are not parsed twice.

uvicorn parses all data of a client at once. A body in chunks of one byte, or a thousand requests in a row, take a
fraction of a second for each client. Here one slice is parsed at a time, within the budget of the turn, and none while
uvicorn has paused reading.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

from uvicorn.config import Config
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from starlette_channels.runtime.turn_budget import EVENTS_AT_ONCE, Pace, Turns, turns_of_this_loop
from starlette_channels.transports.uvicorn_lane.handshake import FastLane, server_logger
from starlette_channels.transports.uvicorn_lane.upgrade_request import read_upgrade

if TYPE_CHECKING:

    class Base(asyncio.Protocol):
        """The common attributes of uvicorn's two HTTP protocols, with types that uvicorn lacks in part."""

        flow: FlowControl
        transport: asyncio.Transport
        tasks: set[asyncio.Task[Any]]

        def __init__(self, *args: Any, **options: Any) -> None: ...
        def _unset_keepalive_if_required(self) -> None: ...

else:
    Base = AutoHTTPProtocol  # with httptools if that is installed, else with h11

SLICE_BYTES = 2_048
"""Size of a slice; most requests without a body fit."""


class SlicedHTTP(asyncio.Protocol):
    """An HTTP protocol for uvicorn: `--http starlette_channels.transports.uvicorn:SlicedHTTP`.

    It looks at the first data of a connection. A common upgrade request goes to the fast lane at once, if that is the
    WebSocket protocol of the server; everything else goes to uvicorn's own protocol, in slices.
    """

    __slots__ = ("_app_state", "_config", "_loop", "_server_state", "_transport")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first data."""
        self._transport = cast("asyncio.Transport", transport)
        self._server_state.connections.add(cast("Any", self))

    def data_received(self, data: bytes) -> None:
        """Choose the protocol of the connection, and hand the data to it."""
        self._server_state.connections.discard(cast("Any", self))
        arguments = self._config, self._server_state, self._app_state, self._loop
        websocket: Any = self._config.ws_protocol_class
        if isinstance(websocket, type) and issubclass(websocket, FastLane):
            request = None if server_logger.isEnabledFor(logging.DEBUG) else read_upgrade(data)
            if request is not None:
                lane = websocket(*arguments)
                lane.connection_made(self._transport)
                self._transport.set_protocol(lane)
                lane.begin(request, data)
                return
        http = HTTPSlices(*arguments)
        http.connection_made(self._transport)
        self._transport.set_protocol(http)
        http.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up: the client has disconnected without a request."""
        self._server_state.connections.discard(cast("Any", self))

    def shutdown(self) -> None:
        """Close because the server stops."""
        self._transport.close()


class SliceFlowControl(FlowControl):
    """uvicorn's flow control, extended to slices that are not parsed yet."""

    def __init__(self, transport: asyncio.Transport, protocol: "HTTPSlices") -> None:
        super().__init__(transport)
        self._protocol = ref(protocol)  # weak, since it refers to this object: no reference cycle

    def resume_reading(self) -> None:
        """Parse the next slice, or resume reading if there is none; do neither while pipelined requests are queued.

        uvicorn with httptools would parse more after each answer, and keep all requests in memory.
        """
        protocol = self._protocol()
        if protocol is not None and protocol.has_requests:
            return
        if protocol is not None and protocol.has_unread and self.read_paused:
            self.read_paused = False
            protocol.go_on()
        else:
            super().resume_reading()


class HTTPSlices(Base):
    """uvicorn's protocol for HTTP/1.1, one slice of data at a time."""

    flow: FlowControl
    _turns: Turns
    _pace: Pace | None = None
    _unread: bytes = b""
    _queued: bool = False

    def connection_made(self, transport: Any) -> None:
        """Set up the connection; a pause of reading also pauses the slices."""
        super().connection_made(transport)
        self.flow = SliceFlowControl(transport, self)
        self._turns = turns_of_this_loop()

    @property
    def has_unread(self) -> bool:
        """Whether unparsed data is left."""
        return bool(self._unread)

    @property
    def has_requests(self) -> bool:
        """Whether pipelined requests wait for the answer to an earlier one."""
        return bool(getattr(self, "pipeline", None))

    def data_received(self, data: bytes) -> None:
        """Parse small data at once, and large data in the next turns; reading is paused meanwhile."""
        if not self._unread and len(data) <= SLICE_BYTES:
            self._turns.left -= 1
            super().data_received(data)
            return
        self._unset_keepalive_if_required()
        self._unread += data
        self.transport.pause_reading()
        self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up: the client has disconnected."""
        self._unread = b""
        super().connection_lost(exc)

    def go_on(self) -> None:
        """Parse the next slices in one of the next turns, unless uvicorn has paused reading."""
        if self._unread and not self._queued and not self.flow.read_paused:
            self._queued = True
            self._pace = self._pace or Pace()
            self._turns.enter(self, fresh=self._pace.is_fresh(asyncio.get_running_loop().time()))

    def visit(self, most: int) -> int:
        """Parse some slices; return their number."""
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
        """Hand the data behind an upgrade request to the WebSocket protocol; httptools has dropped the first of it."""
        self._unread = b""
        successor: Any = self.transport.get_protocol()
        if rest and hasattr(self, "conn"):
            successor.data_received(rest)
