"""What clients and observers are told of the changes: in the order in which they happened, and batched.

Changes of one turn of the event loop are one diff for each topic; on a topic of many, those of a moment. Clients add
the joins of a diff before they take away its leaves, by ref; so it does not matter in which order these came.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import anyio
import msgspec
from msgspec import Raw, Struct, field

from starlette_channels.observability.error_log import Mishaps
from starlette_channels.presence.crdt.delta import Entry
from starlette_channels.presence.scheduler import Desk
from starlette_channels.pubsub.broker import Broker
from starlette_channels.runtime.callables import name_of
from starlette_channels.runtime.cancellation import is_crash
from starlette_channels.runtime.tasks import within
from starlette_channels.wire.event_names import PRESENCE_DIFF
from starlette_channels.wire.messages import encode_payload, shown

logger: logging.Logger = logging.getLogger("starlette_channels.presence")

Presences: TypeAlias = dict[str, dict[str, Any]]
"""Who is there, by key: `{"ann": {"metas": [{"phx_ref": ...}, ...]}}`, and what `fetch` has put beside the metas."""

Extras: TypeAlias = Mapping[str, Mapping[str, Any]]
"""What `fetch` returns: for each key, or for some, the fields to put beside its metas."""

Fetch: TypeAlias = Callable[[str, Presences], Coroutine[Any, Any, Extras]]
"""Looks up more about those who are there, all at once: it is given the topic, and the presences by key."""


class PresenceDiff(Struct, frozen=True):
    """Who came to a topic, and who went; an update is both."""

    joins: Presences
    """Who came, by key."""

    leaves: Presences
    """Who went, by key."""


Observer: TypeAlias = Callable[[str, PresenceDiff], Coroutine[Any, Any, None]]
"""Is told of each diff, and of its topic, after the clients."""


MANY = 100
REST_SECONDS = 50e-6
"""How long a topic of at least so many rests after a diff, for each of its subscribers.

