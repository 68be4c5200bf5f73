"""What one connection may use."""

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds on what one connection may use; each has a stable code, a counter and a log line for when it is hit."""

    channels: int = 100
    """Joined topics per connection; one more join is answered `too many channels joined`."""

    message_bytes: int = 10_000_000
    """Size of one incoming message; a longer one closes the connection with 1009.

    The server's own limit may be lower.
    """

    outbox_bytes: int = 1_048_576
    """What may wait for a client that reads too slowly; beyond it the connection is closed with 1008."""

    backlog: int = 1_000
    """Messages of one client that may wait for its handlers, of `message_bytes` in all; at that many the connection is
    not read from until half are done."""

    mailbox: int = 10_000
    """Letters of any kind that may wait for one channel; beyond it the channel ends with `phx_error`."""

    idle_seconds: float = 60.0
    """Silence of a client after which the connection is closed with 1002. Clients send a heartbeat every 30 seconds."""

    shutdown_seconds: float = 5.0
    """Time that handlers have to finish, and then `terminate`, once their connection has ended."""
