"""Hub: fan-out to the subscribers in one event loop; a broadcast is encoded once for each serializer.

Source: Phoenix's fastlane (`channel/server.ex`, `dispatch/3`).
"""

import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from starlette_channels.exceptions import SerializerError
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.commands import Command, Disconnect
from starlette_channels.pubsub.confirmations import Confirmations
from starlette_channels.runtime.uptime import uptime
from starlette_channels.wire.messages import Body, Frame, Gap, OutgoingFrame, as_frame, shown
from starlette_channels.wire.serializers import Serializer, shared_frame

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

REMEMBER_SECONDS = 60.0
"""Time for which a `disconnect` is kept for clients that are connecting, in seconds: they may register after it."""

Writer: TypeAlias = Any
"""A client of an outlet, opaque to the hub."""


class Publication:
    """One broadcast: the encoded payload, and one frame for each serializer."""

    __slots__ = ("_frames", "body", "event", "sender", "topic")

    def __init__(self, topic: str, event: str, body: Body, sender: object = None) -> None:
        self.topic: str = topic
        self.event: str = event
        self.body: Body = body
        self.sender: object = sender
        self._frames: dict[Serializer, OutgoingFrame | SerializerError] = {}

    def frame(self, serializer: Serializer) -> Frame:
        """Return the frame for a serializer. Raises `SerializerError` if it cannot express the payload."""
        return as_frame(self.shared_frame(serializer))

    def shared_frame(self, serializer: Serializer) -> OutgoingFrame:
        """Return the frame for an outlet: as `frame`, but text may be encoded in UTF-8 already."""
        frame = self._frames.get(serializer)
        if frame is None:
            try:
                frame = shared_frame(serializer, self.topic, self.event, self.body)
            except SerializerError as error:
                frame = error
            self._frames[serializer] = frame
        if isinstance(frame, SerializerError):
            raise frame
        return frame


class Interest(Protocol):
    """The topics with subscribers, whose broadcasts are wanted from other processes."""

    def add(self, topic: str) -> None:
        """Add a topic: it has its first subscriber."""
        ...

    def remove(self, topic: str) -> None:
        """Remove a topic: its last subscriber has gone."""
        ...

    def is_in_force(self, topic: str) -> bool:
        """Whether the engine delivers the broadcasts of other processes on a topic with subscribers."""
        ...


class Subscriber(Protocol):
    """A subscriber of topics, used as a key of dictionaries."""

    def deliver(self, publication: Publication) -> None:
        """Take a broadcast; must not block. Raises `SerializerError` if its serializer cannot express the payload."""
        ...

    def miss(self, gap: Gap) -> None:
        """Take a gap: broadcasts are lost; must not block."""
        ...


class Addressee(Protocol):
    """A connection with a `socket_id`, which takes commands."""

    def handle_command(self, command: Command, said_at: float) -> None:
        """Execute a command of the time `said_at`, unless the client connected later; must not block."""
        ...

    def resync(self, said_at: float) -> None:
        """Handle a possible loss of commands up to the time `said_at`; must not block."""
        ...


class Outlet(Protocol):
    """Sends a frame to many clients in one call."""

    def spread(self, writers: Sequence[Writer], frame: OutgoingFrame) -> None:
        """Send a frame to many clients; it keeps its place in the order of all frames to each of them."""
        ...


ShortCut: TypeAlias = tuple[Outlet, Writer]
"""An outlet, and one of its clients."""


class Route(NamedTuple):
    """Fan-out in one call: subscribers with the same route get a broadcast through its outlet, not by `deliver`."""

    outlet: Outlet
    serializer: Serializer
    intercepts: frozenset[str]
    """Exceptions: events that are delivered by `Subscriber.deliver`."""


