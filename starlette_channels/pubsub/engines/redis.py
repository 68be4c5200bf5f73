"""Redis and Valkey: PUBLISH and SUBSCRIBE over two connections. Nothing is stored.

The reconnects of redis-py are disabled, because they hide losses.
"""

# pyright: reportUnknownMemberType=false
# The library's own annotations are incomplete.

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, urlsplit

from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from starlette_channels.pubsub.engines.base import Broken, Deliver, MakeEngine, Parcel
from starlette_channels.pubsub.engines.url import Options, check_known
from starlette_channels.pubsub.relay.channel_names import as_short_bytes

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

PING_SECONDS = 3.0
"""Interval of PING on each connection, in seconds."""

SILENT_PERIODS, BUSY_PERIODS = 2, 3
"""Number of PING intervals without an answer after which the server is considered away: on a silent connection, and on
one with messages, behind which the answer may be queued.
"""


class Verbs(NamedTuple):
    """Names of the commands."""

    publish: str
    subscribe: str
    unsubscribe: str


CLASSIC = Verbs("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE")
SHARDED = Verbs("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE")

_PONG = b"pong"
_MESSAGE = (b"message", b"smessage")


class _Asked(NamedTuple):
    """A command on the subscribing connection that is not answered yet."""

    verb: bytes
    name: bytes
    answered: asyncio.Future[None] | None


