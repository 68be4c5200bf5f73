"""NATS: one core subject for each channel. Nothing is stored.

The reconnects of nats-py are disabled, because they hide losses. Its queues, one with a task for each subscription, are
bypassed, because they drop messages beyond their limits. The limits of the server remain; it closes the connection.
"""

# pyright: reportUnknownMemberType=false
# The library's own annotations are incomplete.

import asyncio
import ssl
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from nats.aio.client import Client

from starlette_channels.pubsub.engines.base import Broken, Deliver, MakeEngine, Parcel
from starlette_channels.pubsub.engines.url import Options, check_known
from starlette_channels.pubsub.relay.channel_names import as_token

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override

PING_SECONDS = 3
"""Interval of PING, in seconds; the server is considered away after two without an answer."""

WATCH_SECONDS = 0.25

SETTINGS = ("credentials", "ca", "cert", "key")
"""Options of NATS in the query of an address."""


class DeliveringClient(Client):
    """A client that delivers messages directly, without queues."""

    def __init__(self) -> None:
        super().__init__()
        self.deliver: Deliver | None = None

    @override
    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        if self.deliver is not None and sid in self._subs:
            self.deliver((data,))


class EncryptedClient(DeliveringClient):
    """A client that sends credentials only over TLS; nats-py accepts a server without TLS even with `tls://`."""

    @override
    def _connect_command(self) -> bytes:
        if not self._server_info.get("tls_required"):
            raise ConnectionError("the NATS server does no TLS: tls_required is not in what it says of itself")
        return super()._connect_command()


class NatsEngine:
    """One connection."""

    def __init__(self, servers: list[str], settings: Mapping[str, Any], prefix: str) -> None:
        self.max_bytes = 0
        self._servers, self._settings, self._prefix = servers, settings, prefix
        self._client = EncryptedClient() if "tls" in settings else DeliveringClient()
        self._unsubscribe: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        self._error: Exception | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self, deliver: Deliver, broken: Broken) -> None:
        """Connect."""
        self._client.deliver, self._broken = deliver, broken
        await self._client.connect(
            self._servers,
            error_cb=self._note_error,
            closed_cb=self._note_end,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=3,
            ping_interval=PING_SECONDS,
            max_outstanding_pings=2,
            no_echo=True,
            **self._settings,
        )
        self.max_bytes: int = self._client.max_payload
        self._error = None  # an error of a server that was tried before
        self._watch = asyncio.create_task(self._note_silent_end())

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Publish, and wait for the PONG behind it."""
        for parcel in parcels:
            await self._client.publish(self._subject(parcel.channel), parcel.data)
        await self._round_trip()

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to the subjects of channels; returns after the PONG behind it."""
        for channel in channels:
            subscription = await self._client.subscribe(self._subject(channel))
            self._unsubscribe[channel] = subscription.unsubscribe
        await self._round_trip()

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Unsubscribe from channels."""
        for channel in channels:
            await self._unsubscribe.pop(channel)()

    async def close(self) -> None:
        """Close the connection."""
        if self._watch is not None:
            self._watch.cancel()
        if not self._client.is_closed:
            await self._client.close()

    async def _round_trip(self) -> None:
        """Return when the server has processed everything; raises if it has refused something."""
        await self._client.flush()  # nats-py sends this PING before its buffered data,
        await self._client.flush()  # so only the answer to the next one confirms the data
        if self._error is not None:
            raise self._error

    async def _note_error(self, error: Exception) -> None:
        """Note an error; after a refusal the server keeps the connection open."""
        self._error = error
        if self._client.is_connected:
            self._broken(error)

    async def _note_silent_end(self) -> None:
        """Poll for the close: when the last bytes cannot be sent, nats-py does not report it."""
        while not self._client.is_closed:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(WATCH_SECONDS)
        await self._note_end()

    async def _note_end(self) -> None:
        self._broken(self._error or ConnectionError("NATS has closed the connection"))

    def _subject(self, channel: str) -> str:
        return f"{self._prefix}.{as_token(channel)}"


def engine_maker(url: str, options: Options) -> MakeEngine:
    """Return a factory of engines for `nats://user:password@host:4222,host2:4222?credentials=FILE`."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    check_known(query, SETTINGS)
    if parts.path not in ("", "/") or not parts.hostname:
        raise ValueError("a broker's address for NATS is nats://host:4222, with nothing but options behind it")
    try:
        settings = {**_read_credentials(parts.netloc), **_read_files(parts.scheme, query)}
    except (OSError, ValueError) as error:
        raise ValueError(f"a broker's address for NATS: {error}") from None
    servers = [f"{parts.scheme}://{server.rpartition('@')[2]}" for server in parts.netloc.split(",")]
    return lambda: NatsEngine(servers, settings, options.prefix)


def _read_credentials(netloc: str) -> dict[str, str]:
    """Decode the credentials before the `@`, for all servers; nats-py does not decode them."""
    users = {user for server in netloc.split(",") if (user := server.rpartition("@")[0])}
    if not users:
        return {}
    if len(users) > 1:
        raise ValueError("all servers of a cluster have the same user and password")
    user, colon, password = users.pop().partition(":")
    return {"user": unquote(user), "password": unquote(password)} if colon else {"token": unquote(user)}


def _read_files(scheme: str, query: Mapping[str, str]) -> dict[str, Any]:
    """Read the files in the options: credentials and certificates."""
    settings: dict[str, Any] = {}
    if "credentials" in query:
        Path(query["credentials"]).open().close()  # nats-py reads it at each connect; this detects a wrong name early
        settings["user_credentials"] = query["credentials"]
    if scheme == "tls":
        settings["tls"] = ssl.create_default_context(cafile=query.get("ca"))
        if "cert" in query:
            settings["tls"].load_cert_chain(query["cert"], query.get("key"))
    elif query.keys() & {"ca", "cert", "key"}:
        raise ValueError("ca, cert and key are options of tls://host:4222")
    return settings
