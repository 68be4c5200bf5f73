"""A line between the processes for the library itself, such as presence: bytes that no client sees."""

import logging
from collections.abc import Callable

from starlette_channels.pubsub.hub import Hub
from starlette_channels.pubsub.relay.channel_names import line_channel
from starlette_channels.pubsub.relay.envelope import Kind
from starlette_channels.pubsub.relay.relay import Relay

logger: logging.Logger = logging.getLogger("starlette_channels.broker")


class Exchange:
    """One end of a line; `Broker.exchange` makes it."""

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
        """Whether what other processes send on this line is delivered."""
        return self._relay is None or self._relay.interests.is_in_force(self.channel)

    def send(self, data: bytes, to: str | None = None) -> None:
        """Send bytes to this line's ends in all other processes, or to those of the line `to`, from any thread, without
        waiting.

        They arrive in order, once, or not at all; what is lost is counted as it is for broadcasts. This process gets
        nothing of it. With `memory://`, and after `close`, it does nothing.
        """
        if self._relay is not None and not self.closed:
            self._relay.publish(Kind.LINE, self.channel if to is None else line_channel(to), "", data)

    def close(self) -> None:
        """Hear no more; it may be called twice, from any thread."""
        if not self.closed:
            self.closed = True
            if self._relay is not None:
                self._relay.interests.remove(self.channel)

    def take(self, data: bytes) -> None:
        """Pass on what has come."""
        if not self.closed:
            self._call(self._receive, data)

    def stop(self) -> None:
        """Say that the broker stops: what is sent now still leaves."""
        if self._stopping is not None and not self.closed:
            self._call(self._stopping)

    def _call(self, function: Callable[..., None], *args: bytes) -> None:
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - the line goes on
            text = "%r failed for what has come on %r"
            self.hub.error_log.note("delivery_failed", logger, text, function, self.channel, cause=error)
