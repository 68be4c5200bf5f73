"""States: `presence_state`, all presences on a topic, for a client that has joined.

On a topic with many keys a state is large, and every join changes it. There, clients wait for a short time, and all
waiting clients get the same state.
"""

import threading
from collections.abc import Coroutine
from typing import Any

import anyio
import anyio.lowlevel

from starlette_channels.channels.socket import InternalSocket, SharedPush
from starlette_channels.presence.crdt.index import Roster
from starlette_channels.presence.diffs import MANY, DiffPublisher, grouped
from starlette_channels.presence.scheduler import Scheduler, Schedulers
from starlette_channels.wire.event_names import PRESENCE_STATE
from starlette_channels.wire.messages import encode_payload

WAIT_SECONDS = 2e-6
"""The delay for each key on a topic with many keys. Encoding a state takes about a twentieth of that."""

PUSH_SECONDS = 0.003
"""Time limit of one turn of the event loop: states of further clients wait for the next turn."""


class StateWaiter:
    """A client waiting for a state."""

    __slots__ = ("error", "is_served")

    def __init__(self) -> None:
        self.is_served: anyio.Event = anyio.Event()
        self.error: Exception | None = None

    def serve(self, socket: InternalSocket[Any], push: SharedPush) -> None:
        """Send the state. An error concerns this client only."""
        try:
            socket.push_internal(push)
        except Exception as error:  # noqa: BLE001 - raised again in `_push_shared` of this client
            self.error = error
        self.is_served.set()


class StatePublisher:
    """Sends the states of all topics. The lock is held while a state is read."""

    def __init__(self, roster: Roster, lock: threading.Lock, diffs: DiffPublisher, schedulers: Schedulers[Any]) -> None:
        self._roster = roster
        self._lock = lock
        self._diffs = diffs
        self._schedulers = schedulers
        self._waiting: dict[tuple[Scheduler[Any], str], dict[InternalSocket[Any], StateWaiter]] = {}

    def push(self, socket: InternalSocket[Any]) -> Coroutine[Any, Any, None] | None:
        """Send the state to a client, in its event loop: at once, or in the returned coroutine."""
        if self._diffs.fetch is not None:
            return self._push_fetched(socket)
        with self._lock:
            is_large = len(self._roster.on(socket.topic)) >= MANY
            state = None if is_large else self._roster.json(socket.topic)
        if state is None:
            return self._push_shared(socket)
        socket.push_internal(SharedPush(PRESENCE_STATE, state))
        return None

    def _encoded(self, topic: str) -> SharedPush:
        with self._lock:
            return SharedPush(PRESENCE_STATE, self._roster.json(topic))

    async def _push_shared(self, socket: InternalSocket[Any]) -> None:
        """Wait until the state has been sent to all waiting clients of the topic."""
        scheduler = self._schedulers.here()
        assert scheduler is not None, "no event loop"
        group = scheduler, socket.topic
        waiting = self._waiting.get(group)
        if waiting is None:
            waiting = self._waiting[group] = {}
            scheduler.run(self._serve, group)
        waiting[socket] = waiter = StateWaiter()
        try:
            await waiter.is_served.wait()
        finally:
            waiting.pop(socket, None)
        if waiter.error is not None:
            raise waiter.error

    async def _serve(self, group: tuple[Scheduler[Any], str]) -> None:
        """Send the state to all waiting clients, until none is left."""
        waiting = self._waiting[group]
        try:
            while waiting:
                await anyio.sleep(WAIT_SECONDS * len(self._roster.on(group[1])))
                await self._serve_those(tuple(waiting), group)
        finally:
            del self._waiting[group]

    async def _serve_those(self, sockets: tuple[InternalSocket[Any], ...], group: tuple[Scheduler[Any], str]) -> None:
        """Send the same state to some clients, in as many turns of the event loop as it takes."""
        scheduler, topic = group
        push, published, end = None, -1, scheduler.now() + PUSH_SECONDS
        for socket in sockets:
            if scheduler.now() >= end:
                await anyio.lowlevel.checkpoint()
                end = scheduler.now() + PUSH_SECONDS
            if (
                push is None or published != self._diffs.published
            ):  # a state must not be older than a diff sent before it
                push, published = self._encoded(topic), self._diffs.published
            waiter = self._waiting[group].pop(socket, None)
            if waiter is not None:
                waiter.serve(socket, push)

    async def _push_fetched(self, socket: InternalSocket[Any]) -> None:
        """Look up fields for all keys, then for the keys added meanwhile, and send the presences of that time."""
        topic = socket.topic
        extras: dict[str, Any] = {}
        for _ in range(2):
            with self._lock:
                unknown = [entry for entry in self._roster.entries(topic) if entry.key not in extras]
            found = await self._diffs.look_up_safely(topic, unknown)
            extras.update({entry.key: found.get(entry.key, {}) for entry in unknown})
        with self._lock:
            state = grouped(self._roster.entries(topic), extras)
        socket.push_internal(SharedPush(PRESENCE_STATE, encode_payload(state)))
