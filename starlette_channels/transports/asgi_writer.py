"""The writer of the portable transport on asyncio: one task sends to all clients of an event loop.

A broadcast is one entry of a log, with all its recipients. A send rarely suspends, so one task for the whole log costs
a tenth of one task per client. If a send does suspend, its task stays with that client, and another task continues with
the rest: a client that does not read does not delay others.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from operator import length_hint
from typing import NamedTuple, Protocol, TypeAlias

from anyio.lowlevel import RunVar
from starlette.types import Send

from starlette_channels.channels.backpressure import Place
from starlette_channels.transports.state import TransportState
from starlette_channels.wire.messages import Frame, OutgoingFrame, as_frame

CLOSED = TransportState.CLOSED

SENDS_AT_ONCE = 256
"""Maximum sends of one broadcast in a turn of the event loop, so that other tasks do not wait for all of them."""

MANY_ENTRIES = 16
"""Entries in the log from which `SENDS_AT_ONCE` does not apply: the log would grow while other tasks publish."""


class CloseMessage(NamedTuple):
    """The close of a WebSocket, queued behind its last frame."""

    code: int
    reason: str


SendItem: TypeAlias = Frame | CloseMessage


class Recipient(Protocol):
    """A client, as the writer sees it."""

    send: Send
    state: TransportState
    in_flight: SendItem | None
    """The item whose send is suspended; others are queued behind it."""

    def enqueue(self, item: SendItem, place: Place | None = None) -> None:
        """Queue an item behind the one in flight; if there is none, send it in a task of its own."""
        ...

    def suspended(self, item: SendItem, cancel: Callable[[], object]) -> None:
        """Note that the server has not taken an item at once; `cancel` ends the send."""
        ...

    def sent(self) -> None:
        """Note that the item in flight has been sent."""
        ...

    async def flush(self) -> None:
        """Send the item in flight and the queued ones. It must not raise."""
        ...

    def connection_lost(self, error: Exception) -> None:
        """Note that a send has failed: the client is gone."""
        ...

    def stopped(self) -> None:
        """Note that the task that was sending ends."""
        ...


class WriterTask:
    """One task of the writer, and the client that it sends to at the moment."""

    __slots__ = ("recipient", "task")

    def __init__(self) -> None:
        self.recipient: Recipient | None = None
        self.task: asyncio.Task[None] | None = None


class SharedWriter:
    """Sends to the clients of one event loop, in the order of the log."""

    __slots__ = ("_current", "_item", "_log", "_loop", "_place", "_recipients")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._log: deque[tuple[Sequence[Recipient], SendItem, Place | None]] = deque()
        self._recipients: Iterator[Recipient] = iter(())  # those of the entry that is being sent
        self._item: SendItem = ""
        self._place: Place | None = None
        self._current: WriterTask | None = None

    @property
    def is_idle(self) -> bool:
        """Whether everything in the log has been sent, or is in the queues of the clients."""
        return not self._log and not length_hint(self._recipients)

    def spread(self, writers: Sequence[Recipient], frame: OutgoingFrame) -> None:
        """Log one frame for many clients."""
        self._log.append((writers, as_frame(frame), None))
        if self._current is None:
            self._start()

    def send(self, recipient: Recipient, item: SendItem, place: Place | None = None) -> None:
        """Log a frame, or the close, for one client."""
        self._log.append(((recipient,), item, place))
        if self._current is None:
            self._start()

    def _start(self) -> None:
        self._current = current = WriterTask()
        current.task = asyncio.Task(self._write(current), loop=self._loop)
        self._loop.call_soon(self._after_first_step, current)

    async def _write(self, current: WriterTask) -> None:
        while self._current is current:
            item = self._item
            key, is_close = "text" if isinstance(item, str) else "bytes", isinstance(item, CloseMessage)
            for recipient in islice(self._recipients, SENDS_AT_ONCE):
                if recipient.in_flight is not None or recipient.state is CLOSED or is_close:
                    recipient.enqueue(item, self._place)
                    continue
                current.recipient = recipient
                try:
                    await recipient.send({"type": "websocket.send", key: item})
                except Exception as error:  # noqa: BLE001 - its type depends on the server
                    recipient.connection_lost(error)
                except asyncio.CancelledError:
                    recipient.stopped()
                    raise
                if self._current is not current:  # another task sends to the others
                    recipient.sent()
                    await recipient.flush()
                    return
            if length_hint(self._recipients):
                if len(self._log) < MANY_ENTRIES:
                    self._start()
                continue
            if not self._log:
                self._current = None
                self._forget()
                return
            recipients, self._item, self._place = self._log.popleft()
            self._recipients = iter(recipients)

    def _after_first_step(self, task: WriterTask) -> None:
        """Leave a suspended task to its client, and continue with the others in a new task."""
        if self._current is not task:
            return
        self._current = None
        if task.recipient is not None and task.task is not None and not task.task.done():
            task.recipient.suspended(self._item, task.task.cancel)
        if self.is_idle:
            self._forget()
        else:
            self._start()

    def _forget(self) -> None:
        """Drop the references to the last entry and its clients."""
        self._recipients, self._item, self._place = iter(()), "", None


_writer: RunVar[SharedWriter] = RunVar("starlette_channels_writer")


def writer_of_this_loop() -> SharedWriter | None:
    """Return the event loop's writer; `None` on trio, where each client has a task of its own to send."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    try:
        return _writer.get()
    except LookupError:
        writer = SharedWriter(loop)
        _writer.set(writer)
        return writer
