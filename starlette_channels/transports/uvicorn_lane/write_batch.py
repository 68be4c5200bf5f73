"""Write batches of the fast lane: frames are logged in order, and written once per client and turn of the event loop.

A write is a system call, and by far the most expensive part of a delivery. All frames of one turn for a client are one
write, and a broadcast alone is one loop over the writes of its recipients.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence, Sized
from typing import TypeAlias

from msgspec import Raw

from starlette_channels.transports.uvicorn_lane.frames import COMMON, TEXT_HEADERS, binary_frame, text_frame
from starlette_channels.wire.messages import OutgoingFrame

logger: logging.Logger = logging.getLogger("starlette_channels.transport")

WriteBytes: TypeAlias = Callable[[bytes], object]
"""The `write` of a client's transport, always the same object for the same client."""

WRITES_AT_ONCE = 256
"""Maximum clients written to in one turn of the event loop, so that an echo does not wait for all of them."""

BYTES_AT_ONCE = 1 << 17
"""Maximum bytes written in one turn of the event loop; the system takes about half a millisecond for them."""

COALESCING_SECONDS = 0.01
"""The longest time that broadcasts wait for further ones, while messages of clients wait for their turn."""

FEW = 64
"""Maximum clients of a small broadcast: it does not wait for the end of a large one, and replies do not wait for it."""


class WriteBatch:
    """Log of the frames to write, flushed at the end of the turn."""

    __slots__ = (
        "_afterwards",
        "_frame",
        "_gone",
        "_is_wide",
        "_log",
        "_loop",
        "_pending",
        "_present",
        "_queues",
        "_scheduled",
        "_since",
        "_spreads",
        "_upcoming",
        "_wire",
        "shelf",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, queues: Sequence[Sized] = ()) -> None:
        self._loop = loop
        self._queues = queues  # those of the messages that wait for their turn
        self._since: float | None = None  # the time from which broadcasts wait for more
        self._log: list[tuple[Sequence[WriteBytes], bytes]] = []
        self._pending: dict[WriteBytes, list[bytes]] = {}  # the rest of a long flush
        self._scheduled = False
        self._is_wide = False  # whether that rest has a broadcast to more than `FEW` clients
        self._spreads = False
        self._afterwards: list[Callable[[], object]] = []
        self._upcoming: list[Callable[[], object]] = []
        self._frame: OutgoingFrame | None = None
        self._wire = b""
        self._gone: set[WriteBytes] = set()
        self._present: tuple[Sequence[WriteBytes], tuple[WriteBytes, ...]] = ((), ())
        self.shelf: Shelf = Shelf(self)

    def spread(self, writers: Sequence[WriteBytes], frame: OutgoingFrame) -> None:
        """Log one frame for many clients. `writers` must not be changed afterwards."""
        if self._gone:
            writers = self._without_gone(writers)
            if not writers:
                return
        if self._is_wide and self._pending and not self._log and len(writers) <= FEW:
            data = wire(frame)
            for write in writers:
                self._bring_forward(write, data)
            return
        self._spreads = True
        self._log.append((writers, wire(frame)))
        if not self._scheduled:
            self._schedule()

    def leave_out(self, write: WriteBytes) -> None:
        """Exclude a client from broadcasts: it is gone or being closed, and its channels have not ended yet."""
        self._gone.add(write)
        self._present = ((), ())

    def forget(self, write: WriteBytes) -> None:
        """Drop the references to a client whose channels have ended."""
        self._gone.discard(write)
        self._present = ((), ())

    def _without_gone(self, writers: Sequence[WriteBytes]) -> Sequence[WriteBytes]:
        """Return the writers not left out; the same object for the same input, so that `_begin` can join frames."""
        former, present = self._present
        if former is not writers:
            present = tuple(write for write in writers if write not in self._gone)
            self._present = writers, present
        return present

    def send(self, write: WriteBytes, data: bytes) -> None:
        """Log bytes for one client."""
        if self._pending and not self._log:
            self._bring_forward(write, data)
            return
        self._log.append(((write,), data))
        if not self._scheduled:
            self._schedule()

    def _bring_forward(self, write: WriteBytes, data: bytes) -> None:
        """Write to a client at once, ahead of a long flush; its own part of the flush goes first, so order is kept."""
        _write_all((write,), b"".join((*self._pending.pop(write, ()), data)))

    def shared_wire(self, frame: OutgoingFrame) -> bytes:
        """Return a frame encoded for the network, to be queued for clients: within a turn they share the same bytes."""
        if frame is not self._frame:
            if self._frame is None:
                self._loop.call_soon(self._forget_frame)
            self._frame, self._wire = frame, wire(frame)
        return self._wire

    def _forget_frame(self) -> None:
        self._frame, self._wire = None, b""

    def afterwards(self, function: Callable[[], object]) -> None:
        """Call a function after everything logged so far has been written."""
        self._afterwards.append(function)
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._flush)

    def _waits_for_more(self) -> bool:
        """Whether broadcasts wait for those of the next turns, as messages of clients wait, and a write costs most."""
        if not self._spreads or self._pending or not any(self._queues):
            self._since = None
            return False
        now = self._loop.time()
        self._since = now if self._since is None else self._since
        return now - self._since < COALESCING_SECONDS

    def _flush(self) -> None:
        if self._waits_for_more():
            self._loop.call_soon(self._flush)
            return
        self._since = None
        self._scheduled = False
        if not self._pending:
            self._begin()
        pending, joined_last, joined, room = self._pending, None, b"", BYTES_AT_ONCE
        for _ in range(min(len(pending), WRITES_AT_ONCE)):
            write, data = pending.popitem()
            if data is not joined_last:  # many clients share a list
                joined_last, joined = data, data[0] if len(data) == 1 else b"".join(data)
            try:
                write(joined)
            except RuntimeError as error:
                _report(error)
            room -= len(joined)
            if room <= 0:
                break
        if not pending:
            for function in self._upcoming:
                self._loop.call_soon(function)
            self._upcoming = []
        if (pending or self._log or self._afterwards) and not self._scheduled:
            self._schedule()

    def _begin(self) -> None:
        """Take over the log; write it at once if it is small enough."""
        log, self._log = self._log, []
        self._upcoming += self._afterwards  # some may be left if the last client of a flush was brought forward
        self._afterwards = []
        if not log:
            return
        if self._written_alone(log):
            return
        writers, is_wide, is_mixed = log[0][0], False, False
        for others, _ in log:
            if others is not writers:
                is_mixed = True
            if len(others) > FEW:
                is_wide = True
        self._is_wide = is_wide
        if is_mixed:
            self._pending = _by_writer(log)
            return
        data = [wire for _, wire in log]
        joined = data[0] if len(data) == 1 else b"".join(data)
        if len(writers) > WRITES_AT_ONCE or len(writers) * len(joined) > BYTES_AT_ONCE:
            shared = [joined]
            self._pending = dict.fromkeys(writers, shared)
            return
        _write_all(writers, joined)

    def _written_alone(self, log: list[tuple[Sequence[WriteBytes], bytes]]) -> bool:
        """Write a log of replies, with one entry per client; return False, with nothing written, for any other log."""
        if self._spreads or len(log) > WRITES_AT_ONCE:
            self._spreads = False
            return False
        alone = {write: data for (write,), data in log}
        if len(alone) < len(log):
            return False
        for write, data in alone.items():
            try:
                write(data)
            except RuntimeError as error:
                _report(error)
        return True