class RedisEngine:
    """A publishing and a subscribing connection."""

    max_bytes = 1 << 29

    def __init__(self, connect: Callable[[], AbstractConnection], prefix: str, verbs: Verbs = CLASSIC) -> None:
        self._publishing, self._subscribing = connect(), connect()
        self._prefix = f"{prefix}:".encode()
        self._verbs = verbs
        self._asked: deque[_Asked] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._publish_lock = asyncio.Lock()
        self._heard = self._answered = 0
        self._has_published = True

    async def start(self, deliver: Deliver, broken: Broken) -> None:
        """Connect both, and start reading."""
        for connection in (
            self._publishing,
            self._subscribing,
        ):  # one by one: if one fails, the other must not be connecting
            await connection.connect()
        works = (self._read(deliver), self._ping_subscribing(), self._ping_publishing(), self._watch_server())
        self._tasks = [asyncio.create_task(work) for work in works]
        for task in self._tasks:
            task.add_done_callback(lambda done: done.cancelled() or broken(_error_of(done)))

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Publish in one pipeline; returns when the server has answered all commands."""
        commands = [(self._verbs.publish, self.name(parcel.channel), parcel.data) for parcel in parcels]
        async with self._publish_lock:
            self._has_published = True
            await self._publishing.send_packed_command(self._publishing.pack_commands(commands), check_health=False)
            missing = len(commands)
            while missing > 0:
                answers = await _read_answers(self._publishing)
                missing -= len(answers)
                if error := next((answer for answer in answers if isinstance(answer, Exception)), None):
                    raise error

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to channels, and return when the server has confirmed each of them."""
        await self._tell(self._verbs.subscribe, channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Unsubscribe from channels."""
        await self._tell(self._verbs.unsubscribe, channels)

    async def close(self) -> None:
        """Close both connections."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in (self._publishing, self._subscribing):
            await connection.disconnect()

    def name(self, channel: str) -> bytes:
        """Return the name of a channel at the server."""
        return self._prefix + as_short_bytes(channel)

    # The subscribing connection: the server answers in order, among the messages.

    async def _tell(self, verb: str, channels: Collection[str]) -> None:
        commands = [(verb, self.name(channel)) for channel in channels]  # one each: a cluster may refuse several
        if not commands:
            return
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        last = len(commands) - 1
        self._asked.extend(
            _Asked(verb.lower().encode(), name, answered if number == last else None)
            for number, (_, name) in enumerate(commands)
        )
        await self._subscribing.send_packed_command(self._subscribing.pack_commands(commands), check_health=False)
        await answered

    async def _read(self, deliver: Deliver) -> None:
        while True:
            messages: list[bytes] = []
            for answer in await _read_answers(self._subscribing):
                self._heard += 1
                if isinstance(answer, list):
                    parts = cast("list[Any]", answer)
                    if parts[0] in _MESSAGE:
                        messages.append(parts[2])
                        continue
                    verb, name = parts[0], parts[1]
                else:
                    verb, name = _PONG, b""  # the short answer to PING, without subscriptions
                if messages:  # messages before a confirmation are delivered before it
                    deliver(messages)
                    messages = []
                if not isinstance(answer, Exception):
                    self._note_answer(verb, name)
                elif self._asked and self._asked[0].verb == _PONG:
                    # Refusing our PING with MISCONF, LOADING, BUSY, MASTERDOWN or NOPERM is a sign of life: the server
                    # still has our subscriptions. NOAUTH is no ResponseError: all other commands would be refused, too.
                    self._take_answer()
                else:
                    raise answer
            if messages:
                deliver(messages)

    def _note_answer(self, verb: bytes, name: bytes) -> None:
        if self._asked and self._asked[0][:2] == (verb, name):
            self._take_answer()
        elif verb in (b"unsubscribe", b"sunsubscribe"):  # unrequested: its slot has moved to another node
            raise ConnectionError("a channel has moved to another node")
        else:
            raise ConnectionError(f"an answer to nothing that was asked: {verb!r}")

    def _take_answer(self) -> None:
        self._answered += 1
        answered = self._asked.popleft().answered
        if answered is not None and not answered.done():
            answered.set_result(None)

    async def _ping_subscribing(self) -> None:
        """Send PING, and check that all commands are answered; received messages alone do not prove it.

        Intervals are counted instead of seconds, because this process may be suspended meanwhile.
        """
        periods = 0
        while True:
            heard, answered = self._heard, self._answered
            await asyncio.sleep(PING_SECONDS)
            if not self._asked:
                periods = 0
                self._asked.append(_Asked(_PONG, b"", None))
                await self._subscribing.send_command("PING", check_health=False)
                continue
            periods = periods + 1 if answered == self._answered else 0
            if periods >= (SILENT_PERIODS if heard == self._heard else BUSY_PERIODS):
                raise TimeoutError(f"Redis has answered no command for {periods * PING_SECONDS:.0f} seconds")

    # The publishing connection.

    async def _ping_publishing(self) -> None:
        """Send PING if nothing was published, to detect a dead connection before the next publish."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            if self._has_published or self._publish_lock.locked():
                self._has_published = False
                continue
            ping = asyncio.create_task(self._ping_locked())
            try:
                for _ in range(SILENT_PERIODS):
                    await asyncio.wait((ping,), timeout=PING_SECONDS)
                if not ping.done():
                    raise TimeoutError(f"Redis has not answered PING for {SILENT_PERIODS * PING_SECONDS:.0f} seconds")
                ping.result()
            finally:
                ping.cancel()

    async def _ping_locked(self) -> None:
        async with self._publish_lock:
            await self._publishing.send_command("PING", check_health=False)
            with contextlib.suppress(ResponseError, BusyLoadingError):  # signs of life, as in `_read`
                await self._publishing.read_response(disconnect_on_error=False)

    async def _watch_server(self) -> None:
        """Check periodically whether this server is still the primary."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            await self._check_server()

    async def _check_server(self) -> None:
        """Raise if another server has become the primary; `RedisSentinelEngine` overrides it."""


async def _read_answers(connection: AbstractConnection) -> list[object]:
    """Wait for an answer of the server; return it and the answers that were read with it.

    Error answers are returned; errors that break the connection are raised. `read_response` of redis-py costs several
    times what parsing costs, so it is called once for each read, and hiredis, its parser, for the further answers.
    """
    answers: list[object] = []
    try:
        answers.append(cast("object", await connection.read_response(disconnect_on_error=False, push_request=True)))
    except (ResponseError, BusyLoadingError) as error:
        answers.append(error)
    parse = getattr(getattr(getattr(connection, "_parser", None), "_reader", None), "gets", None)
    if parse is not None:  # the Python parser of redis-py has none: one answer for each call
        while isinstance(answer := parse(), list | bytes | int | Exception):
            if isinstance(answer, Exception) and not isinstance(answer, ResponseError | BusyLoadingError):
                raise answer
            answers.append(cast("object", answer))
    return answers


def _error_of(task: "asyncio.Task[None]") -> Exception:
    error = task.exception()
    return error if isinstance(error, Exception) else ConnectionError(f"reading ended: {error!r}")


def engine_maker(url: str, options: Options) -> MakeEngine:
    """Return a factory of engines for `redis://host:6379/0`; the query may have options of redis-py."""
    parts = urlsplit(url)
    if parts.scheme != "unix" and not re.fullmatch(r"/?|/\d+", parts.path):
        raise ValueError("a broker's address for Redis is redis://host:6379/0, the number of a database at its end")
    settings = read_settings(url)
    connection_class = cast("Callable[..., AbstractConnection]", settings.pop("connection_class", Connection))
    prefix = prefix_of(options, settings)

    def connect() -> AbstractConnection:
        return connection_class(**settings)

    check_settings(connect)
    return lambda: RedisEngine(connect, prefix)


def prefix_of(options: Options, settings: Mapping[str, Any]) -> str:
    """Return the prefix of channel names, with the number of the database if it is not 0.

    Channels of Redis are shared by all databases.
    """
    database = settings.get("db", 0)
    return f"{options.prefix}:{database}" if database else options.prefix


# Settings of connections.

OURS: dict[str, Any] = {
    "protocol": 2,
    "retry": Retry(NoBackoff(), 0),
    "socket_timeout": None,
    "decode_responses": False,
    "health_check_interval": 0,
}
"""Fixed settings: no reconnects, no read timeout, answers as bytes."""

IGNORED: frozenset[str] = frozenset(OURS) | {
    "auto_close_connection_pool",
    "encoding",
    "encoding_errors",
    "legacy_responses",
    "max_connections",
    "retry_on_error",
    "retry_on_timeout",
    "single_connection_client",
    "timeout",
}
"""Options of redis-py that are ignored in an address, because they are meaningless for a relay or would break it."""

TLS: frozenset[str] = frozenset(
    f"ssl_{name}"
    for name in (
        "ca_certs",
        "ca_data",
        "ca_path",
        "cert_reqs",
        "certfile",
        "check_hostname",
        "ciphers",
        "exclude_verify_flags",
        "include_verify_flags",
        "keyfile",
        "min_version",
        "password",
    )
)
"""Options of `rediss://`."""

TAKEN: frozenset[str] = frozenset(
    {
        "client_name",
        "db",
        "lib_name",
        "lib_version",
        "password",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_read_size",
        "username",
    }
)
"""Options of all connections."""


def read_settings(url: str) -> dict[str, Any]:
    """Return the settings of the connections of an address.

    Raises `ValueError` for an unknown option. Options that the relay sets itself are ignored with a warning, so that an
    address can be shared with other programs.
    """
    names = {name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)}
    is_encrypted = urlsplit(url).scheme == "rediss"
    if not is_encrypted and names & TLS:
        raise ValueError(f"{', '.join(sorted(names & TLS))}: an option of rediss://, which does TLS")
    check_known(names - IGNORED, TAKEN | TLS if is_encrypted else TAKEN)
    for name in sorted(names & IGNORED):
        logger.warning("The option %s in the address of a broker has no effect: the relay sets it itself", name)
    settings = cast("dict[str, Any]", dict(parse_url(url)))
    for name in ("socket_connect_timeout", "socket_read_size"):
        if not settings.get(name, 1) > 0:  # a size of 0 reads nothing, a negative one reads to the end
            raise ValueError(f"a broker's address has an option that does not work: {name} must be more than 0")
    return {name: value for name, value in settings.items() if name not in IGNORED} | OURS


def check_settings(make: Callable[[], object]) -> None:
    """Raise `ValueError` if an option is invalid; makes a connection without connecting it."""
    try:
        make()
    except (TypeError, RedisError) as error:
        raise ValueError(f"a broker's address has an option that does not work: {error}") from None


def split_hosts(netloc: str, port: int) -> tuple[str, list[tuple[str, int]]]:
    """Return the part before the `@`, and the hosts with ports. Raises `ValueError` for an invalid port."""
    user, _, hosts = netloc.rpartition("@")
    parts = [urlsplit(f"//{host}") for host in hosts.split(",")]
    return user, [(part.hostname or "localhost", part.port or port) for part in parts]


def read_options(url: str) -> dict[str, Any]:
    """Return the settings in an address with several hosts, as redis-py reads them."""
    parts = urlsplit(url)
    user, _ = split_hosts(parts.netloc, 0)
    scheme = parts.scheme.partition("+")[0]
    settings = read_settings(
        parts._replace(scheme=scheme, netloc=f"{user}@localhost" if user else "localhost").geturl()
    )
    del settings["host"]
    return settings
