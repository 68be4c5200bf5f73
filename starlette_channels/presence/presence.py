"""`Presence`: the list of clients on a topic, for handlers, and for the `Presence` of phoenix.js.

Source: Phoenix's `presence.ex`; on purpose different: a pushed state is never older than a diff sent before it, a
failed `fetch` costs only the fields that it adds, and keys that break pages are refused.
"""

import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

from starlette_channels.arguments import check_seconds, check_type, shown_argument
from starlette_channels.channels.socket import InternalSocket, Socket
from starlette_channels.exceptions import PresenceError
from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Entry, Meta
from starlette_channels.presence.crdt.state import State
from starlette_channels.presence.diffs import DiffPublisher, Fetch, Observer, Presences, decoded, grouped
from starlette_channels.presence.meta import fields_of, make_key, make_meta
from starlette_channels.presence.replication import Replication, Settings
from starlette_channels.presence.scheduler import Scheduler, Schedulers
from starlette_channels.presence.states import StatePublisher
from starlette_channels.presence.timing import PresenceTiming
from starlette_channels.pubsub.broker import Broker
from starlette_channels.runtime.callables import check_function
from starlette_channels.wire.messages import Payload

NOTHING: Mapping[str, Any] = {}

INTENDED = frozenset({"left", "stopped", "refused"})
"""The end reasons without a grace period, because the client is not expected to rejoin at once."""


class TrackedSocket:
    """A socket with presences, and their keys."""

    __slots__ = ("broker", "keys", "member", "socket", "topic")

    def __init__(self, socket: InternalSocket[Any], broker: Broker, member: int) -> None:
        self.socket: InternalSocket[Any] = socket
        self.broker: Broker = broker
        self.topic: str = socket.topic
        self.member: int = member
        self.keys: set[str] = set()


