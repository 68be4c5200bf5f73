"""What the clients of one `Channels` share."""

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from starlette_channels.arguments import check_type
from starlette_channels.channels.checks import check_channels, warn_of_hidden_patterns
from starlette_channels.channels.definition import Channel
from starlette_channels.connection.expiry import ExpiringClient, Lifetimes
from starlette_channels.connection.identities import Identities, Quotas
from starlette_channels.limits import Bounds, Limits
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.observability.log_options import LogOptions, level_of
from starlette_channels.observability.redaction import ParameterFilter
from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.hub import Hub
from starlette_channels.wire.messages import shown
from starlette_channels.wire.topics import Match, Pattern

logger: logging.Logger = logging.getLogger("starlette_channels.channel")

PLAINLY_SMALL = 1_024


class RegisteredClient(ExpiringClient, Protocol):
    """A connection, as far as those are concerned who look after all of them."""

    @property
    def channels(self) -> int:
        """How many topics the client has joined or is joining."""
        ...

    def drain(self, code: int, reason: str) -> None:
        """Close the connection once its handlers have answered what the client has sent, or have had time for it."""
        ...

    def abort(self) -> None:
        """Let the channels end at once: handlers are cancelled, `terminate` still has its time."""
        ...

    async def closed(self) -> None:
        """Wait until the client is gone and its channels have ended."""
        ...


class Service:
    """The channels, the broker, the limits, and who is connected."""

    def __init__(
        self, channels: Sequence[Channel[Any]], broker: Broker, limits: Limits, log: LogOptions | None = None
    ) -> None:
        check_type(limits, Limits, "Channels(limits=", "write limits=Limits(...)")
        check_type(log or LogOptions(), LogOptions, "Channels(log=", 'write log=LogOptions(connect="debug")')
        self.routes: list[tuple[Pattern, Channel[Any]]] = [
            (pattern, channel) for channel in check_channels(channels) for pattern in channel.patterns
        ]
        warn_of_hidden_patterns(self.routes)
        self.broker: Broker = broker
        self.limits: Bounds = Bounds.of(limits)
        self.surely_small: int = self.limits.message_bytes // 4
        """So many characters fit whatever they are: none takes more than four bytes."""
        self.plainly_small: int = min(self.limits.header_bytes // 4, self.surely_small, PLAINLY_SMALL)
        """A message of so many characters has no header that is too long, and keeps next to nothing but its payload."""
        self.counts: Counter[str] = Counter()
        self.error_log: ErrorLog = ErrorLog(self.counts)
        self.quotas: Quotas = Quotas(self.limits)
        self.identities: Identities = Identities(self.quotas)
        log = log or LogOptions()
        self.log_connect: int | None = level_of(log.connect, "LogOptions(connect")
        self.parameters: ParameterFilter = ParameterFilter(log.filter_parameters, log.keep_parameters)
        self.numbers: Iterator[int] = itertools.count(1)
        """What logs call connections."""
        self.connections: set[RegisteredClient] = set()
        self.arriving: int = 0
        """Clients that are neither let in nor refused yet."""
        self.lifetimes: Lifetimes | None = None
        """How long clients may stay, if that is not for ever."""
        self.closed_by: Hub | None = None
        """The hub of the event loop that has called `close`, if nobody has called `open` since."""
        self._reopens = 0.0
        self._lifespans: list[Hub] = []

    def begin_lifespan(self, hub: Hub) -> None:
        """Note that a lifespan runs in this event loop, and let clients in."""
        self._lifespans = [*self._running_lifespans(), hub]
        self.open()

    def end_lifespan(self, hub: Hub) -> list[Hub]:
        """Note that a lifespan ends in this event loop; return the event loops in which others still run.

        In tests there may be several at a time: clients in threads of their own, each with the lifespan.
        """
        running = self._running_lifespans()
        if hub in running:
            running.remove(hub)
        self._lifespans = running
        return running

    def _running_lifespans(self) -> list[Hub]:
        """The event loops of all lifespans but those that were cut off together with their event loop."""
        return [hub for hub in self._lifespans if hub.is_running]

    @property
    def closing(self) -> bool:
        """Whether nobody is let in any more: from `close` until `open`, or until the event loop of `close` is over."""
        return self.closed_by is not None and self.closed_by.is_running

    def open(self) -> None:
        """Let clients in, as from the start."""
        self.closed_by = None

    def close(self, seconds: float, hub: Hub) -> None:
        """Let nobody in any more; after so many seconds, it may be worth another try. `hub` is that of the caller."""
        self.closed_by = hub
        self._reopens = time.monotonic() + seconds

    @property
    def retry_after(self) -> int:
        """After how many seconds another try may be worth it, once nobody is let in any more."""
        return max(1, math.ceil(self._reopens - time.monotonic()))

    def forget(self, client: RegisteredClient) -> None:
        """Let a client go that has ended."""
        self.connections.discard(client)
        if self.lifetimes is not None:
            self.lifetimes.forget(client)

    def match(self, topic: str) -> tuple[Channel[Any], Match] | None:
        """Return the first channel whose pattern fits a topic, the types of its segments included."""
        for pattern, channel in self.routes:
            try:
                match = channel.match(pattern, topic)
            except Exception as error:  # noqa: BLE001 - a validator of the application; it is logged
                self.error_log.note("segment_failed", logger, "A segment of %s failed", shown(topic), cause=error)
                continue
            if match is not None:
                return channel, match
        return None
