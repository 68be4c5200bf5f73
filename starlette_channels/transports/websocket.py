"""The portable transport: a WebSocket through the `receive` and `send` of any ASGI server, on asyncio and trio."""

import contextvars
import logging
import math
import sys
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive, Send

from starlette_channels.actors import Cancel
from starlette_channels.connection import Connection, Transport
from starlette_channels.limits import Limits
from starlette_channels.messages import Frame, frame_size

logger = logging.getLogger("starlette_channels.transport")

CLOSE_SECONDS = 2.0
"""How long the last frames and the close may take to leave."""

UNBOUNDED_UVICORN = ((0, 50, 0), (0, 52, 0))
"""The first and the last uvicorn whose default WebSocket implementation never waits for a slow client."""


class WebSocketTransport:
    """Frames to and from one client. A writer task exists only while frames wait."""

    def __init__(self, send: Send, tasks: TaskGroup, limits: Limits, counts: Counter[str]) -> None:
        self._send = send
        self._tasks = tasks
        self._limits = limits
        self._counts = counts
        # Handlers run in the context of their connection, not in that of whoever sends them something.
        self._context = contextvars.copy_context()
        self._outbox: deque[Frame] = deque()
        self._waiting_bytes = 0
        self._flushing = False
        self._sending: anyio.CancelScope | None = None
        self._closing: tuple[int, str] | None = None
        self._gone = False
        self._paused = False
        self._reading: anyio.CancelScope | None = None
        self._progress: anyio.Event | None = None

    # What the connection calls.

    def write(self, frame: Frame) -> None:
        """Queue a frame. A client that does not take what is sent is closed with 1008 once too much waits for it."""
        if self._gone or self._closing is not None:
            return
        if self._sending is not None and self._waiting_bytes > self._limits.outbox_bytes:
            self._give_up_on_slow_client()
            return
        self._outbox.append(frame)
        self._waiting_bytes += frame_size(frame)
        self._start_flush()

    def close(self, code: int, reason: str = "") -> None:
        """Send what is queued, then close. The first call decides."""
        if self._gone or self._closing is not None:
            return
        self._closing = (code, reason)
        self._start_flush()
        if self._reading is not None:
            self._reading.cancel()

    def pause(self) -> None:
        """Read nothing more until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self._note_progress()

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Cancel:
        """Run an async function beside the others of this client; return what cancels it."""
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await function(*args)

        self._context.copy().run(self._tasks.start_soon, run)
        return scope.cancel

    # Reading.

    async def read(self, receive: Receive, connection: Connection) -> None:
        """Hand the client's messages to its connection until one side closes, or the client is silent for too long."""
        with anyio.CancelScope() as self._reading:
            while self._closing is None:
                await self._wait_for_room()
                self._reading.deadline = anyio.current_time() + self._limits.idle_seconds
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    self._lose()
                    return
                # Servers may send both keys, one of them empty.
                text: str | None = message.get("text")
                connection.receive(message["bytes"] if text is None else text)
        if self._closing is not None or self._gone:
            return
        if self._waiting_bytes:
            self._give_up_on_slow_client()
        else:
            self._counts["idle_timeout"] += 1
            logger.info("Connection closed: nothing from the client for %g seconds", self._limits.idle_seconds)
            self.close(1002, "idle_timeout")

    async def _wait_for_room(self) -> None:
        """Wait while handlers are too far behind, or the client is with reading what it asked for."""
        assert self._reading is not None
        while self._paused or self._waiting_bytes > self._limits.outbox_bytes // 2:
            patience = math.inf if self._paused else self._limits.idle_seconds
            self._reading.deadline = anyio.current_time() + patience
            await self._wait_for_progress()

    # Writing.

    def _start_flush(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.spawn(self._flush)

    async def _flush(self) -> None:
        try:
            with anyio.CancelScope() as self._sending:
                while self._outbox:
                    await self._send_frame(self._outbox.popleft())
            self._sending = None
            if self._closing is not None:
                code, reason = self._closing
                with anyio.move_on_after(CLOSE_SECONDS):
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except Exception as error:  # noqa: BLE001 - servers raise what they like when the client is gone
            logger.debug("The client is gone: %r", error)
            self._lose()
        finally:
            self._sending = None
            self._flushing = False
            self._note_progress()

    async def _send_frame(self, frame: Frame) -> None:
        if isinstance(frame, str):
            await self._send({"type": "websocket.send", "text": frame})
        else:
            await self._send({"type": "websocket.send", "bytes": frame})
        self._waiting_bytes -= frame_size(frame)
        self._note_progress()

    def _give_up_on_slow_client(self) -> None:
        self._counts["slow_client"] += 1
        logger.warning("Connection closed with 1008: %d bytes wait for the client", self._waiting_bytes)
        self._outbox.clear()
        if self._sending is not None:
            self._sending.cancel()
        self.close(1008, "slow_client")

    # Ending.

    def _lose(self) -> None:
        self._gone = True
        self._outbox.clear()
        self._waiting_bytes = 0
        if self._reading is not None:
            self._reading.cancel()
        self._note_progress()

    async def finished(self) -> None:
        """Wait until the last frame and the close have left, for as long as that may take."""
        with anyio.move_on_after(CLOSE_SECONDS):
            while self._flushing:
                await self._wait_for_progress()

    def _note_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    async def _wait_for_progress(self) -> None:
        self._progress = self._progress or anyio.Event()
        await self._progress.wait()


async def serve_websocket(
    receive: Receive,
    send: Send,
    connect: Callable[[Transport], Connection],
    limits: Limits,
    counts: Counter[str],
) -> None:
    """Serve an accepted WebSocket until it is closed and its channels have ended."""
    async with anyio.create_task_group() as tasks:
        transport = WebSocketTransport(send, tasks, limits, counts)
        connection = connect(transport)
        try:
            await transport.read(receive, connection)
        except Exception:
            counts["transport_failed"] += 1
            logger.exception("The connection failed")
            transport.close(1011, "transport_failed")
        finally:
            with anyio.CancelScope(shield=True):
                await connection.end()
                await transport.finished()
            tasks.cancel_scope.cancel()


def warn_about_server() -> None:
    """Name a server that does not wait for slow clients in the log: what it buffers for them, no limit of ours can
    see.
    """
    uvicorn = sys.modules.get("uvicorn")
    version = getattr(uvicorn, "__version__", "")
    parts = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if parts and UNBOUNDED_UVICORN[0] <= parts <= UNBOUNDED_UVICORN[1]:
        advice = "upgrade to 0.52.1 or later, or use --ws wsproto"
        logger.warning("uvicorn %s buffers without bound for clients that do not read: %s", version, advice)
    elif "daphne" in sys.modules:
        logger.warning("daphne buffers without bound for clients that do not read: prefer uvicorn or hypercorn")
