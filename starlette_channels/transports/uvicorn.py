"""The fast lane's way in under uvicorn: `uvicorn app:app --ws starlette_channels.transports.uvicorn:FastLane`.

The handshake, the ASGI call and every other WebSocket application stay with uvicorn's own class, which this one
extends. When the channels have accepted a client, they attach to its connection, and uvicorn's objects for it are let
go.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from starlette_channels.connection import Connection
from starlette_channels.limits import Limits
from starlette_channels.transport import Transport
from starlette_channels.transports.lane import Lane
from starlette_channels.transports.pulse import pulse_of_this_loop


class FastLane(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, with an extension through which channels take the connection over.

    permessage-deflate is off: it costs tens of kilobytes for each connection, and compresses a broadcast for each
    client.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        config.ws_per_message_deflate = False
        super().__init__(config, server_state, app_state, _loop)

    def handle_connect(self, event: Any) -> None:
        """Call the application, and offer it the extension."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            extensions: dict[str, Any] = dict(self.scope.get("extensions") or {})
            self.scope["extensions"] = {**extensions, "starlette_channels": {"attach": self.attach}}

    def attach(self, connect: Callable[[Transport], Connection], limits: Limits, counts: Counter[str]) -> bool:
        """Take the accepted connection over, and return whether that could be done; the ASGI call may return then.

        It cannot be done once messages have come, or while the client is behind with reading.
        """
        untouched = self.queue.empty() and not self.frames and not getattr(self.conn.reader, "buffer", b"")
        if (
            not (self.handshake_complete and untouched and self.writable.is_set())
            or self.close_sent
            or self.transport.is_closing()
        ):
            return False
        self.stop_keepalive()
        del self.scope  # through the extension it leads back to this object, which would have to wait for the collector
        transport = self.transport
        self.transport: asyncio.Transport = Detached()
        lane = Lane(
            transport,
            self.loop,
            pulse_of_this_loop(self.loop),
            limits,
            counts,
            self.config.ws_max_size,
            self.connections,
            self.tasks,
        )
        self.connections.discard(self)
        transport.set_protocol(lane)
        lane.start(connect)
        return True


class Detached(asyncio.Transport):
    """What is left to uvicorn's object of a connection that it does not own any more."""

    def close(self) -> None:
        """Do nothing: the connection goes on."""

    def is_closing(self) -> bool:
        """Say yes, so that nothing more is tried."""
        return True
