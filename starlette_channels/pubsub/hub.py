"""Fan-out on one event loop: who is subscribed to a topic, and handing them a broadcast that is encoded once per wire.

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
"""For how long a `disconnect` means those, too, who came before it and are let in after it."""

Writer: TypeAlias = Any
"""What an outlet knows one of its clients by."""


class Publication:
    """One broadcast on its way: the payload encoded once, and its frame once for each serializer."""

    __slots__ = ("_frames", "body", "event", "sender", "topic")

    def __init__(self, topic: str, event: str, body: Body, sender: object = None) -> None:
        self.topic: str = topic
        self.event: str = event
        self.body: Body = body
        self.sender: object = sender
        self._frames: dict[Serializer, OutgoingFrame | SerializerError] = {}

    def frame(self, serializer: Serializer) -> Frame:
        """Return the frame for a wire; raises `SerializerError` if that wire cannot express the payload."""
        return as_frame(self.shared_frame(serializer))

    def shared_frame(self, serializer: Serializer) -> OutgoingFrame:
        """Do what `frame` does for an outlet: text is UTF-8 already, if that is what the serializer makes of it."""
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
    """Is told which topics have a subscriber: there, broadcasts of other processes are wanted."""

    def add(self, topic: str) -> None:
        """Take note of a topic's first subscriber."""
        ...

    def remove(self, topic: str) -> None:
        """Take note that a topic has none any more."""
        ...

    def is_in_force(self, topic: str) -> bool:
        """Whether broadcasts of other processes on a topic that has a subscriber are delivered."""
        ...


class Subscriber(Protocol):
    """What can be subscribed to a topic; it is known by its identity."""

    def deliver(self, publication: Publication) -> None:
        """Take a broadcast, without waiting. `SerializerError` says that this subscriber's wire cannot express it."""
        ...

    def miss(self, gap: Gap) -> None:
        """Take the news that broadcasts are lost, without waiting."""
        ...


class Addressee(Protocol):
    """A client of an identity."""

    def handle_command(self, command: Command, said_at: float) -> None:
        """Do what the server said at that time, without waiting, unless it came later."""
        ...

    def resync(self, said_at: float) -> None:
        """Take the news that commands of that time or before may be lost, without waiting."""
        ...


class Outlet(Protocol):
    """Where frames for many clients go at once."""

    def spread(self, writers: Sequence[Writer], frame: OutgoingFrame) -> None:
        """Send a frame to many clients; what is sent to one of them in whatever way keeps its order."""
        ...


ShortCut: TypeAlias = tuple[Outlet, Writer]
"""An outlet, and what it knows one of its clients by."""


class Route(NamedTuple):
    """A short cut to clients that nobody has to be asked for: those who share one get a broadcast all at once."""

    outlet: Outlet
    serializer: Serializer
    intercepts: frozenset[str]
    """The events that take the long way nevertheless, through `Subscriber.deliver`."""


class Group:
    """The subscribers of a topic that share a route, or have none."""

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
        """Take a subscriber in, with what the route's outlet knows it by."""
        self._writers[subscriber] = writer
        self._ready = None

    def remove(self, subscriber: Subscriber) -> bool:
        """Let a subscriber go, and return whether it was here."""
        if subscriber not in self._writers:
            return False
        del self._writers[subscriber]
        self._ready = None
        return True

    def spread(self, publication: Publication) -> bool:
        """Send a broadcast over the route at once, as nearly always; false if it takes more than that."""
        route = self.route
        if route is None or publication.event in route.intercepts:
            return False
        try:
            frame = publication.shared_frame(route.serializer)
        except Exception:  # noqa: BLE001 - found once more, and reported, by `Hub.dispatch`
            return False
        writers = self._ready_writers(publication.sender)
        if writers:
            route.outlet.spread(writers, frame)
        return True

    def deliveries(self, publication: Publication) -> list[tuple[int, Callable[[Publication], None]]]:
        """Return what hands a broadcast over, and to how many: over the route in one step, else one by one."""
        route, sender = self.route, publication.sender
        if route is None or publication.event in route.intercepts:
            return [(1, subscriber.deliver) for subscriber in self._writers if subscriber is not sender]
        writers = self._ready_writers(sender)

        def spread(publication: Publication) -> None:
            route.outlet.spread(writers, publication.shared_frame(route.serializer))

        return [(len(writers), spread)] if writers else []

    def _ready_writers(self, sender: object) -> tuple[Writer, ...]:
        """Return what stands for all but the sender; made anew only when somebody has come or gone."""
        if sender is not None and sender in self._writers:
            return tuple(writer for subscriber, writer in self._writers.items() if subscriber is not sender)
        if self._ready is None:
            self._ready = tuple(self._writers.values())
        return self._ready


def _nothing() -> None:
    """Find out whether there is somebody to do it."""


