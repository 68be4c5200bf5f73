"""Broker: broadcasts from any thread to the subscribers of a topic, in all event loops and all processes.

Source: `Phoenix.PubSub`.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec

from starlette_channels.arguments import check_type
from starlette_channels.exceptions import SerializerError
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.commands import Command, Disconnect, check_socket_id, decode_command, encode_command
from starlette_channels.pubsub.engines.url import MEMORY, read_address
from starlette_channels.pubsub.hub import Hub, Publication
from starlette_channels.pubsub.relay.channel_names import from_bytes, is_topic, line_channel, name_of, topic_channel
from starlette_channels.pubsub.relay.command_log import HeardCommand, LostCommands
from starlette_channels.pubsub.relay.envelope import Envelope, Kind, payload_kind, payload_of
from starlette_channels.pubsub.relay.receiver import Arrival
from starlette_channels.pubsub.relay.relay import Relay
from starlette_channels.pubsub.relay.subscriptions import TopicInterests
from starlette_channels.runtime.uptime import uptime
from starlette_channels.wire.event_names import ORDINARY_EVENTS, check_event, is_ordinary
from starlette_channels.wire.messages import Body, Gap, encode_payload, shown
from starlette_channels.wire.serializers import refuse_inexpressible

logger: logging.Logger = logging.getLogger("starlette_channels.broker")


BATCH = 256
"""Number of messages from other processes that are dispatched in one turn of the event loop."""

OVERHEAD = 500
"""Approximate memory of a message beside its payload, in bytes."""


def _never_mind(_: Gap) -> None:
    """Ignore a gap."""


class Subscription:
    """A further subscription of an owner; it does not get the broadcasts that its owner sends."""

    __slots__ = ("_hear", "_miss", "_owner")

    def __init__(self, owner: object, hear: Callable[[Publication], None], miss: Callable[[Gap], None]) -> None:
        self._owner = owner
        self._hear = hear
        self._miss = miss

    def deliver(self, publication: Publication) -> None:
        """Pass a broadcast to the owner."""
        if publication.sender is not self._owner:
            self._hear(publication)

    def miss(self, gap: Gap) -> None:
        """Pass a gap to the owner."""
        self._miss(gap)


class Subscriptions:
    """The further subscriptions of one owner; two subscriptions to one topic deliver twice."""

    __slots__ = ("_entries", "_hear", "_hub", "_miss", "_owner")

    def __init__(
        self,
        hub: Hub,
        owner: object,
        hear: Callable[[Publication], None],
        miss: Callable[[Gap], None] = _never_mind,
    ) -> None:
        self._hub = hub
        self._owner = owner
        self._hear = hear
        self._miss = miss
        self._entries: list[tuple[str, Subscription]] = []

    @property
    def topics(self) -> set[str]:
        """The subscribed topics."""
        return {topic for topic, _ in self._entries}

    def add(self, topic: str) -> None:
        """Add a subscription to a topic."""
        subscription = Subscription(self._owner, self._hear, self._miss)
        self._entries.append((topic, subscription))
        self._hub.subscribe(topic, subscription)

    def remove(self, topic: str) -> None:
        """Remove all subscriptions to a topic."""
        for name, subscription in self._entries:
            if name == topic:
                self._hub.unsubscribe(name, subscription)
        self._entries = [entry for entry in self._entries if entry[0] != topic]

    def clear(self) -> None:
        """Remove all subscriptions."""
        for topic in self.topics:
            self.remove(topic)


class Exchange:
    """One end of a line: a channel between processes for internal messages, as of Presence; see `Broker.exchange`."""

    def __init__(
        self,
        name: str,
        hub: Hub,
        relay: Relay | None,
        receive: Callable[[bytes], None],
        stopping: Callable[[], None] | None,
    ) -> None:
        self.hub: Hub = hub
        self.channel: str = line_channel(name)
        self._relay = relay
        self._receive = receive
        self._stopping = stopping
        self.closed: bool = False
        if relay is not None:
            relay.interests.add(self.channel)

    @property
    def is_in_force(self) -> bool:
        """Whether the subscription to this line is confirmed."""
        return self._relay is None or self._relay.interests.is_in_force(self.channel)

    def send(self, data: bytes, to: str | None = None) -> None:
        """Send bytes to the ends of this line, or of the line `to`, in all other processes. Thread-safe, never blocks.

        Delivery is in order and at most once; losses are counted as for broadcasts. This process does not receive it.
        Does nothing with `memory://`, and after `close`.
        """
        if self._relay is not None and not self.closed:
            self._relay.publish(Kind.LINE, self.channel if to is None else line_channel(to), "", data)

    def close(self) -> None:
        """Unsubscribe from the line. Thread-safe; may be called twice."""
        if not self.closed:
            self.closed = True
            if self._relay is not None:
                self._relay.interests.remove(self.channel)

    def take(self, data: bytes) -> None:
        """Pass received bytes to the receiver."""
        if not self.closed:
            self._call(self._receive, data)

    def stop(self) -> None:
        """Tell the owner that the broker is about to close; messages that it sends now are still published."""
        if self._stopping is not None and not self.closed:
            self._call(self._stopping)

    def _call(self, function: Callable[..., None], *args: bytes) -> None:
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - an error of the owner does not close the line
            text = "%r failed for what has come on %r"
            self.hub.error_log.note("delivery_failed", logger, text, function, self.channel, cause=error)


class Inbox:
    """Arrivals from other processes on their way from the relay's thread into one event loop.

    One wake-up of the loop serves all waiting arrivals; after `BATCH` messages its other callbacks have a turn.
    """

    __slots__ = ("_dispatch", "_is_woken", "_put", "_taken", "_waiting", "hub")

    def __init__(self, hub: Hub, dispatch: Callable[[Hub, Arrival], None]) -> None:
        self.hub: Hub = hub
        self._dispatch = dispatch
        self._waiting: deque[tuple[Arrival, int]] = deque()
        self._is_woken = False
        self._put = self._taken = 0  # each is changed by one thread only

    @property
    def waiting_bytes(self) -> int:
        """Approximate memory of the waiting arrivals, in bytes."""
        return self._put - self._taken

    def put(self, arrivals: Sequence[tuple[Arrival, int]]) -> bool:
        """Append arrivals, each with its size in bytes; false if the event loop is closed."""
        self._put += sum([size for _, size in arrivals])
        self._waiting.extend(arrivals)
        return self._is_woken or self._wake()

    def _wake(self) -> bool:
        self._is_woken = True
        return self.hub.run_later(self._work)

    def _work(self) -> None:
        self._is_woken = False
        left = BATCH
        while left > 0 and self._waiting:
            arrival, size = self._waiting.popleft()
            self._taken += size
            left -= 1 + len(arrival.following) if type(arrival) is Envelope else 1
            self._dispatch(self.hub, arrival)
        if self._waiting and not self._is_woken:
            self._wake()


def _size(arrival: Arrival) -> int:
    """Return the approximate memory of an arrival, in bytes."""
    if type(arrival) is not Envelope:
        return OVERHEAD
    size = OVERHEAD + len(arrival.body)
    for message in arrival.following:
        size += OVERHEAD + len(message.body)
    return size


class Broker:
    """Broadcasts to all subscribers of a topic, from any thread, over the engine in the address.

    `memory://` serves one process and needs no engine. `redis://host:6379/0` connects the subscribers in all processes.
    Delivery is at most once, in order per broadcaster; losses between processes are detected, see `Gap`. The engine is
    connected at the first use, in a thread of its own. Options are in the query, as in `redis://host?prefix=chat`.

    Raises `ValueError` for an invalid address, and `ImportError` with the fix if the library of the engine is missing.
    """

    def __init__(self, url: str = MEMORY) -> None:
        address = read_address(url)
        self.counts: Counter[str] = Counter()
        self._error_log = ErrorLog(self.counts)
        # Both are replaced, never changed: other threads may be iterating over them.
        self._inboxes: dict[int, Inbox] = {}
        self._exchanges: tuple[Exchange, ...] = ()
        self._lock = threading.Lock()
        self._relay: Relay | None = None
        self._interest: TopicInterests | None = None
        self._max_waiting = 0
        if address is not None:
            self._max_waiting = address.options.queue_bytes
            self._relay = Relay(address, self.counts, self._enqueue, self._has_room, self._confirm)
            self._interest = TopicInterests(self._relay.interests)

    @property
    def topics(self) -> int:
        """Number of topics with a subscriber, counted for each event loop."""
        return sum(inbox.hub.topics for inbox in self._inboxes.values())

    @property
    def is_shared(self) -> bool:
        """Whether other processes can be reached; false with `memory://`."""
        return self._relay is not None

    @property
    def is_connected(self) -> bool:
        """Whether the engine is connected, and all subscriptions of the time of the connect are confirmed."""
        return self._relay is None or self._relay.interests.is_complete

    @property
    def node(self) -> str:
        """Id of this process among the others; a new one after `close`."""
        return "local" if self._relay is None else self._relay.id

    def hub(self) -> Hub:
        """Return the hub of the running event loop."""
        native = anyio.lowlevel.current_token().native_token
        thread = threading.get_ident()
        with self._lock:
            former = self._inboxes.get(thread)
            if former is not None and former.hub.serves(native):
                if self._relay is not None:
                    self._relay.start()  # the broker may have been closed
                return former.hub
            hub = Hub(native, self._error_log, self._interest)
            self._inboxes = {**self._inboxes, thread: Inbox(hub, self._arrive)}
        if former is not None:
            former.hub.abandon()
        if self._relay is not None:
            self._relay.keep_commands()
        return hub

    def broadcast(self, topic: str, event: str, payload: object, *, sender: object = None) -> None:
        """Broadcast an event to all subscribers of a topic, without blocking; `sender` is a subscriber to skip.

        As in Phoenix, the event "disconnect" closes the connections whose `socket_id` is the topic. Raises `TypeError`
        if the payload cannot be encoded; `SerializerError` if no serializer of the subscribers in this process can
        express it (without subscribers here, if version 2 of the protocol cannot); and `ValueError` for a reserved
        event: `presence_state`, `presence_diff`, and names that begin with `phx_` or `chan_reply_`.
        """
        self.publish(topic, event, payload, sender=sender)
        if event == "disconnect":
            self.command(topic, Disconnect())

    def publish(self, topic: str, event: str, payload: object, *, sender: object = None) -> None:
        """Broadcast an event whose name clients may choose: unlike in `broadcast`, "disconnect" is not a command."""
        if event not in ORDINARY_EVENTS:
            check_event(event)
        body = encode_payload(payload)
        if type(payload) is not dict or type(topic) is not str or not (topic.isascii() and event.isascii()):
            check_type(topic, str, "broadcast(topic=", "it takes the name of a topic")
            refuse_inexpressible(topic, event, body, heard=self.subscribers(topic) > 0)
        if self._relay is not None:
            self._relay.publish(payload_kind(body), topic_channel(topic), event, body)
        self._spread(topic, event, body, sender)

    def broadcast_here(self, topic: str, event: str, payload: object) -> None:
        """Broadcast an event in this process only; reserved events are allowed."""
        self._spread(topic, event, encode_payload(payload))

    def subscribers(self, topic: str) -> int:
        """Return the number of subscribers of a topic in this process."""
        return sum(inbox.hub.subscribers(topic) for inbox in self._inboxes.values())

    def _spread(self, topic: str, event: str, body: Body, sender: object = None) -> None:
        here = threading.get_ident()
        for thread, inbox in self._inboxes.items():
            publication = Publication(topic, event, body, sender)  # each event loop has its own: it keeps frames
            if thread == here:
                inbox.hub.dispatch(publication)
            else:
                self._dispatch_later(inbox, publication)

    def command(self, socket_id: str, command: Command) -> None:
        """Send a command to the clients with a `socket_id` that are connected now, in all processes, without blocking.

        Processes that cannot be reached get it later, up to an hour; see `CommandLog`.
        """
        check_socket_id(socket_id, command)
        now = uptime()
        if self._relay is not None:
            self._relay.command(socket_id, command.slot, encode_command(command))
        for inbox in self._inboxes.values():
            if not inbox.hub.run(inbox.hub.command, socket_id, command, now):
                self._remove_inbox(inbox)

    def has_exchange(self, name: str) -> bool:
        """Whether an end of a line is open in a running event loop of this process."""
        channel = line_channel(name)
        return any(
            exchange.channel == channel and not exchange.closed and exchange.hub.is_running
            for exchange in self._exchanges
        )

    def exchange(
        self, name: str, receive: Callable[[bytes], None], *, stopping: Callable[[], None] | None = None
    ) -> Exchange:
        """Open a line to all other processes, for internal messages of the library; call it in an event loop.

        `receive` is called in this thread with bytes from the line of this name; `stopping` when the broker is about to
        close: messages that it sends are still published. Neither may block; exceptions of both are logged.
        """
        exchange = Exchange(name, self.hub(), self._relay, receive, stopping)
        with self._lock:
            self._exchanges = (*(one for one in self._exchanges if not one.closed), exchange)
        return exchange

    async def close(self) -> None:
        """Publish the queued broadcasts and disconnect from the engine; takes 3 seconds at most.

        A closed broker connects again when it is used. `Channels.lifespan` calls this; otherwise it happens at the exit
        of the interpreter.
        """
        if self._relay is not None:
            for exchange in self._exchanges:
                if exchange.hub.is_running:
                    exchange.hub.run(exchange.stop)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._relay.close)

    # Between the event loops of this process.

    def _dispatch_later(self, inbox: Inbox, publication: Publication) -> None:
        if not inbox.hub.run_later(self._dispatch_for_another, inbox.hub, publication):
            self._remove_inbox(inbox)

    def _remove_inbox(self, inbox: Inbox) -> None:
        """Remove the hub of an event loop that is closed."""
        with self._lock:
            self._inboxes = {thread: other for thread, other in self._inboxes.items() if other is not inbox}
        inbox.hub.abandon()

    def _dispatch_for_another(self, hub: Hub, publication: Publication) -> None:
        try:
            hub.dispatch(publication)
        except SerializerError:  # counted and logged by the hub
            return

    # From other processes.

    def _has_room(self) -> bool:
        return all(inbox.waiting_bytes < self._max_waiting for inbox in self._inboxes.values())

    def _enqueue(self, arrivals: Sequence[Arrival]) -> None:
        sized = [(arrival, _size(arrival)) for arrival in arrivals]
        for inbox in self._inboxes.values():
            if not inbox.put(sized):
                self._remove_inbox(inbox)

    def _confirm(self, channels: Collection[str]) -> None:
        """Pass confirmations to the event loops that have waiters, waking each once."""
        topics: list[str] | None = None
        for inbox in self._inboxes.values():
            confirmations = inbox.hub.confirmations
            if confirmations is not None and confirmations.is_wanted:
                topics = topics or [name_of(channel) for channel in channels if is_topic(channel)]
                if topics and not inbox.hub.run_later(confirmations.confirm, topics):
                    self._remove_inbox(inbox)

    def _arrive(self, hub: Hub, arrival: Arrival) -> None:
        """Dispatch an arrival from another process; runs in the hub's event loop."""
        if type(arrival) is Envelope:
            if arrival.kind is Kind.LINE:
                self._arrive_on_line(hub, arrival)
            else:
                self._arrive_on_topic(hub, arrival)
        elif isinstance(arrival, Gap):
            hub.miss(arrival)
        elif isinstance(arrival, HeardCommand):
            self._obey(hub, arrival)
        elif isinstance(arrival, LostCommands):
            hub.resync(arrival.said_at)

    def _arrive_on_topic(self, hub: Hub, envelope: Envelope) -> None:
        topic = name_of(envelope.channel)
        for message in (envelope, *envelope.following):
            event = message.event
            if event in ORDINARY_EVENTS or is_ordinary(event):
                self._dispatch_for_another(hub, Publication(topic, event, payload_of(message)))
            else:
                text = "Another process broadcast the reserved event %s: no client gets it"
                self._error_log.note("reserved_event", logger, text, shown(event))

    def _arrive_on_line(self, hub: Hub, envelope: Envelope) -> None:
        for message in (envelope, *envelope.following):
            for exchange in self._exchanges:
                if exchange.hub is hub and exchange.channel == envelope.channel:
                    exchange.take(message.body)

    def _obey(self, hub: Hub, arrival: HeardCommand) -> None:
        try:
            command = decode_command(arrival.body)
        except (msgspec.MsgspecError, ValueError) as error:
            text = "Another process commands what this one does not know: %s"
            self._error_log.note("unknown_command", logger, text, error, level=logging.ERROR)
        else:
            hub.command(from_bytes(arrival.socket_id), command, arrival.said_at)
