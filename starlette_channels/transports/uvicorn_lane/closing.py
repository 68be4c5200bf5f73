"""The close of a WebSocket that was accepted only to be closed with a code: a close frame, and a bounded wait.

The wait is for the client's answer: a socket that is closed while data of the client is unread is reset, and then the
client may never see the close frame.
"""

import asyncio
from collections import deque
from typing import Any

from starlette_channels.transports import CLOSE_SECONDS
from starlette_channels.transports.uvicorn_lane.frames import Close, Event, Failure, FrameReader, close_frame

UNREAD_BYTES = 16_384
"""Maximum bytes searched for the client's close frame; the joins of a page fit."""

UNREAD_FRAMES = 256
"""Maximum frames searched, with a tolerance of 64: `UNREAD_BYTES` may hold thousands of empty frames."""


class Closing(asyncio.Protocol):
    """Closes a WebSocket within `CLOSE_SECONDS`; the server waits for it as for its other connections.

    Messages of the client are discarded. Beyond `UNREAD_BYTES` or `UNREAD_FRAMES` nothing is read, so that a flood is
    cheap.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, register: set[Any]) -> None:
        self._transport = transport
        self._loop = loop
        self._register = register
        self._reader = FrameReader(UNREAD_BYTES)
        self._room = UNREAD_BYTES
        self._frames = UNREAD_FRAMES
        self._timer: asyncio.TimerHandle | None = None

    def start(self, code: int, reason: str) -> None:
        """Take over the connection, and send the close frame."""
        self._register.add(self)
        self._transport.set_protocol(self)
        self._timer = self._loop.call_later(CLOSE_SECONDS, self._transport.abort)
        self._transport.write(close_frame(code, reason))
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Search for the client's close frame."""
        data, at, events = data[: self._room], 0, deque[Event]()
        self._room -= len(data)
        while at < len(data) and self._frames > 0:
            before = len(events) + self._reader.uncounted
            at = self._reader.read(data, at, events)
            self._frames -= len(events) + self._reader.uncounted - before
        if any(isinstance(event, Close | Failure) for event in events):
            self._transport.close()
        elif self._room <= 0 or self._frames <= 0:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up: the client is gone."""
        self._register.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def shutdown(self) -> None:
        """Close because the server stops."""
        self._transport.close()
