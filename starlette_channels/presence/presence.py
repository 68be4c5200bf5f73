"""`Presence`: who is on a topic, for handlers, and for the `Presence` of phoenix.js.

Source: Phoenix's `presence.ex`; on purpose different: a state that is pushed is never older than a diff that was sent
before it, a `fetch` that fails costs the fields that it adds and nothing else, and keys that break pages are refused.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from starlette_channels.arguments import check_seconds, check_type, shown_argument
from starlette_channels.channels.socket import Errand, Socket
from starlette_channels.exceptions import PresenceError
from starlette_channels.presence.crdt.clock import ReplicaId
from starlette_channels.presence.crdt.delta import Entry, Meta, Part
from starlette_channels.presence.crdt.state import State
from starlette_channels.presence.diffs import DiffPublisher, Fetch, Observer, Presences, decoded, grouped
from starlette_channels.presence.meta import fields_of, make_key, make_meta
from starlette_channels.presence.replication import Replication, Settings
from starlette_channels.presence.scheduler import Desks
from starlette_channels.presence.timing import PresenceTiming
from starlette_channels.presence.tracked import INTENDED, Tracked, behind
from starlette_channels.pubsub.broker import Broker
from starlette_channels.runtime.callables import check_function
from starlette_channels.wire.messages import Payload

NOTHING: Mapping[str, Any] = {}


def _check_socket(socket: object, method: str) -> None:
    if not isinstance(socket, Socket):
        raise TypeError(
            f"presence.{method}({shown_argument(socket)}, ...): it takes the socket that the handler was given, and not"
            " a topic; the socket knows its topic"
        )


class Presence:
    """Who is on a topic. Make one for all channels, track in the join handler, and push the state::

        presence = Presence()

        @channel("room:*")
        async def room(socket: Socket[User], payload: dict) -> None:
            presence.track(socket, socket.assigns.id, {"status": "online"})
            presence.push_state(socket)

    A presence ends with its channel, whatever ends that. Everyone on the topic gets a `presence_diff` for what changes;
    the changes of one turn of the event loop are one diff. `fetch` puts fields beside the metas, as of a user's name
    and picture: `async def fetch(topic, presences)` is called once for many keys and returns a dict by key. If it
    raises, or takes longer than `fetch_seconds`, clients get the metas without them, and `counts` says `fetch_failed`.

    With `grace_seconds`, those whose connection is lost are present for so long after it; if the same key is tracked
    again meanwhile, that is one diff with both, and nobody seems to have gone. Who leaves on purpose is gone at once.

    It is kept in memory. Processes that share a broker learn of each other's presences: `timing` says how soon, and how
    long a process may be silent. They know a `Presence` by its `name`, which must be its own on the broker. All sockets
    of one `Presence` must have one broker.
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
        self._tracked: dict[Socket[Any], Tracked] = {}
        self._missed: dict[int, Tracked] = {}
        self._desks: Desks[Tracked] = Desks(self._give_up)
        self._replication: Replication | None = None
        self._lives = count(1)

    @property
    def counts(self) -> Mapping[str, int]:
        """What has gone wrong, by code: `fetch_failed`, `observer_failed`, `presence_diff_failed`; between processes,
        `presence_node_down` and `presence_message_malformed`.
        """
        return self._publisher.counts

    def attach(self, broker: Broker) -> None:
        """Begin to hear of the other processes of a broker; call it in an event loop.

        The first socket does that, and `Channels(presence=...)` when the application starts; so it is for processes
        that have neither and want to know who is there. It lasts until the broker closes, and a second call changes
        nothing. Raises `ValueError` if another `Presence` has the same name there, or this one has another broker.
        """
        desk = self._desks.here()
        if desk is None:
            raise RuntimeError("Presence.attach: call it in an event loop")
        if not broker.is_shared:
            return
        with self._lock:
            if self._replication is None or not self._replication.serves(broker, desk):
                self._replication = Replication(
                    self._settings,
                    next(self._lives),
                    broker,
                    self._state,
                    self._lock,
                    self._publisher,
                    desk,
                )
        self._publisher.publish_soon(desk)

    def knows_others(self, broker: Broker) -> bool:
        """Whether it has heard from the other processes of a broker since it was attached, so that lists are complete.

        That takes two to four times `PresenceTiming.news_seconds`. With `memory://` there are no others.
        """
        if not broker.is_shared:
            return True
        replication = self._replication
        return replication is not None and replication.broker is broker and replication.is_settled()

    # What handlers call.

    def track(self, socket: Socket[Any], key: str | int, meta: Payload = NOTHING) -> None:
        """Say that somebody is on the socket's topic: the key is a user's, the meta is of this connection.

        Several sockets may track the same key, and one socket several keys. It may be called from any thread, and does
        nothing once the channel has ended. Raises `PresenceError` if this socket tracks the key already, or the key
        is not safe, and `TypeError` if the meta is not encoded as a JSON object. Costs about 20 microseconds.
        """
        _check_socket(socket, "track")
        name, made = make_key(key), make_meta(meta)
        if behind(socket).end_reason is not None:
            return
        self._attach(socket)
        with self._lock:
            tracked = self._tracked.get(socket)
            is_new = tracked is None
            if tracked is None:
                tracked = self._tracked[socket] = Tracked(socket, next(self._members))
            if name in tracked.keys:
                raise PresenceError("already_tracked")
            leaves = self._take_back(socket.topic, name)
            self._put(tracked, name, made, leaves)
        if is_new:
            socket.on_close(functools.partial(self._end, socket))
        self._publish(socket)

    def update(self, socket: Socket[Any], key: str | int, meta: Payload | Callable[[dict[str, Any]], Payload]) -> None:
        """Replace the meta of a presence; a function is given the present one and returns the new one.

        Clients get one diff with both. Raises `PresenceError` if this socket does not track the key.
        """
        _check_socket(socket, "update")
        name = make_key(key)
        while True:
            tracked, entry = self._find(socket, name)
            replaced: Meta = entry.meta
            made = make_meta(meta(fields_of(replaced)) if callable(meta) else meta, replaced)
            with self._lock:
                if self._state.find(socket.topic, tracked.member, name) is entry:
                    self._put(tracked, name, made, [entry])
                    break
        self._publish(socket)

    def untrack(self, socket: Socket[Any], key: str | int | None = None) -> None:
        """End one presence of a socket, or all; one that does not exist is no error."""
        _check_socket(socket, "untrack")
        with self._lock:
            tracked = self._tracked.get(socket)
            if tracked is None:
                return
            self._remove(tracked, tuple(tracked.keys) if key is None else (str(key),))
        self._publish(socket)

    def push_state(self, socket: Socket[Any]) -> None:
        """Send `presence_state`, all who are on the topic, to this client: the `Presence` of phoenix.js needs it after
        every join.

        It goes when the running handler is done, after the reply to the join, and says who is there then.
        """
        _check_socket(socket, "push_state")
        socket.send_info(Errand(functools.partial(self._push_state, socket)))

    # What anybody may ask.

    async def list(self, topic: str | Socket[Any]) -> Presences:
        """Return who is on a topic, as `presence_state` has it: a copy. Raises what `fetch` raises."""
        name = self._topic(topic)
        entries = self._entries(name)
        return decoded(grouped(entries, await self._publisher.look_up(name, entries)))

    async def get_by_key(self, topic: str | Socket[Any], key: str | int) -> dict[str, Any] | None:
        """Return `{"metas": [...]}` of one key, with what `fetch` adds, or `None`. Raises what `fetch` raises."""
        name, wanted = self._topic(topic), str(key)
        with self._lock:
            entries = tuple(self._state.roster.on(name).get(wanted, NOTHING).values())
        return decoded(grouped(entries, await self._publisher.look_up(name, entries))).get(wanted)

    def count(self, topic: str | Socket[Any]) -> int:
        """Return how many keys are on a topic, in the same time however many there are."""
        return len(self._state.roster.on(self._topic(topic)))

    def on_diff(self, observer: Observer) -> Observer:
        """Tell an async function of each diff: `@presence.on_diff async def changed(topic, diff)`.

        For each topic the diffs come in order, one at a time, after the clients have theirs. If it raises, that is
        logged and counted.
        """
        check_function(observer, "Presence.on_diff", ("topic", "diff"), by_name=False)
        self._publisher.observers.append(observer)
        return observer

    # The entries.

    def _find(self, socket: Socket[Any], key: str) -> tuple[Tracked, Entry]:
        with self._lock:
            tracked = self._tracked.get(socket)
            entry = tracked and self._state.find(socket.topic, tracked.member, key)
            if tracked is None or entry is None:
                raise PresenceError("nopresence")
            return tracked, entry

    def _put(self, tracked: Tracked, key: str, meta: Meta, leaves: Iterable[Entry]) -> None:
        part = self._state.add(tracked.topic, tracked.member, key, meta)
        self._record(part)
        tracked.keys.add(key)
        self._publisher.put(tracked.broker, tracked.topic, part.entries.values(), leaves)

    def _remove(self, tracked: Tracked, keys: Iterable[str]) -> None:
        dropped = self._drop(tracked, keys)
        if dropped:
            self._publisher.put(tracked.broker, tracked.topic, (), dropped)

    def _drop(self, tracked: Tracked, keys: Iterable[str]) -> Sequence[Entry]:
        dropped: list[Entry] = []
        for key in keys:
            entry = self._state.find(tracked.topic, tracked.member, key)
            if entry is not None:
                self._record(self._state.remove(tracked.topic, tracked.member, key))
                tracked.keys.discard(key)
                dropped.append(entry)
        return dropped

    def _record(self, part: Part) -> None:
        if self._replication is not None:
            self._replication.record(part)

    def _entries(self, topic: str) -> Sequence[Entry]:
        with self._lock:
            return [entry for group in self._state.roster.on(topic).values() for entry in group.values()]

    # The end of a socket, and the grace after it.

    def _end(self, socket: Socket[Any]) -> None:
        desk = self._desks.here()
        with self._lock:
            tracked = self._tracked.pop(socket, None)
            if tracked is None:
                return
            if desk is not None and self._settings.grace_seconds and behind(socket).end_reason not in INTENDED:
                self._missed[tracked.member] = tracked
                desk.keep(tracked, self._settings.grace_seconds, self._give_up)
                return
            self._remove(tracked, tuple(tracked.keys))
        self._publish(socket)

    def _take_back(self, topic: str, key: str) -> Sequence[Entry]:
        """Drop the entries of those who are missed under a key that has come back."""
        group = self._state.roster.on(topic).get(key, NOTHING) if self._missed else NOTHING
        here = self._state.me
        missed = [self._missed[member] for replica, member in group if replica == here and member in self._missed]
        return [entry for tracked in missed for entry in self._drop(tracked, (key,))]

    def _give_up(self, tracked: Tracked) -> None:
        """Let somebody leave who has not come back."""
        with self._lock:
            self._missed.pop(tracked.member, None)
            self._remove(tracked, tuple(tracked.keys))
        self._publish(tracked.socket)

    # Telling.

    def _publish(self, socket: Socket[Any]) -> None:
        desk = self._desks.here()
        if desk is None:  # a thread that runs no event loop: the socket's has one
            socket.send_info(Errand(functools.partial(self._publish_there, socket)))
        else:
            self._publisher.publish_soon(desk)

    async def _publish_there(self, socket: Socket[Any]) -> None:
        self._attach(socket)
        self._publish(socket)

    def _attach(self, socket: Socket[Any]) -> None:
        broker = behind(socket).broker
        if broker.is_shared and self._desks.here() is not None:
            self.attach(broker)

    def _topic(self, topic: str | Socket[Any]) -> str:
        if isinstance(topic, str):
            return topic
        check_type(topic, Socket, "Presence: who is on a topic? (", "give its name, or the socket of a handler")
        self._attach(topic)
        return topic.topic

    async def _push_state(self, socket: Socket[Any]) -> None:
        """Look up who is there, and once more who has come meanwhile; push who is there then."""
        self._attach(socket)
        if not self._publisher.looks_up:
            with self._lock:
                state = self._state.roster.json(socket.topic)
            behind(socket).push_state(state)
            return
        extras: dict[str, Any] = {}
        for _ in range(2):
            unknown = [entry for entry in self._entries(socket.topic) if entry.key not in extras]
            found = await self._publisher.look_up_safely(socket.topic, unknown)
            extras.update({entry.key: found.get(entry.key, {}) for entry in unknown})
        behind(socket).push_state(grouped(self._entries(socket.topic), extras))