class Presence:
    """Presence: the list of clients on a topic. Make one for all channels, track in the join handler, push the state::

        presence = Presence()

        @channel("room:*")
        async def room(socket: Socket[User], payload: dict) -> None:
            presence.track(socket, socket.assigns.id, {"status": "online"})
            presence.push_state(socket)

    A presence ends with its channel, for any end reason. All clients on the topic get a `presence_diff` with the
    changes. The changes of one turn of the event loop are one diff.

    `name`: processes that share a broker know a `Presence` by its name, which must be unique on the broker.

    `fetch`: adds fields beside the metas, such as a user's name: `async def fetch(topic, presences)` gets several keys
    at once and returns `{"ann": {"name": "Ann"}}`. If it raises, or takes longer than `fetch_seconds`, clients get the
    metas without these fields, and `counts["fetch_failed"]` grows.

    `grace_seconds`: how long a presence stays after its connection is lost or its channel has crashed. If the same key
    is tracked again meanwhile, clients get one diff with the new meta and the old one. If a client leaves, its presence
    is removed at once.

    `timing`: how soon processes send changes to each other, and how long a process may be silent.

    The state is kept in memory, about 1 KB for each presence of all processes. All sockets of one `Presence` must have
    the same broker. Raises `TypeError` for arguments of another type, and `ValueError` for negative times.
    """

    def __init__(
        self,
        *,
        name: str = "presence",
        fetch: Fetch | None = None,
        fetch_seconds: float = 5.0,
        grace_seconds: float = 0.0,
        timing: PresenceTiming | None = None,
    ) -> None:
        check_type(name, str, "Presence(name=", "it is a text, the same in all processes")
        if fetch is not None:
            check_function(fetch, "Presence(fetch=...)", ("topic", "presences"), by_name=False)
        check_seconds(fetch_seconds, "Presence(fetch_seconds=")
        check_seconds(grace_seconds, "Presence(grace_seconds=")
        check_type(timing or PresenceTiming(), PresenceTiming, "Presence(timing=", "write PresenceTiming(...)")
        self._settings = Settings(name, timing or PresenceTiming(), grace_seconds)
        self._publisher = DiffPublisher(fetch, fetch_seconds)
        self._state = State(ReplicaId("", 0))
        self._lock = threading.Lock()
        self._members = count(1)
        self._tracked: dict[Socket[Any], TrackedSocket] = {}
        self._missed: dict[int, TrackedSocket] = {}  # sockets in their grace period, by member
        self._schedulers: Schedulers[TrackedSocket] = Schedulers(self._end_grace)
        self._states = StatePublisher(self._state.roster, self._lock, self._publisher, self._schedulers)
        self._replication: Replication | None = None
        self._lives = count(1)

    @property
    def counts(self) -> Mapping[str, int]:
        """Counters of errors, by code: `fetch_failed`, `observer_failed`, `presence_diff_failed`; between
        processes, `presence_node_down` and `presence_message_malformed`.
        """
        return self._publisher.counts

    def attach(self, broker: Broker) -> None:
        """Start replication with the other processes of a broker. Call it in an event loop.

        The first socket does this, and so does `Channels(presence=...)` when the application starts. Call it only in
        processes that have neither and read presences. It lasts until the broker closes; a second call has no effect.
        Raises `ValueError` if another `Presence` has the same name there, or if this one is in use with another broker.
        """
        scheduler = self._schedulers.here()
        if scheduler is None:
            raise RuntimeError("Presence.attach: call it in an event loop")
        if not broker.is_shared:
            return
        with self._lock:
            if self._replication is None or not self._replication.serves(broker, scheduler):
                self._replication = Replication(
                    self._settings,
                    next(self._lives),
                    broker,
                    self._state,
                    self._lock,
                    self._publisher,
                    scheduler,
                )
        self._publisher.publish_soon(scheduler)

    def knows_others(self, broker: Broker) -> bool:
        """Whether all other processes of a broker have been heard since `attach`, so that lists are complete.

        That takes two to four times `PresenceTiming.news_seconds`. With `memory://` there are no other processes.
        """
        if not broker.is_shared:
            return True
        replication = self._replication
        return replication is not None and replication.broker is broker and replication.is_settled()

    # For handlers.

    def track(self, socket: Socket[Any], key: str | int, meta: Payload = NOTHING) -> None:
        """Add a presence on the socket's topic.

        `key` identifies the client, for example by a user's id: 1 and "1" are the same key. Several sockets may track
        the same key, and one socket several keys. `meta` describes this connection, for example its status: a dict, or
        another value that is encoded as a JSON object.

        May be called from any thread, and does nothing once the channel has ended. Raises `PresenceError` with the
        reason `already_tracked` if this socket tracks the key, or `unsafe_key` for a name that breaks pages, such as
        `__proto__`; `TypeError` if the meta is not encoded as an object. Costs about 20 microseconds, and a diff to
        every client on the topic.
        """
        inner = _internal(socket, "track")
        name, made = make_key(key), make_meta(meta)
        if inner.end_reason is not None:
            return
        scheduler = self._schedulers.here()
        broker = inner.broker
        if broker.is_shared and scheduler is not None:
            self.attach(broker)
        with self._lock:
            tracked = self._tracked.get(inner)
            is_new = tracked is None
            if tracked is None:
                tracked = self._tracked[inner] = TrackedSocket(inner, broker, next(self._members))
            if name in tracked.keys:
                raise PresenceError("already_tracked")
            replaced = self._take_back(tracked.topic, name) if self._missed else ()
            self._put(tracked, name, made, replaced)
        self._publish_soon(inner, scheduler)
        if is_new:
            inner.on_close(partial(self._end, inner))

    def update(self, socket: Socket[Any], key: str | int, meta: Payload | Callable[[dict[str, Any]], Payload]) -> None:
        """Replace the meta of a presence by a new meta, or by the result of a function of the current meta.

        The function may be called again if another thread has changed the meta meanwhile. Clients get one diff with
        both metas. Raises `PresenceError` with the reason `nopresence` if this socket does not track the key, and the
        errors of `track` and of the function.
        """
        inner = _internal(socket, "update")
        name = make_key(key)
        while True:
            tracked, entry = self._find(inner, name)
            replaced: Meta = entry.meta
            made = make_meta(meta(fields_of(replaced)) if callable(meta) else meta, replaced)
            with self._lock:
                if self._state.find(tracked.topic, tracked.member, name) is entry:
                    self._put(tracked, name, made, (entry,))
                    break
        self._publish_soon(inner, self._schedulers.here())

    def untrack(self, socket: Socket[Any], key: str | int | None = None) -> None:
        """Remove one presence of a socket, or all of them without a key. No error if there is none."""
        inner = _internal(socket, "untrack")
        with self._lock:
            tracked = self._tracked.get(inner)
            if tracked is None:
                return
            self._remove(tracked, tuple(tracked.keys) if key is None else (str(key),))
        self._publish_soon(inner, self._schedulers.here())

    def push_state(self, socket: Socket[Any]) -> None:
        """Send `presence_state`, all presences on the topic, to this client. The `Presence` of phoenix.js needs it
        after every join.

        It is sent after the running handler and after the reply to the join, with the presences at that time. Its size
        is about 80 bytes and the meta for each presence. On a topic with 100 keys or more it is sent after a delay of
        2 microseconds for each key, and encoded once for all clients that join meanwhile.
        """
        inner = _internal(socket, "push_state")
        inner.run_in_order(partial(self._push_state, inner))

    # For handlers and all other code.

    async def list(self, topic: str | Socket[Any]) -> Presences:
        """Return the presences on a topic by key, in the order of arrival, as a copy::

            {
                "ann": {"metas": [{"phx_ref": "d0T1kxTA2gVR6sZq", "status": "online"}]},
                "ben": {"metas": [{"phx_ref": "Vr3oNH0bGm0nYpUM"}, {"phx_ref": "xH7yqzRk1Jj5tQeB"}]},
            }

        `metas` has the meta of each socket that tracks the key, with its `phx_ref`, and after an update the
        `phx_ref_prev`. The fields that `fetch` returns stand beside `metas`. A topic without presences is `{}`. Give
        the topic's name or a socket. Costs about 3 microseconds for each presence. Raises the errors of `fetch`.
        """
        name = self._topic(topic)
        with self._lock:
            entries = self._state.roster.entries(name)
        return decoded(grouped(entries, await self._publisher.look_up(name, entries)))

    async def get_by_key(self, topic: str | Socket[Any], key: str | int) -> dict[str, Any] | None:
        """Return the presence of one key, in the shape of `list`: `{"metas": [...]}` and the fields of `fetch`. `None`
        if there is none. Raises the errors of `fetch`.
        """
        name, wanted = self._topic(topic), str(key)
        with self._lock:
            entries = tuple(self._state.roster.on(name).get(wanted, NOTHING).values())
        return decoded(grouped(entries, await self._publisher.look_up(name, entries))).get(wanted)

    def count(self, topic: str | Socket[Any]) -> int:
        """Return the number of keys on a topic. It takes the same time however many there are."""
        return len(self._state.roster.on(self._topic(topic)))

    def on_diff(self, observer: Observer) -> Observer:
        """Call an async function with each `PresenceDiff`::

            @presence.on_diff
            async def changed(topic: str, diff: PresenceDiff) -> None: ...

        It is called after the clients have the diff, for each topic in order and one at a time. Its errors are logged
        and counted. Raises `TypeError` if the function is not async or takes other arguments.
        """
        check_function(observer, "Presence.on_diff", ("topic", "diff"), by_name=False)
        self._publisher.observers.append(observer)
        return observer

    # Entries: call these with the lock held, except `_find`.

    def _find(self, socket: Socket[Any], key: str) -> tuple[TrackedSocket, Entry]:
        with self._lock:
            tracked = self._tracked.get(socket)
            entry = tracked and self._state.find(tracked.topic, tracked.member, key)
            if tracked is None or entry is None:
                raise PresenceError("nopresence")
            return tracked, entry

    def _put(self, tracked: TrackedSocket, key: str, meta: Meta, leaves: Iterable[Entry]) -> None:
        part = self._state.add(tracked.topic, tracked.member, key, meta)
        if self._replication is not None:
            self._replication.record(part)
        tracked.keys.add(key)
        self._publisher.put(tracked.broker, tracked.topic, part.entries.values(), leaves)

    def _remove(self, tracked: TrackedSocket, keys: Iterable[str]) -> None:
        dropped = self._drop(tracked, keys)
        if dropped:
            self._publisher.put(tracked.broker, tracked.topic, (), dropped)

    def _drop(self, tracked: TrackedSocket, keys: Iterable[str]) -> Sequence[Entry]:
        dropped: list[Entry] = []
        for key in keys:
            entry = self._state.find(tracked.topic, tracked.member, key)
            if entry is not None:
                part = self._state.remove(tracked.topic, tracked.member, key)
                if self._replication is not None:
                    self._replication.record(part)
                tracked.keys.discard(key)
                dropped.append(entry)
        return dropped

    # The end of a socket, and the grace period after it.

    def _end(self, socket: InternalSocket[Any]) -> None:
        scheduler = self._schedulers.here()
        with self._lock:
            tracked = self._tracked.pop(socket, None)
            if tracked is None:
                return
            if scheduler is not None and self._settings.grace_seconds and socket.end_reason not in INTENDED:
                self._missed[tracked.member] = tracked
                scheduler.keep(tracked, self._settings.grace_seconds, self._end_grace)
                return
            self._remove(tracked, tuple(tracked.keys))
        self._publish_soon(socket, scheduler)

    def _take_back(self, topic: str, key: str) -> Sequence[Entry]:
        """Remove the entries of a key that are in their grace period, because the key is tracked again."""
        owners = self._state.roster.on(topic).get(key, NOTHING)
        here = self._state.me
        missed = [self._missed[member] for replica, member in owners if replica == here and member in self._missed]
        return [entry for tracked in missed for entry in self._drop(tracked, (key,))]

    def _end_grace(self, tracked: TrackedSocket) -> None:
        with self._lock:
            self._missed.pop(tracked.member, None)
            self._remove(tracked, tuple(tracked.keys))
        self._publish_soon(tracked.socket, self._schedulers.here())

    # Sending.

    def _publish_soon(self, socket: InternalSocket[Any], scheduler: Scheduler[Any] | None) -> None:
        if scheduler is not None:
            self._publisher.publish_soon(scheduler)
        else:  # this thread runs no event loop, but the socket's does
            socket.run_in_order(partial(self._publish_there, socket))

    def _publish_there(self, socket: InternalSocket[Any]) -> None:
        self._attach(socket)
        self._publish_soon(socket, self._schedulers.here())

    def _attach(self, socket: InternalSocket[Any]) -> None:
        broker = socket.broker
        if broker.is_shared and self._schedulers.here() is not None:
            self.attach(broker)

    def _topic(self, topic: str | Socket[Any]) -> str:
        if isinstance(topic, str):
            return topic
        if not isinstance(topic, InternalSocket):
            check_type(topic, Socket, "Presence: who is on a topic? (", "give its name, or the socket of a handler")
        else:
            self._attach(topic)
        return topic.topic

    def _push_state(self, socket: InternalSocket[Any]) -> Coroutine[Any, Any, None] | None:
        self._attach(socket)
        return self._states.push(socket)


def _internal(socket: Socket[Any], method: str) -> InternalSocket[Any]:
    """Return a socket as an `InternalSocket`; raises `TypeError` for anything else."""
    if not isinstance(socket, InternalSocket):
        raise TypeError(
            f"presence.{method}({shown_argument(socket)}, ...): it takes the socket that the handler was given, and not"
            " a topic; the socket knows its topic"
        )
    return socket