class Shelf:
    """The outlet for clients that are behind with reading: each queues a frame, and all share its bytes."""

    __slots__ = ("_outlet",)

    def __init__(self, outlet: WriteBatch) -> None:
        self._outlet = outlet

    def spread(self, writers: Sequence[WriteBytes], frame: OutgoingFrame) -> None:
        """Queue a frame for every client."""
        data = self._outlet.shared_wire(frame)
        for keep in writers:
            keep(data)


def wire(frame: OutgoingFrame) -> bytes:
    """Encode a frame for the network."""
    if type(frame) is Raw:  # encoded already: the usual case
        size = len(frame)
        return TEXT_HEADERS[size] + frame if size < COMMON else text_frame(frame)
    return text_frame(frame.encode()) if isinstance(frame, str) else binary_frame(frame)


def _write_all(writers: Sequence[WriteBytes], data: bytes) -> None:
    for write in writers:
        try:
            write(data)
        except RuntimeError as error:
            _report(error)


def _report(error: RuntimeError) -> None:
    """Log that a client was gone before the write; uvloop raises `RuntimeError` then."""
    logger.debug("The client is gone: %r", error)


def _by_writer(log: list[tuple[Sequence[WriteBytes], bytes]]) -> dict[WriteBytes, list[bytes]]:
    """Group a log by client, in order.

    Usually it has broadcasts to the same groups of clients, and replies to some of those. So the clients of a group
    share one list, and only clients with more frames than their group have a separate list.
    """
    pending: dict[WriteBytes, list[bytes]] = {}
    shared: dict[int, list[bytes]] = {}  # the list of a group, by the id of its writers
    own: dict[int, list[list[bytes]]] = {}  # by the id of a shared list: the separate lists in its group
    for writers, data in log:
        waiting = shared.get(id(writers))
        if waiting is None and len(writers) > 1 and pending.keys().isdisjoint(writers):
            waiting = shared[id(writers)] = []
            own[id(waiting)] = []
            pending.update(dict.fromkeys(writers, waiting))
        if waiting is not None:
            waiting.append(data)
            for one in own[id(waiting)]:
                one.append(data)
            continue
        for write in writers:
            waiting = pending.get(write)
            if waiting is None:
                pending[write] = [data]
            elif id(waiting) in own:
                pending[write] = separate = [*waiting, data]
                own[id(waiting)].append(separate)
            else:
                waiting.append(data)
    return pending
