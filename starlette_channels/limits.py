"""What clients may use."""

import math
import sys

from msgspec import Struct, structs

from starlette_channels.arguments import check_fields
from starlette_channels.rates import UNLIMITED, Rate


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds on what clients may use; each has a stable code, a counter and a log line for when it is hit.

    `None` switches a limit off. What is per identity is counted over all connections of one `socket_id` in this
    process, whatever their transport; connections without one have none.
    """

    channels: int | None = 100
    """Joined topics per connection; one more join is answered `too many channels joined`."""

    message_bytes: int | None = 1_000_000
    """Size of one incoming message; a longer one closes the connection with 1009.

    All others wait while a message is decoded: a millisecond or two for each megabyte of text, and tens of
    milliseconds for a megabyte of brackets. The server's own limit may be lower. Phoenix has 10,000,000.
    """

    header_bytes: int | None = 4_096
    """Size of the refs, the topic and the event of one incoming message together, in UTF-8; refs that are not strings
    count as they are sent back. A message with more is malformed, and closes the connection with 1011.

    Refs go back with every reply, and a joined topic keeps its own, so they must not be as large as a payload. Phoenix
    has no such limit.
    """

    outbox_bytes: int | None = 1_048_576
    """What may wait for a client that reads too slowly; beyond it the connection is closed with 1008."""

    backlog: int | None = 1_000
    """Messages of one client that may wait for its handlers, of `message_bytes` in all; at that many the connection is
    not read from until half are done."""

    mailbox: int | None = 10_000
    """Letters of any kind that may wait for one channel; beyond it the channel ends with `phx_error`."""

    message_rate: Rate | None = Rate(250, burst=2_500)
    """Messages of one connection, joins excepted; one more is answered `rate limited`, or dropped if it has no ref.

    A message counts as one more for each 16,384 bytes, a join as well. Heartbeats and `phx_leave` count, but are
    always answered. On the fast lane, pings, pongs and fragments count as messages, too.
    """

    identity_message_rate: Rate | None = Rate(1_000, burst=10_000)
    """The same for all connections of one identity together."""

    join_rate: Rate | None = Rate(10, burst=200)
    """Joins of one connection; one more is answered `rate limited`."""

    identity_join_rate: Rate | None = Rate(40, burst=1_000)
    """The same for all connections of one identity together."""

    refusal_rate: Rate | None = Rate(100, burst=1_000)
    """Messages of one connection beyond the rates above that are answered; one more closes it with 1008.

    Large ones count as many, as above."""

    refusal_seconds: float | None = None
    """How long the answer to a refused join is held back, whoever refuses it, because clients try again at once.

    What waits costs the memory of the answer. Keep it below 10 seconds, for which phoenix.js waits.
    """

    connections: int | None = 100_000
    """Connections in all, of this process; one more is answered with HTTP 503."""

    identity_connections: int | None = 100
    """Connections of one identity; one more is answered with HTTP 429."""

    connect_seconds: float | None = 10.0
    """Time that `connect` may take; then it is cancelled, and the client is answered with HTTP 503."""

    handler_seconds: float | None = None
    """Time that a handler may take; then it is cancelled, and its channel ends with `phx_error`.

    A join that takes longer is refused. Events are looked at every eighth of it, so they may take so much longer.
    """

    idle_seconds: float | None = 60.0
    """Silence of a client after which the connection is closed with 1002. Clients send a heartbeat every 30 seconds."""

    shutdown_seconds: float | None = 5.0
    """Time that handlers have to finish, and then `terminate`, once their connection has ended."""

    def __post_init__(self) -> None:
        """Refuse what is no limit."""
        check_fields(self)


class Bounds(Limits, frozen=True, kw_only=True):
    """The limits as the code has them: those that are off are out of reach."""

    channels: int = sys.maxsize
    message_bytes: int = sys.maxsize
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
        """Return the bounds that limits are."""
        return cls(**{name: value for name, value in structs.asdict(limits).items() if value is not None})
