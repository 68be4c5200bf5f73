"""An ASGI app that sends every message back as it came: `uvicorn tests.autobahn.echo:app`, over the fast lane.

Above the lane there is nothing but `Echo`: what a client meets is our frame reader and our transport.
"""

from collections import Counter
from typing import Any

from starlette.types import Receive, Scope, Send

from starlette_channels.connection.transport import Transport
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from tests.support.servers import FAST_LANE, Kind

KIND = Kind(str(FAST_LANE), f"{FAST_LANE.command} --lifespan off --log-level warning")
LIMITS = Bounds(outbox_bytes=64 << 20)  # the testsuite does not read while it sends its longest messages


class Echo:
    """What the lane needs of a connection."""

    def __init__(self, transport: Transport) -> None:
        self.receive = transport.write

    def count_frames(self, number: int) -> None:
        """Pings and fragments are what it is tested with, by the thousand."""

    def hold(self) -> None:
        """The client is behind with reading; the lane itself reads nothing more from it then."""

    def flow(self) -> None:
        """It has caught up."""

    async def end(self) -> None:
        """It is gone."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept, and leave the rest to the lane."""
    lane: Any = scope["extensions"]["starlette_channels"]
    lane["claim"]()
    await receive()
    await send({"type": "websocket.accept"})
    if not lane["attach"](Echo, LIMITS, ErrorLog(Counter())):
        raise RuntimeError("a client sent messages before the handshake was over")
