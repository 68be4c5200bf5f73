"""Broadcasts from elsewhere: a script, a cron job, a Celery task."""

from collections import Counter
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread

from starlette_channels.brokers.addresses import read_address
from starlette_channels.brokers.envelope import Kind, payload_kind
from starlette_channels.brokers.names import topic_channel
from starlette_channels.brokers.receiver import Arrival
from starlette_channels.brokers.relay import Relay
from starlette_channels.commands import Command, Disconnect, Kick, encode_command
from starlette_channels.exceptions import PublishError
from starlette_channels.messages import Payload, encode_payload
from starlette_channels.serializers import refuse_inexpressible


class Publisher:
    """Broadcasts to the clients of an application, from a process that has none itself.

    It needs only the address that the application's `broker` has:
    `with Publisher("redis://localhost") as publisher: publisher.broadcast("room:lobby", "new_msg", {"body": "hi"})`.
    It connects when it is first used, in a thread of its own, and may be kept for as long as the process lives. All
    methods may be called from any thread; those that wait have a twin for async code, and there is `async with`.

    Raises `ValueError` for a wrong address, `memory://` included, and `ImportError` with the fix if the engine's
    library is not installed.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        address = read_address(url)
        if address is None:
            raise ValueError("Publisher: memory:// reaches no other process; give it the address of the app's broker")
        self._timeout = timeout
        self._counts: Counter[str] = Counter()
        self._relay = Relay(address, self._counts, _ignore, lambda: True)

    def broadcast(self, topic: str, event: str, payload: Payload) -> None:
        """Send an event to everyone on a topic, without waiting; `flush` or `close` see that it leaves.

        Raises `TypeError` if the payload cannot be encoded, and `SerializerError` if version 2 of the protocol cannot
        express it.
        """
        body = encode_payload(payload)
        refuse_inexpressible(topic, event, body)
        self._relay.publish(payload_kind(body), topic_channel(topic), event, body)
        if event == "disconnect":
            self._command(topic, Disconnect())

    def disconnect(self, socket_id: str, *, code: int = 1001, reason: str = "disconnected") -> None:
        """Close all connections whose `socket_id` this is, as `Channels.disconnect` does."""
        self._command(socket_id, Disconnect(code, reason))

    def kick(self, socket_id: str, topic: str, *, reason: str | None = None) -> None:
        """End the channel of a topic on all connections whose `socket_id` this is, as `Channels.kick` does."""
        self._command(socket_id, Kick(topic, reason))

    def _command(self, socket_id: str, command: Command) -> None:
        self._relay.publish(Kind.COMMAND, topic_channel(socket_id), "", encode_command(command))

    def flush(self) -> None:
        """Wait until the engine has taken all that was broadcast so far.

        Raises `PublishError` if it has not after `timeout` seconds, or if some were dropped since the last time.
        """
        self._check(self._relay.flush(self._timeout))

    def close(self) -> None:
        """Flush and disconnect; one that is used again connects anew. Raises what `flush` raises."""
        self._check(self._relay.close(self._timeout))

    async def aflush(self) -> None:
        """Do what `flush` does, for async code."""
        self._check(await anyio.to_thread.run_sync(self._relay.flush, self._timeout))

    async def aclose(self) -> None:
        """Do what `close` does, for async code."""
        with anyio.CancelScope(shield=True):
            self._check(await anyio.to_thread.run_sync(self._relay.close, self._timeout))

    def _check(self, outcome: tuple[int, Exception | None]) -> None:
        left, error = outcome
        dropped = self._counts.pop("relay_dropped", 0)
        if left or dropped:
            raise PublishError(max(left, dropped), error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.aclose()


def _ignore(_: list[Arrival]) -> None:
    """Nobody listens here."""