class Group:
    """The subscribers of a topic with the same route, or without one."""

    __slots__ = ("_ready", "_writers", "route")

    def __init__(self, route: Route | None) -> None:
        self.route: Route | None = route
        self._writers: dict[Subscriber, Writer] = {}
        self._ready: tuple[Writer, ...] | None = None

    def __len__(self) -> int:
        return len(self._writers)

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(tuple(self._writers))

    def add(self, subscriber: Subscriber, writer: Writer) -> None:
        """Add a subscriber, with its writer if there is a route."""
        self._writers[subscriber] = writer
        self._ready = None

    def remove(self, subscriber: Subscriber) -> bool:
        """Remove a subscriber; return whether it was in the group."""
        if subscriber not in self._writers:
            return False
        del self._writers[subscriber]
        self._ready = None
        return True

    def spread(self, publication: Publication) -> bool:
        """Send a broadcast over the route, the usual case; false if `deliveries` is needed."""
        route = self.route
        if route is None or publication.event in route.intercepts:
            return False
        try:
            frame = publication.shared_frame(route.serializer)
        except Exception:  # noqa: BLE001 - `Hub.dispatch` encodes again, and reports the error
            return False
        writers = self._ready_writers(publication.sender)
        if writers:
            route.outlet.spread(writers, frame)
        return True

    def deliveries(self, publication: Publication) -> list[tuple[int, Callable[[Publication], None]]]:
        """Return delivering functions with their numbers of subscribers: one for a route, else one for each."""
        route, sender = self.route, publication.sender
        if route is None or publication.event in route.intercepts:
            return [(1, subscriber.deliver) for subscriber in self._writers if subscriber is not sender]
        writers = self._ready_writers(sender)

        def spread(publication: Publication) -> None:
            route.outlet.spread(writers, publication.shared_frame(route.serializer))

        return [(len(writers), spread)] if writers else []

    def _ready_writers(self, sender: object) -> tuple[Writer, ...]:
        """Return the writers of all subscribers but the sender; cached until the group changes."""
        if sender is not None and sender in self._writers:
            return tuple(writer for subscriber, writer in self._writers.items() if subscriber is not sender)
        if self._ready is None:
            self._ready = tuple(self._writers.values())
        return self._ready


def _nothing() -> None:
    """Do nothing: a probe whether the event loop runs."""