To write to one takes about a fifth of that. So diffs take no more than a fifth of the processor, however many there are
and however often they come and go; what changes meanwhile is the next diff.
"""


class Batch(Struct):
    """The changes of one topic that nobody has been told of, and the broker whose subscribers want to know."""

    broker: Broker
    topic: str
    joins: list[Entry] = field(default_factory=list[Entry])
    leaves: list[Entry] = field(default_factory=list[Entry])


def _rest(batch: Batch) -> float:
    """How many seconds the topic of a batch rests after it."""
    subscribers = batch.broker.subscribers(batch.topic)
    return subscribers * REST_SECONDS if subscribers >= MANY else 0.0


def grouped(entries: Iterable[Entry], extras: Extras) -> Presences:
    """Return entries as they go to clients: their metas by key, with what there is beside them."""
    presences: Presences = {}
    for entry in entries:
        presence = presences.get(entry.key)
        if presence is None:
            presence = presences[entry.key] = {**extras.get(entry.key, {}), "metas": []}
        presence["metas"].append(Raw(entry.meta.json))
    return presences


def decoded(presences: Presences) -> Presences:
    """Return a copy as Python has it, the metas as dicts."""
    return {
        key: {**presence, "metas": [msgspec.json.decode(meta) for meta in presence["metas"]]}
        for key, presence in presences.items()
    }


class Publisher:
    """Tells the changes, topic by topic."""

    def __init__(self, fetch: Fetch | None, fetch_seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        self._mishaps = Mishaps(self.counts)
        self.observers: list[Observer] = []
        self._fetch = fetch
        self._fetch_seconds = fetch_seconds
        self._lock = threading.Lock()
        self._batches: dict[str, Batch] = {}
        self._in_work: set[str] = set()

    @property
    def looks_up(self) -> bool:
        """Whether there may be more about those who are there than their metas."""
        return self._fetch is not None

    def put(self, broker: Broker, topic: str, joins: Iterable[Entry], leaves: Iterable[Entry]) -> None:
        """Take changes of a topic, which happened after those that were put before."""
        with self._lock:
            batch = self._batches.get(topic)
            if batch is None:
                batch = self._batches[topic] = Batch(broker, topic)
            batch.joins += joins
            batch.leaves += leaves

    def publish_soon(self, desk: Desk[Any]) -> None:
        """Tell what there is to tell, when the event loop has done what it is about."""
        if self._fetch is None and not self.observers:
            desk.call_once(partial(self._publish_at_once, desk))
        else:
            desk.call_once(partial(self._publish_in_turn, desk))

    def _publish_at_once(self, desk: Desk[Any]) -> None:
        for topic, first in tuple(self._batches.items()):
            if _rest(first):
                desk.run(self._work, topic)
                continue
            with self._claimed(topic) as batches:
                for batch in batches:
                    self._broadcast(batch, {}, {})

    def _publish_in_turn(self, desk: Desk[Any]) -> None:
        for topic in tuple(self._batches):
            desk.run(self._work, topic)

    async def _work(self, topic: str) -> None:
        """Tell the changes of one topic until there are none; what happens meanwhile is the next diff."""
        with self._claimed(topic) as batches:
            for batch in batches:
                if not self.observers and not batch.broker.subscribers(topic):
                    continue
                diff = await self._tell_clients(batch)
                for observer in self.observers:
                    await self._tell(observer, topic, diff)
                await anyio.sleep(_rest(batch))

    @contextmanager
    def _claimed(self, topic: str) -> Generator[Iterator[Batch]]:
        """Have a topic for oneself, and its batches until there are none; none at all if somebody else has it."""
        with self._lock:
            mine = topic not in self._in_work
            self._in_work.add(topic)
        try:
            yield iter(partial(self._take, topic), None) if mine else iter(())
        except BaseException:
            self._in_work.discard(topic)
            raise

    def _take(self, topic: str) -> Batch | None:
        """Return the next batch of a claimed topic, or give the topic back."""
        with self._lock:
            batch = self._batches.pop(topic, None)
            if batch is None:
                self._in_work.discard(topic)
            return batch

    async def _tell_clients(self, batch: Batch) -> PresenceDiff:
        """Broadcast a diff, in any case; what cannot be looked up is left out."""
        topic = batch.topic
        joined: Extras = {}
        left: Extras = {}
        try:
            joined = await self.look_up_safely(topic, batch.joins)
            left = await self.look_up_safely(topic, batch.leaves)
        finally:
            self._broadcast(batch, joined, left)
        return PresenceDiff(decoded(grouped(batch.joins, joined)), decoded(grouped(batch.leaves, left)))

    def _broadcast(self, batch: Batch, joined: Extras, left: Extras) -> None:
        """Tell the clients of this process, as every other process tells its own."""
        if not batch.broker.subscribers(batch.topic):
            return
        diff = {"joins": grouped(batch.joins, joined), "leaves": grouped(batch.leaves, left)}
        try:
            batch.broker.broadcast_here(batch.topic, PRESENCE_DIFF, diff)
        except Exception as error:  # noqa: BLE001 - the next diff may be sent
            text = "A diff of %s cannot be sent"
            self._mishaps.note("presence_diff_failed", logger, text, shown(batch.topic), cause=error)

    async def _tell(self, observer: Observer, topic: str, diff: PresenceDiff) -> None:
        try:
            await observer(topic, diff)
        except BaseException as error:
            if not is_crash(error):
                raise
            text = "%s raised for a diff of %s"
            self._mishaps.note("observer_failed", logger, text, name_of(observer), shown(topic), cause=error)

    # Looking up more about those who are there.

    async def look_up(self, topic: str, entries: Iterable[Entry]) -> Extras:
        """Return what `fetch` says of some entries; raises what it raises, and `TimeoutError`."""
        presences = grouped(entries, {})
        if self._fetch is None or not presences:
            return {}
        extras = await within(self._fetch_seconds, self.counts, self._fetch(topic, decoded(presences)))
        encode_payload(extras)  # what cannot be sent should be known before it is
        return {key: dict(extra) for key, extra in extras.items() if key in presences}

    async def look_up_safely(self, topic: str, entries: Iterable[Entry]) -> Extras:
        """Return what `fetch` says of some entries, or nothing if it fails, which is counted and logged."""
        try:
            return await self.look_up(topic, entries)
        except BaseException as error:
            if not is_crash(error):
                raise
            text = "fetch, %s, failed for %s"
            self._mishaps.note("fetch_failed", logger, text, name_of(self._fetch), shown(topic), cause=error)
            return {}
