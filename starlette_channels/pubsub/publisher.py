"""Publisher: broadcasts and commands from scripts, cron jobs and Celery tasks."""

from collections import Counter
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread

from starlette_channels.arguments import check_type
from starlette_channels.exceptions import PublishError
from starlette_channels.pubsub.commands import Command, Disconnect, Kick, check_socket_id, encode_command
from starlette_channels.pubsub.engines.url import read_address
from starlette_channels.pubsub.relay.channel_names import topic_channel
from starlette_channels.pubsub.relay.envelope import payload_kind
from starlette_channels.pubsub.relay.relay import Relay, SentCommand
from starlette_channels.pubsub.relay.session import SessionOutcome
from starlette_channels.wire.event_names import check_event
from starlette_channels.wire.messages import Payload, encode_payload
from starlette_channels.wire.serializers import refuse_inexpressible


class Publisher:
    """Broadcasts to the clients of an application, from a process that serves no clients.

    It needs only the address of the application's broker:
    `with Publisher("redis://localhost") as publisher: publisher.broadcast("room:lobby", "new_msg", {"body": "hi"})`.
    It connects at the first use, in a thread of its own, and may be kept as long as the process runs. All methods are
    thread-safe; those that block have an async variant, and there is `async with`.

    Raises `ValueError` for a wrong address, `memory://` included, and `ImportError` with the fix if the engine's
    library is not installed.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        address = read_address(url)
        if address is None:
            raise ValueError("Publisher: memory:// reaches no other process; give it the address of the app's broker")
        self._timeout = timeout
        self._counts: Counter[str] = Counter()
        self._relay = Relay(address, self._counts, _ignore, lambda: True, _ignore)

    def broadcast(self, topic: str, event: str, payload: Payload) -> None:
        """Broadcast an event on a topic, without blocking; `flush` or `close` wait until it is published.

        As in Phoenix, the event "disconnect" closes the connections whose `socket_id` is the topic; `flush` and `close`
        then also wait for the acknowledgement.

        Raises `TypeError` if the payload cannot be encoded, and `SerializerError` if version 2 of the protocol cannot
        express it. Raises `ValueError` for the reserved events of the protocol and of Presence, as
        `Channels.broadcast` does.
        """
        check_event(event)
        check_type(topic, str, "broadcast(topic=", "it takes the name of a topic")
        body = encode_payload(payload)
        refuse_inexpressible(topic, event, body)
        self._relay.publish(payload_kind(body), topic_channel(topic), event, body)
        if event == "disconnect":
            self._command(topic, Disconnect())

    def disconnect(self, socket_id: str, *, code: int = 1001, reason: str = "disconnected") -> None:
        """Close all connections with a `socket_id`, as `Channels.disconnect` does.

        Blocks until a server process of the application has acknowledged it, usually a few milliseconds; that process
        repeats it for an hour to processes that cannot be reached now. Raises `PublishError` if there is no
        acknowledgement after `timeout` seconds: then it is withdrawn, though it may have been executed.
        """
        self._wait(self._command(socket_id, Disconnect(code, reason)))

    def kick(self, socket_id: str, topic: str, *, reason: str | None = None) -> None:
        """Close the channel of a topic on all connections with a `socket_id`, as `Channels.kick` does.

        Blocks, and raises `PublishError`, as `disconnect` does.
        """
        self._wait(self._command(socket_id, Kick(topic, reason)))

    async def adisconnect(self, socket_id: str, *, code: int = 1001, reason: str = "disconnected") -> None:
        """Async variant of `disconnect`."""
        sent = self._command(socket_id, Disconnect(code, reason))
        await anyio.to_thread.run_sync(self._wait, sent)

    async def akick(self, socket_id: str, topic: str, *, reason: str | None = None) -> None:
        """Async variant of `kick`."""
        sent = self._command(socket_id, Kick(topic, reason))
        await anyio.to_thread.run_sync(self._wait, sent)

    def _command(self, socket_id: str, command: Command) -> SentCommand:
        check_socket_id(socket_id, command)
        return self._relay.command(socket_id, command.slot, encode_command(command))

    def _wait(self, sent: SentCommand) -> None:
        is_heard, error = sent.wait_until_heard(self._timeout)
        if not is_heard:
            sent.withdraw()
            raise PublishError(1, error, unheard=1)

    def flush(self) -> None:
        """Block until the engine has accepted all broadcasts so far.

        Raises `PublishError` if it has not after `timeout` seconds, or if broadcasts were dropped since the last call:
        because they were too old, too many, or too large for the engine.
        """
        self._check_flushed(self._relay.flush(self._timeout))

    def close(self) -> None:
        """Flush and disconnect; the next use connects again. Raises `PublishError` as `flush` does.

        Blocks for `timeout` seconds at most. If the engine's library hangs, the exit of the interpreter is delayed
        until its threads have ended, 12 seconds at most.
        """
        self._check_closed(self._relay.close(self._timeout))

    async def aflush(self) -> None:
        """Async variant of `flush`."""
        self._check_flushed(await anyio.to_thread.run_sync(self._relay.flush, self._timeout))

    async def aclose(self) -> None:
        """Async variant of `close`."""
        with anyio.CancelScope(shield=True):
            self._check_closed(await anyio.to_thread.run_sync(self._relay.close, self._timeout))

    def _check_flushed(self, outcome: SessionOutcome) -> None:
        left, error, unheard = outcome
        self._raise_for(left + self._dropped(), error, unheard)  # those that are left may still be published

    def _check_closed(self, outcome: SessionOutcome) -> None:
        _, error, unheard = outcome
        self._raise_for(self._dropped(), error, unheard)  # those that were left at the end are among them

    def _dropped(self) -> int:
        return self._counts.pop("relay_dropped", 0)

    def _raise_for(self, left: int, error: Exception | None, unheard: int) -> None:
        if left or unheard:
            raise PublishError(left + unheard, error, unheard=unheard)

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


def _ignore(_: object) -> None:
    """Ignore arrivals: a publisher has no subscribers."""