class Hub:
    """The subscribers and the identities of one event loop.

    All methods but `run`, `run_later` and `subscribers` belong to that loop's thread.
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
        self._context = contextvars.copy_context()  # what other threads ask for runs in it, not in theirs
        self.error_log: ErrorLog = error_log
        self._interest = interest
        self._groups: dict[str, list[Group]] = {}
        self._addressees: dict[str, set[Addressee]] = {}
        self._recent: dict[str, tuple[Command, float]] = {}
        self._remembered: deque[tuple[float, str, tuple[Command, float]]] = deque()
        self.confirmations: Confirmations | None = None
        """Where to wait for a subscription to be in force, if there is an engine."""
        if interest is not None:
            self.confirmations = Confirmations(interest.is_in_force, self.run_later, error_log)

    @property
    def topics(self) -> int:
        """How many topics have a subscriber."""
        return len(self._groups)

    @property
    def is_running(self) -> bool:
        """Whether its event loop is not over."""
        return self.run_later(_nothing)

    def subscribers(self, topic: str) -> int:
        """Return how many are subscribed to a topic; it may be asked from any thread."""
        return sum(map(len, self._groups.get(topic, ())))

    def serves(self, native: Any) -> bool:
        """Whether this is the hub of the given event loop."""
        return self._native is native

    def run(self, function: Callable[..., Any], *args: Any) -> bool:
        """Call a function in this hub's thread: now, or soon if that is not the caller's; false if it is over."""
        if threading.get_ident() == self.thread:
            function(*args)
            return True
        return self.run_later(function, *args)

    def run_later(self, function: Callable[..., Any], *args: Any) -> bool:
        """Call a function in this hub's thread, soon; false if it is over."""
        try:
            if hasattr(self._native, "call_soon_threadsafe"):
                self._native.call_soon_threadsafe(function, *args, context=self._context)
            else:
                self._native.run_sync_soon(function, *args)
        except RuntimeError:
            return False
        return True

    def subscribe(self, topic: str, subscriber: Subscriber, route: Route | None = None, writer: Writer = None) -> None:
        """Let a subscriber have the broadcasts of a topic, from the next one on, over a route if it has one.

        One that is subscribed already changes its route. Costs the same whatever the number of subscribers.
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
        self._groups[topic] = groups  # a new list: a fan-out may be going through the former one

    def hears(self, topic: str) -> bool:
        """Whether a subscriber who comes now gets what other processes broadcast on a topic: there is no engine, or the
        topic has a subscriber here already, and its subscription at the engine is in force.
        """
        return self._interest is None or (topic in self._groups and self._interest.is_in_force(topic))

    def unsubscribe(self, topic: str, subscriber: Subscriber) -> None:
        """End a subscription; one that does not exist is no error."""
        groups = self._groups.get(topic, [])
        left = [group for group in groups if not group.remove(subscriber) or len(group)]
        if len(left) < len(groups):
            self._groups[topic] = left
            if not left:
                del self._groups[topic]
                if self._interest is not None:
                    self._interest.remove(topic)

    def register(self, socket_id: str, addressee: Addressee) -> None:
        """Register a connection for the commands to its `socket_id`, those included that came while it connected."""
        self._addressees.setdefault(socket_id, set()).add(addressee)
        recent = self._recent.get(socket_id)
        if recent is not None:
            self.run_later(addressee.handle_command, *recent)

    def unregister(self, socket_id: str, addressee: Addressee) -> None:
        """Remove a connection from those of its `socket_id`."""
        addressees = self._addressees.get(socket_id, set())
        addressees.discard(addressee)
        if not addressees and socket_id in self._addressees:
            del self._addressees[socket_id]

    def command(self, socket_id: str, command: Command, said_at: float) -> None:
        """Command the clients of an identity that were there at that time, by the clock `uptime`."""
        if isinstance(command, Disconnect):
            self._remember(socket_id, command, said_at)
        for addressee in tuple(self._addressees.get(socket_id, ())):
            addressee.handle_command(command, said_at)

    def _remember(self, socket_id: str, command: Disconnect, said_at: float) -> None:
        """Keep a command for the clients that are being let in: perhaps `connect` has seen what held before it."""
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
        """Tell all clients with an identity that commands of that time or before may be lost."""
        for addressees in tuple(self._addressees.values()):
            for addressee in tuple(addressees):
                addressee.resync(said_at)

    def abandon(self) -> None:
        """Want nothing any more: the event loop is over, and its subscribers did not say goodbye."""
        wanted = tuple(self._groups)
        self._groups, self._addressees = {}, {}
        if self._interest is not None:
            for topic in wanted:
                self._interest.remove(topic)

    def dispatch(self, publication: Publication) -> None:
        """Hand a broadcast to those who are subscribed now, its sender left out.

        A subscriber that fails does not concern the others. Raises `SerializerError` if all wires refused it: then
        the payload itself is wrong, and the broadcaster should know.
        """
        groups = self._groups.get(publication.topic, ())
        if len(groups) == 1 and groups[0].spread(publication):
            return
        delivered = refused = 0
        refusal: SerializerError | None = None
        # All before any: a delivery may make a subscriber change its group, and nobody may be found twice.
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
        """Tell the subscribers of a topic that something is lost."""
        for subscriber in [one for group in self._groups.get(gap.topic, ()) for one in group]:
            try:
                subscriber.miss(gap)
            except Exception as error:  # noqa: BLE001 - it does not concern the others
                text = "Telling of a gap on %s failed"
                self.error_log.note("delivery_failed", logger, text, shown(gap.topic), cause=error)

    def _attempt(
        self, deliver: Callable[[Publication], None], publication: Publication, number: int
    ) -> SerializerError | None:
        try:
            deliver(publication)
        except SerializerError as error:
            return error
        except Exception as error:  # noqa: BLE001 - it does not concern the others
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
