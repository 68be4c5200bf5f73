"""Fan-out: who is subscribed to a topic, and handing them a broadcast that is encoded once per wire.

Source: Phoenix's fastlane (`channel/server.ex`, `dispatch/3`) and `Phoenix.PubSub`.
"""

import contextvars
import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import anyio.lowlevel

from starlette_channels.exceptions import SerializerError
from starlette_channels.messages import Body, Frame, encode_payload
from starlette_channels.serializers import Serializer

logger: logging.Logger = logging.getLogger("starlette_channels.broker")


class Publication:
    """One broadcast on its way: the payload encoded once, and its frame once for each serializer."""

    __slots__ = ("_frames", "body", "event", "sender", "topic")

    def __init__(self, topic: str, event: str, body: Body, sender: object = None) -> None:
        self.topic: str = topic
        self.event: str = event
        self.body: Body = body
        self.sender: object = sender
        self._frames: dict[Serializer, Frame | SerializerError] = {}

    def frame(self, serializer: Serializer) -> Frame:
        """Return the frame for a wire; raises `SerializerError` if that wire cannot express the payload."""
        frame = self._frames.get(serializer)
        if frame is None:
            try:
                frame = serializer.broadcast(self.topic, self.event, self.body)
            except SerializerError as error:
                frame = error
            self._frames[serializer] = frame
        if isinstance(frame, SerializerError):
            raise frame
        return frame


class Subscriber(Protocol):
    """What can be subscribed to a topic; it is known by its identity."""

    def deliver(self, publication: Publication) -> None:
        """Take a broadcast, without waiting. `SerializerError` says that this subscriber's wire cannot express it."""
        ...


class Hub:
    """The subscribers of one event loop. All methods but `run` belong to that loop's thread."""

    __slots__ = ("_context", "_counts", "_members", "_native", "_snapshots", "thread")

    def __init__(self, native: Any, counts: Counter[str]) -> None:
        self.thread: int = threading.get_ident()
        self._native = native
        self._context = contextvars.copy_context()  # what other threads ask for runs in it, not in theirs
        self._counts = counts
        self._members: dict[str, dict[Subscriber, None]] = {}
        self._snapshots: dict[str, tuple[Subscriber, ...]] = {}

    @property
    def topics(self) -> int:
        """How many topics have a subscriber."""
        return len(self._members)

    def serves(self, native: Any) -> bool:
        """Whether this is the hub of the given event loop."""
        return self._native is native

    def run(self, function: Callable[..., Any], *args: Any) -> bool:
        """Call a function in this hub's thread: now, or soon if that is not the caller's; false if it is over."""
        if threading.get_ident() == self.thread:
            function(*args)
            return True
        try:
            if hasattr(self._native, "call_soon_threadsafe"):
                self._native.call_soon_threadsafe(function, *args, context=self._context)
            else:
                self._native.run_sync_soon(function, *args)
        except RuntimeError:
            return False
        return True

    def subscribe(self, topic: str, subscriber: Subscriber) -> None:
        """Let a subscriber have the broadcasts of a topic, from the next one on."""
        self._members.setdefault(topic, {})[subscriber] = None
        self._snapshots.pop(topic, None)

    def unsubscribe(self, topic: str, subscriber: Subscriber) -> None:
        """End a subscription; one that does not exist is no error."""
        members = self._members.get(topic)
        if members is not None:
            members.pop(subscriber, None)
            self._snapshots.pop(topic, None)
            if not members:
                del self._members[topic]

    def dispatch(self, publication: Publication) -> None:
        """Hand a broadcast to those who are subscribed now, its sender left out.

        A subscriber that fails does not concern the others. Raises `SerializerError` if all wires refused it: then
        the payload itself is wrong, and the broadcaster should know.
        """
        delivered = skipped = 0
        refusal: SerializerError | None = None
        for subscriber in self._snapshot(publication.topic):
            if subscriber is publication.sender:
                continue
            try:
                subscriber.deliver(publication)
                delivered += 1
            except SerializerError as error:
                skipped, refusal = skipped + 1, error
            except Exception:
                self._counts["delivery_failed"] += 1
                logger.exception("Delivering %r on %r failed for a subscriber", publication.event, publication.topic)
        if refusal is not None:
            self._counts["inexpressible_broadcast"] += skipped
            logger.error("%r on %r was not sent to %d: %s", publication.event, publication.topic, skipped, refusal)
            if not delivered:
                raise refusal

    def _snapshot(self, topic: str) -> tuple[Subscriber, ...]:
        snapshot = self._snapshots.get(topic)
        if snapshot is None:
            if topic not in self._members:
                return ()
            snapshot = self._snapshots[topic] = tuple(self._members[topic])
        return snapshot