class Hub:
    """The subscribers of topics, and the connections by `socket_id`, of one event loop.

    All methods but `run`, `run_later` and `subscribers` must be called in that loop's thread.
    """

    __slots__ = (
        "_addressees",
        "_context",
        "_groups",
        "_interest",
        "_native",
        "_recent",
        "_remembered",
        "confirmations",
        "error_log",
        "thread",
    )

    def __init__(self, native: Any, error_log: ErrorLog, interest: Interest | None = None) -> None:
        self.thread: int = threading.get_ident()
        self._native = native
        self._context = contextvars.copy_context()  # for functions that other threads pass to `run_later`
        self.error_log: ErrorLog = error_log
        self._interest = interest
        self._groups: dict[str, list[Group]] = {}
        self._addressees: dict[str, set[Addressee]] = {}
        self._recent: dict[str, tuple[Command, float]] = {}
        self._remembered: deque[tuple[float, str, tuple[Command, float]]] = deque()
        self.confirmations: Confirmations | None = None
        """Waits for confirmed subscriptions; `None` without an engine."""
        if interest is not None:
            self.confirmations = Confirmations(interest.is_in_force, self.run_later, error_log)

    @property
    def topics(self) -> int:
        """Number of topics with subscribers."""
        return len(self._groups)

    @property
    def is_running(self) -> bool:
        """Whether the event loop is not closed."""
        return self.run_later(_nothing)

    def subscribers(self, topic: str) -> int:
        """Return the number of subscribers of a topic. Thread-safe."""
        return sum(map(len, self._groups.get(topic, ())))

    def serves(self, native: Any) -> bool:
        """Whether this is the hub of the given event loop."""
        return self._native is native

    def run(self, function: Callable[..., Any], *args: Any) -> bool:
        """Call a function in this hub's thread: now, or soon from another thread; false if the event loop is closed."""
        if threading.get_ident() == self.thread:
            function(*args)
            return True
        return self.run_later(function, *args)

    def run_later(self, function: Callable[..., Any], *args: Any) -> bool:
        """Call a function in this hub's thread, soon; false if the event loop is closed. Thread-safe."""
        try:
            if hasattr(self._native, "call_soon_threadsafe"):
                self._native.call_soon_threadsafe(function, *args, context=self._context)
            else:
                self._native.run_sync_soon(function, *args)
        except RuntimeError:
            return False
        return True

    def subscribe(self, topic: str, subscriber: Subscriber, route: Route | None = None, writer: Writer = None) -> None:
        """Subscribe to the broadcasts of a topic, from the next one on, over a route if there is one.

        A second call for a subscriber changes its route. The cost does not grow with the number of subscribers.
        """
        former = self._groups.get(topic)
        if former is None and self._interest is not None:
            self._interest.add(topic)
        groups = [group for group in former or () if not group.remove(subscriber) or len(group)]
        group = next((group for group in groups if group.route == route), None)
        if group is None:
            group = Group(route)
            groups.append(group)
        group.add(subscriber, writer)
        self._groups[topic] = groups  # a new list: a fan-out may be iterating over the former one

    def hears(self, topic: str) -> bool:
        """Whether a new subscriber would get the broadcasts of other processes at once.

        That is without an engine, or if the topic has a subscriber here already, and its subscription is in force.
        """
        return self._interest is None or (topic in self._groups and self._interest.is_in_force(topic))

    def unsubscribe(self, topic: str, subscriber: Subscriber) -> None:
        """Unsubscribe; does nothing without a subscription."""
        groups = self._groups.get(topic, [])
        left = [group for group in groups if not group.remove(subscriber) or len(group)]
        if len(left) < len(groups):
            self._groups[topic] = left
            if not left:
                del self._groups[topic]
                if self._interest is not None:
                    self._interest.remove(topic)

    def register(self, socket_id: str, addressee: Addressee) -> None:
        """Register a connection for the commands to its `socket_id`; it also gets a recent `disconnect`."""
        self._addressees.setdefault(socket_id, set()).add(addressee)
        recent = self._recent.get(socket_id)
        if recent is not None:
            self.run_later(addressee.handle_command, *recent)

    def unregister(self, socket_id: str, addressee: Addressee) -> None:
        """Unregister a connection."""
        addressees = self._addressees.get(socket_id, set())
        addressees.discard(addressee)
        if not addressees and socket_id in self._addressees:
            del self._addressees[socket_id]

    def command(self, socket_id: str, command: Command, said_at: float) -> None:
        """Pass a command to the connections with a `socket_id`; `said_at` is its time by the clock `uptime`."""
        if isinstance(command, Disconnect):
            self._remember(socket_id, command, said_at)
        for addressee in tuple(self._addressees.get(socket_id, ())):
            addressee.handle_command(command, said_at)

    def _remember(self, socket_id: str, command: Disconnect, said_at: float) -> None:
        """Keep a command for clients that are connecting: their `connect` may have used data from before it."""
        now = uptime()
        former = self._recent.get(socket_id)
        if former is None or former[1] <= said_at:
            recent = self._recent[socket_id] = command, said_at
            self._remembered.append((now, socket_id, recent))
        while self._remembered and now - self._remembered[0][0] > REMEMBER_SECONDS:
            _, other, recent = self._remembered.popleft()
            if self._recent.get(other) is recent:
                del self._recent[other]

    def resync(self, said_at: float) -> None:
        """Tell all connections with a `socket_id` that commands up to the time `said_at` may be lost."""
        for addressees in tuple(self._addressees.values()):
            for addressee in tuple(addressees):
                addressee.resync(said_at)

    def abandon(self) -> None:
        """Remove all subscribers and connections, because the event loop is closed and they did not unsubscribe."""
        wanted = tuple(self._groups)
        self._groups, self._addressees = {}, {}
        if self._interest is not None:
            for topic in wanted:
                self._interest.remove(topic)

    def dispatch(self, publication: Publication) -> None:
        """Deliver a broadcast to the current subscribers of its topic, without its sender.

        An error of one subscriber does not affect the others. Raises `SerializerError` if no serializer can express
        the payload: the error of the broadcaster.
        """
        groups = self._groups.get(publication.topic, ())
        if len(groups) == 1 and groups[0].spread(publication):
            return
        delivered = refused = 0
        refusal: SerializerError | None = None
        # Collected before the first delivery: it may move a subscriber to another group, which must not get it twice.
        for number, deliver in [delivery for group in groups for delivery in group.deliveries(publication)]:
            error = self._attempt(deliver, publication, number)
            if error is None:
                delivered += number
            else:
                refused, refusal = refused + number, error
        if refusal is not None:
            self._note(
                "inexpressible_broadcast",
                "%s on %s was not sent to %d: %s",
                publication,
                refused,
                refusal,
                number=refused,
            )
            if not delivered:
                raise refusal

    def miss(self, gap: Gap) -> None:
        """Pass a gap to the subscribers of its topic."""
        for subscriber in [one for group in self._groups.get(gap.topic, ()) for one in group]:
            try:
                subscriber.miss(gap)
            except Exception as error:  # noqa: BLE001 - it must not affect the other subscribers
                text = "Telling of a gap on %s failed"
                self.error_log.note("delivery_failed", logger, text, shown(gap.topic), cause=error)

    def _attempt(
        self, deliver: Callable[[Publication], None], publication: Publication, number: int
    ) -> SerializerError | None:
        try:
            deliver(publication)
        except SerializerError as error:
            return error
        except Exception as error:  # noqa: BLE001 - it must not affect the other subscribers
            text = "Delivering %s on %s failed for %d"
            self._note("delivery_failed", text, publication, number, cause=error, number=number)
        return None

    def _note(
        self,
        code: str,
        text: str,
        publication: Publication,
        *args: object,
        cause: Exception | None = None,
        number: int,
    ) -> None:
        where = shown(publication.event), shown(publication.topic)
        self.error_log.note(code, logger, text, *where, *args, cause=cause, number=number, level=logging.ERROR)
