"""Diffs: the changes of a topic, collected, and sent to its clients and observers in order.

The changes of one turn of the event loop are one diff for each topic; on a topic with many subscribers, the changes
during the pause after the last diff. The order within a diff does not matter: clients add its joins before they remove
its leaves, by ref.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import anyio
import msgspec
from msgspec import Raw, Struct, field

from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.presence.crdt.delta import Entry
from starlette_channels.presence.scheduler import Scheduler
from starlette_channels.pubsub.broker import Broker
from starlette_channels.runtime.callables import name_of
from starlette_channels.runtime.cancellation import is_crash
from starlette_channels.runtime.tasks import within
from starlette_channels.wire.event_names import PRESENCE_DIFF
from starlette_channels.wire.messages import encode_payload, shown

logger: logging.Logger = logging.getLogger("starlette_channels.presence")

Presences: TypeAlias = dict[str, dict[str, Any]]
"""The presences on a topic, by key: `{"ann": {"metas": [{"phx_ref": "...", "status": "online"}]}}`, with the fields
that `fetch` has added beside `metas`.
"""

Extras: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The result of `fetch`: for some or all keys, the fields to add beside `metas`, as in `{"ann": {"name": "Ann"}}`."""

Fetch: TypeAlias = Callable[[str, Presences], Coroutine[Any, Any, Extras]]
"""Looks up fields for several keys at once: an async function of the topic and its presences."""


class PresenceDiff(Struct, frozen=True):
    """The presences that joined a topic, and those that left, as clients get them in `presence_diff`::

        PresenceDiff(
            joins={"ann": {"metas": [{"phx_ref": "b2", "phx_ref_prev": "a1", "status": "away"}]}},
            leaves={"ann": {"metas": [{"phx_ref": "a1", "status": "online"}]}},
        )

    This example is an update: the new meta is in `joins`, the old meta in `leaves`. A key has one meta for each socket
    that tracks it; a diff contains only the changed metas.
    """

    joins: Presences
    """The presences that joined: for each key `{"metas": [...]}`, and the fields of `fetch`."""

    leaves: Presences
    """The presences that left, in the same shape."""


Observer: TypeAlias = Callable[[str, PresenceDiff], Coroutine[Any, Any, None]]
"""Async function of the topic and the diff, called with each diff after the clients have it."""


MANY = 100
"""The number of subscribers from which a topic pauses after each diff."""

REST_SECONDS = 50e-6
"""The pause after a diff, for each subscriber.

A write to one subscriber takes about a fifth of that. So diffs take at most a fifth of the CPU time, for any number of
subscribers and any rate of changes. Changes during the pause go into the next diff.
"""

MOST_CHANGES = 2_000
"""The number of changes at which a diff is full. A diff of that size takes 3 to 8 milliseconds to build."""

PUBLISH_SECONDS = 0.003
"""Time limit of one turn of the event loop: diffs of further topics wait for the next turn."""


class DiffBatch(Struct):
    """The changes of one topic for the next diff, and the broker of its subscribers."""

    broker: Broker
    topic: str
    joins: list[Entry] = field(default_factory=list[Entry])
    leaves: list[Entry] = field(default_factory=list[Entry])


def grouped(entries: Iterable[Entry], extras: Extras) -> Presences:
    """Return entries in the shape that clients get: metas by key, still encoded, and the extra fields of the key."""
    presences: Presences = {}
    for entry in entries:
        presence = presences.get(entry.key)
        if presence is None:
            presence = presences[entry.key] = {**extras.get(entry.key, {}), "metas": []}
        presence["metas"].append(Raw(entry.meta.json))
    return presences


def decoded(presences: Presences) -> Presences:
    """Return a copy with the metas decoded."""
    return {
        key: {**presence, "metas": [msgspec.json.decode(meta) for meta in presence["metas"]]}
        for key, presence in presences.items()
    }


