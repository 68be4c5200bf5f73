"""Broadcasts from anywhere in the process to the subscribers of a topic, on whatever event loop they are.

Source: `Phoenix.PubSub`.
"""

import threading
from collections import Counter
from collections.abc import Callable

import anyio.lowlevel

from starlette_channels.exceptions import SerializerError
from starlette_channels.hub import Hub, Publication
from starlette_channels.messages import encode_payload


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
