"""Limits on what clients may use, and what happens when a client reaches one."""

import math
import sys

from msgspec import Struct, structs

from starlette_channels.arguments import check_fields
from starlette_channels.rates import UNLIMITED, Rate


class Limits(Struct, frozen=True, kw_only=True):
    """Limits on what clients may use: `Channels(limits=Limits(message_bytes=100_000))`.

    `None` switches a limit off. Rates are token buckets: see `Rate`. Sizes are in bytes, times in seconds. Each limit
    has a stable code, a counter in `statistics` and a log line. Limits of an identity apply to all connections of one
    `socket_id` in this process together, on all transports; connections without a `socket_id` have none.

    Raises:
        TypeError: A limit has the wrong type.
        ValueError: A limit is negative.
    """

    channels: int | None = 100
    """Topics that a connection may have joined. Another join is answered `too many channels joined`."""

    message_bytes: int | None = 1_000_000
    """Size of an incoming message in bytes. A longer one closes the connection with code 1009.

    Decoding a message blocks the event loop: one or two milliseconds for a megabyte of text, up to 15 for a megabyte of
    numbers. The ASGI server may have a lower limit of its own. Phoenix has 10,000,000.
    """

    message_nodes: int | None = 50_000
    """Lists, objects and members of objects in an incoming message. More close the connection with code 1009.

    Counted are `[`, `{` and `:`, also within strings. Decoding as many blocks the event loop for up to 20 milliseconds.
    A binary frame of version 2 has none. What a serializer of yours decodes from a binary frame it must limit itself.
    Phoenix has no such limit.
    """

    header_bytes: int | None = 4_096
    """Size of refs, topic and event of an incoming message together, in bytes of UTF-8.

    A message with more is malformed and closes the connection with code 1011. Refs that are not strings count as JSON.
    Refs are sent back with every reply and kept for each joined topic, so they may not be as large as a payload.
    Phoenix has no such limit.
    """

    outbox_bytes: int | None = 1_048_576
    """Unsent bytes that may wait for a client that reads slowly. More close the connection with code 1008."""

    backlog: int | None = 1_000
    """Messages of one connection that may wait for its handlers, with at most `message_bytes` in all.

    At that many, the connection is not read until half of them are handled.
    """

    mailbox: int | None = 10_000
    """Events, intercepted broadcasts and `send_info` messages that may wait for one channel of one connection.

    With more, the channel ends with `phx_error`.
    """

    message_rate: Rate | None = Rate(250, burst=2_500)
    """Rate of messages of one connection, without joins. One more is answered `rate limited`, or dropped without a ref.

    A message counts as one, and as one more for every 16,384 bytes; so does a join. Heartbeats and `phx_leave` count
    but are always answered. On the fast lane, pings, pongs and fragments count as messages.
    """

    identity_message_rate: Rate | None = Rate(1_000, burst=10_000)
    """Rate of messages of all connections of one identity together, counted in the same way."""

    join_rate: Rate | None = Rate(10, burst=200)
    """Rate of joins of one connection. One more is answered `rate limited`."""

    identity_join_rate: Rate | None = Rate(40, burst=1_000)
    """Rate of joins of all connections of one identity together."""

    refusal_rate: Rate | None = Rate(100, burst=1_000)
    """Rate of answers `rate limited` to one connection. One more message closes it with code 1008.

    Large messages count as several, as in `message_rate`.
    """

    refusal_seconds: float | None = None
    """Delay of the answer to a refused join, because clients try again at once. `None`: no delay.

    Each delayed answer is kept in memory. Stay below 10 seconds, the join timeout of phoenix.js.
    """

    connections: int | None = 100_000
    """Connections of this process. One more is refused with HTTP 503."""

    identity_connections: int | None = 100
    """Connections of one identity in this process. One more is refused with HTTP 429."""

    connect_seconds: float | None = 10.0
    """Time limit of `connect`. Then it is cancelled, and the client is refused with HTTP 503."""

    handler_seconds: float | None = None
    """Time limit of a handler. Then it is cancelled, and its channel ends with `phx_error`; a join is refused.

    Event handlers are checked sixteen times within that time, and may take an eighth longer.
    """

    idle_seconds: float | None = 60.0
    """Time without any frame of a client, after which its connection is closed with code 1002.

    Clients send a heartbeat every 30 seconds.
    """

    shutdown_seconds: float | None = 5.0
    """Time limit of running handlers, and then of `terminate`, after their connection has ended."""

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_fields(self)


class Bounds(Limits, frozen=True, kw_only=True):
    """`Limits` for internal use: a limit that is off has an unreachable value instead of `None`."""

    channels: int = sys.maxsize
    message_bytes: int = sys.maxsize
    message_nodes: int = sys.maxsize
    header_bytes: int = sys.maxsize
    outbox_bytes: int = sys.maxsize
    backlog: int = sys.maxsize
    mailbox: int = sys.maxsize
    message_rate: Rate = UNLIMITED
    identity_message_rate: Rate = UNLIMITED
    join_rate: Rate = UNLIMITED
    identity_join_rate: Rate = UNLIMITED
    refusal_rate: Rate = UNLIMITED
    refusal_seconds: float = 0.0
    connections: int = sys.maxsize
    identity_connections: int = sys.maxsize
    connect_seconds: float = math.inf
    handler_seconds: float = math.inf
    idle_seconds: float = math.inf
    shutdown_seconds: float = math.inf

    @classmethod
    def of(cls, limits: Limits) -> "Bounds":
        """Replace `None` in limits with unreachable values."""
        return cls(**{name: value for name, value in structs.asdict(limits).items() if value is not None})
