"""Registry of the connections of one `Channels`, and the state that they share."""

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
    """The interface of a connection to the registry, drain and close."""

    @property
    def channels(self) -> int:
        """The number of topics that the client has joined or is joining."""
        ...

    def drain(self, code: int, reason: str) -> None:
        """Close the connection once the messages of the client are answered, or after the time limit."""
        ...

    def abort(self) -> None:
        """Abort all channels: handlers are cancelled, `terminate` still has its time."""
        ...

    async def closed(self) -> None:
        """Wait until the client has disconnected and its channels have closed."""
        ...


class Service:
    """The channels, the broker, the limits, and the connections."""

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
        """The length up to which any frame fits: no character takes more than four bytes."""
        self.plainly_small: int = min(self.limits.header_bytes // 4, self.surely_small, PLAINLY_SMALL)
        """The length up to which a message cannot have too long a header, nor keep much memory beside its payload."""
        self.counts: Counter[str] = Counter()
        self.error_log: ErrorLog = ErrorLog(self.counts)
        self.quotas: Quotas = Quotas(self.limits)
        self.identities: Identities = Identities(self.quotas)
        log = log or LogOptions()
        self.log_connect: int | None = level_of(log.connect, "LogOptions(connect")
        self.parameters: ParameterFilter = ParameterFilter(log.filter_parameters, log.keep_parameters)
        self.numbers: Iterator[int] = itertools.count(1)
        """The numbers of connections in logs."""
        self.connections: set[RegisteredClient] = set()
        self.arriving: int = 0
        """The number of clients neither admitted nor refused yet."""
        self.lifetimes: Lifetimes | None = None
        """The expiry of identities; `None` without `Channels(expiry=...)`."""
        self.closed_by: Hub | None = None
        """The hub of the event loop that called `close`; `None` after `open`."""
        self._reopens = 0.0
        self._lifespans: list[Hub] = []

    def begin_lifespan(self, hub: Hub) -> None:
        """Record the start of a lifespan in this event loop, and admit clients."""
        self._lifespans = [*self._running_lifespans(), hub]
        self.open()

    def end_lifespan(self, hub: Hub) -> list[Hub]:
        """Record the end of a lifespan in this event loop; return the hubs of the lifespans that still run.

        In tests several may run at a time: test clients in threads of their own, each with the lifespan.
        """
        running = self._running_lifespans()
        if hub in running:
            running.remove(hub)
        self._lifespans = running
        return running

    def _running_lifespans(self) -> list[Hub]:
        """The hubs of all lifespans, except those whose event loop has ended without the end of the lifespan."""
        return [hub for hub in self._lifespans if hub.is_running]

    @property
    def closing(self) -> bool:
        """Whether new clients are refused: from `close` until `open`, or until the event loop of `close` has ended."""
        return self.closed_by is not None and self.closed_by.is_running

    def open(self) -> None:
        """Admit clients, as from the start."""
        self.closed_by = None

    def close(self, seconds: float, hub: Hub) -> None:
        """Refuse new clients; they may try again after `seconds`. `hub` belongs to the event loop of the caller."""
        self.closed_by = hub
        self._reopens = time.monotonic() + seconds

    @property
    def retry_after(self) -> int:
        """The seconds after which a client refused by `closing` may try again; at least 1."""
        return max(1, math.ceil(self._reopens - time.monotonic()))

    def forget(self, client: RegisteredClient) -> None:
        """Remove a connection that has ended."""
        self.connections.discard(client)
        if self.lifetimes is not None:
            self.lifetimes.forget(client)

    def match(self, topic: str) -> tuple[Channel[Any], Match] | None:
        """Return the first channel with a pattern that matches a topic, the types of its segments included."""
        for pattern, channel in self.routes:
            try:
                match = channel.match(pattern, topic)
            except Exception as error:  # noqa: BLE001 - an error of the application's validator; it is logged
                self.error_log.note("segment_failed", logger, "A segment of %s failed", shown(topic), cause=error)
                continue
            if match is not None:
                return channel, match
        return None