class DiffPublisher:
    """Publishes the diffs of all topics. Each topic is published by one task or callback at a time."""

    def __init__(self, fetch: Fetch | None, fetch_seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        self._error_log = ErrorLog(self.counts)
        self.observers: list[Observer] = []
        self.published: int = 0
        """How many diffs have been sent to clients."""

        self.fetch: Fetch | None = fetch
        self._fetch_seconds = fetch_seconds
        self._lock = threading.Lock()
        self._batches: dict[str, deque[DiffBatch]] = {}
        self._claimed: set[str] = set()

    def put(self, broker: Broker, topic: str, joins: Iterable[Entry], leaves: Iterable[Entry]) -> None:
        """Add the next changes of a topic."""
        with self._lock:
            batches = self._batches.get(topic)
            if batches is None:
                batches = self._batches[topic] = deque((DiffBatch(broker, topic),))
            batch = batches[-1]
            if len(batch.joins) + len(batch.leaves) >= MOST_CHANGES:
                batches.append(batch := DiffBatch(broker, topic))
            batch.joins += joins
            batch.leaves += leaves

    def publish_soon(self, scheduler: Scheduler[Any]) -> None:
        """Publish the collected changes in the next turn of the event loop."""
        if self._batches:
            scheduler.call_once(partial(self._publish, scheduler))

    def _publish(self, scheduler: Scheduler[Any]) -> None:
        """Publish a diff of each topic; topics with slow work (`fetch`, observers, many subscribers) get a task."""
        end = scheduler.now() + PUBLISH_SECONDS
        for topic in tuple(self._batches):
            if topic in self._claimed:
                continue  # the task that has claimed it publishes these changes too
            batches = self._batches.get(topic)
            if batches is None:
                continue  # it was published in another thread
            subscribers = batches[0].broker.subscribers(topic)
            if self.fetch is not None or self.observers or subscribers >= MANY or len(batches) > 1:
                scheduler.run(self._work, topic)
            elif scheduler.now() >= end:
                self.publish_soon(scheduler)
                return
            else:
                for batch in self._claim(topic):
                    self._broadcast(batch, subscribers, {}, {})

    async def _work(self, topic: str) -> None:
        """Publish the diffs of one topic until none is left; changes made meanwhile go into the next diff."""
        for batch in self._claim(topic):
            subscribers = batch.broker.subscribers(topic)
            if self.observers or subscribers:
                await self._tell(batch, subscribers)
                await anyio.sleep(subscribers * REST_SECONDS if subscribers >= MANY else 0)

    def _claim(self, topic: str) -> Iterator[DiffBatch]:
        """Claim a topic unless it is claimed already, and yield its batches until none is left."""
        with self._lock:
            if topic in self._claimed:
                return
            self._claimed.add(topic)
        try:
            while True:
                with self._lock:
                    batches = self._batches.get(topic)
                    if batches is None:
                        self._claimed.discard(topic)  # under the lock, before `put` can add more
                        return
                    batch = batches.popleft()
                    if not batches:
                        del self._batches[topic]
                yield batch
        except GeneratorExit:
            self._claimed.discard(topic)
            raise

    async def _tell(self, batch: DiffBatch, subscribers: int) -> None:
        """Send the diff to the clients, without extra fields if `fetch` fails; then call the observers."""
        topic = batch.topic
        joined: Extras = {}
        left: Extras = {}
        try:
            if self.fetch is not None:
                joined = await self.look_up_safely(topic, batch.joins)
                left = await self.look_up_safely(topic, batch.leaves)
        finally:
            self._broadcast(batch, subscribers, joined, left)
        if self.observers:
            diff = PresenceDiff(decoded(grouped(batch.joins, joined)), decoded(grouped(batch.leaves, left)))
            for observer in self.observers:
                await self._tell_observer(observer, topic, diff)

    def _broadcast(self, batch: DiffBatch, subscribers: int, joined: Extras, left: Extras) -> None:
        """Send the diff to the clients of this process. Every other process sends its own."""
        if not subscribers:
            return
        self.published += 1
        diff = {"joins": grouped(batch.joins, joined), "leaves": grouped(batch.leaves, left)}
        try:
            batch.broker.broadcast_here(batch.topic, PRESENCE_DIFF, diff)
        except Exception as error:  # noqa: BLE001 - the next diff may be sent
            text = "A diff of %s cannot be sent"
            self._error_log.note("presence_diff_failed", logger, text, shown(batch.topic), cause=error)

    async def _tell_observer(self, observer: Observer, topic: str, diff: PresenceDiff) -> None:
        try:
            await observer(topic, diff)
        except BaseException as error:
            if not is_crash(error):
                raise
            text = "%s raised for a diff of %s"
            self._error_log.note("observer_failed", logger, text, name_of(observer), shown(topic), cause=error)

    # Looking up fields.

    async def look_up(self, topic: str, entries: Iterable[Entry]) -> Extras:
        """Return the fields of `fetch` for the keys of some entries. Raises its errors, and `TimeoutError`."""
        presences = grouped(entries, {})
        if self.fetch is None or not presences:
            return {}
        extras = await within(self._fetch_seconds, self.counts, self.fetch(topic, decoded(presences)))
        encode_payload(extras)  # raises now for fields that cannot be sent
        return {key: dict(extra) for key, extra in extras.items() if key in presences}

    async def look_up_safely(self, topic: str, entries: Iterable[Entry]) -> Extras:
        """Return the fields of `fetch` for the keys of some entries; count and log a failure, and return no fields."""
        try:
            return await self.look_up(topic, entries)
        except BaseException as error:
            if not is_crash(error):
                raise
            text = "fetch, %s, failed for %s"
            self._error_log.note("fetch_failed", logger, text, name_of(self.fetch), shown(topic), cause=error)
            return {}
