"""What the clients of one `Channels` share."""

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from starlette_channels.arguments import check_type
from starlette_channels.broker import Broker
from starlette_channels.channels import Channel
from starlette_channels.definitions import check_channels, warn_of_hidden_patterns
from starlette_channels.expiry import Lifetimes, Mortal
from starlette_channels.identities import Identities, Quotas
from starlette_channels.limits import Bounds, Limits
from starlette_channels.logs import LogOptions, level_of
from starlette_channels.mishaps import Mishaps
from starlette_channels.parameters import ParameterFilter
from starlette_channels.topics import Match, Pattern


class Client(Mortal, Protocol):
    """A connection, as far as those are concerned who look after all of them."""

    @property
    def channels(self) -> int:
        """How many topics the client has joined or is joining."""
        ...

    def retire(self, code: int, reason: str) -> None:
        """Close the connection once its handlers have answered what the client has sent, or have had time for it."""
        ...

    def abort(self) -> None:
        """Let the channels end at once: handlers are cancelled, `terminate` still has its time."""
        ...

    async def ended(self) -> None:
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
        self.counts: Counter[str] = Counter()
        self.mishaps: Mishaps = Mishaps(self.counts)
        self.quotas: Quotas = Quotas(self.limits)
        self.identities: Identities = Identities(self.quotas)
        log = log or LogOptions()
        self.log_connect: int | None = level_of(log.connect, "LogOptions(connect")
        self.parameters: ParameterFilter = ParameterFilter(log.filter_parameters, log.keep_parameters)
        self.numbers: Iterator[int] = itertools.count(1)
        """What logs call connections."""
        self.connections: set[Client] = set()
        self.arriving: int = 0
        """Clients that are neither let in nor refused yet."""
        self.lifetimes: Lifetimes | None = None
        """How long clients may stay, if that is not for ever."""
        self.closing: bool = False
        """Whether nobody is let in any more."""
        self._reopens = 0.0

    def open(self) -> None:
        """Let clients in, as from the start."""
        self.closing = False

    def close(self, seconds: float) -> None:
        """Let nobody in any more; after so many seconds, it may be worth another try."""
        self.closing = True
        self._reopens = time.monotonic() + seconds

    @property
    def retry_after(self) -> int:
        """After how many seconds another try may be worth it, once nobody is let in any more."""
        return max(1, math.ceil(self._reopens - time.monotonic()))

    def forget(self, client: Client) -> None:
        """Let a client go that has ended."""
        self.connections.discard(client)
        if self.lifetimes is not None:
            self.lifetimes.forget(client)

    def match(self, topic: str) -> tuple[Channel[Any], Match] | None:
        """Return the first channel whose pattern fits a topic."""
        for pattern, channel in self.routes:
            match = pattern.match(topic)
            if match is not None:
                return channel, match
        return None