class Subscription:
    """One more subscription of somebody who may have others; it is left out of what its owner sends."""

    __slots__ = ("_hear", "_owner")

    def __init__(self, owner: object, hear: Callable[[Publication], None]) -> None:
        self._owner = owner
        self._hear = hear

    def deliver(self, publication: Publication) -> None:
        """Pass a broadcast on."""
        if publication.sender is not self._owner:
            self._hear(publication)


class Subscriptions:
    """The further subscriptions of one owner; two to the same topic deliver twice."""

    __slots__ = ("_entries", "_hear", "_hub", "_owner")

    def __init__(self, hub: Hub, owner: object, hear: Callable[[Publication], None]) -> None:
        self._hub = hub
        self._owner = owner
        self._hear = hear
        self._entries: list[tuple[str, Subscription]] = []

    def add(self, topic: str) -> None:
        """Subscribe to a topic, once more if need be."""
        subscription = Subscription(self._owner, self._hear)
        self._entries.append((topic, subscription))
        self._hub.subscribe(topic, subscription)

    def remove(self, topic: str) -> None:
        """End all subscriptions to a topic."""
        for name, subscription in self._entries:
            if name == topic:
                self._hub.unsubscribe(name, subscription)
        self._entries = [entry for entry in self._entries if entry[0] != topic]

    def clear(self) -> None:
        """End all subscriptions."""
        for topic in {topic for topic, _ in self._entries}:
            self.remove(topic)


class Broker:
    """Broadcasts to all subscribers of a topic in this process, from any thread.

    `memory://` is the only engine so far: it serves one process. Delivery is at most once, in order per broadcaster.
    """

    def __init__(self, url: str = "memory://") -> None:
        if url != "memory://":
            raise ValueError(f"broker {url!r}: only 'memory://' exists so far; run one process, without --workers")
        self.counts: Counter[str] = Counter()
        self._hubs: dict[int, Hub] = {}  # never changed in place: other threads may be going through it
        self._lock = threading.Lock()

    @property
    def topics(self) -> int:
        """How many topics have a subscriber (counted once per event loop)."""
        return sum(hub.topics for hub in self._hubs.values())

    def hub(self) -> Hub:
        """Return the hub of the running event loop."""
        native = anyio.lowlevel.current_token().native_token
        thread = threading.get_ident()
        with self._lock:
            hub = self._hubs.get(thread)
            if hub is None or not hub.serves(native):
                hub = Hub(native, self.counts)
                self._hubs = {**self._hubs, thread: hub}
            return hub

    def broadcast(self, topic: str, event: str, payload: object, *, sender: object = None) -> None:
        """Send an event to all subscribers of a topic; `sender` is a subscriber to leave out.

        Returns without waiting. Raises `TypeError` if the payload cannot be encoded, and `SerializerError` if no
        subscriber's wire can express it.
        """
        publication = Publication(topic, event, encode_payload(payload), sender)
        here = threading.get_ident()
        for thread, hub in self._hubs.items():
            if thread == here:
                hub.dispatch(publication)
            else:
                self._hand_over(hub, publication)

    def _hand_over(self, hub: Hub, publication: Publication) -> None:
        fresh = Publication(publication.topic, publication.event, publication.body, publication.sender)
        if not hub.run(self._dispatch_for_another, hub, fresh):  # its clients are gone with their event loop
            with self._lock:
                self._hubs = {thread: other for thread, other in self._hubs.items() if other is not hub}

    def _dispatch_for_another(self, hub: Hub, publication: Publication) -> None:
        try:
            hub.dispatch(publication)
        except SerializerError:  # counted and logged there; the broadcaster has gone on
            return
