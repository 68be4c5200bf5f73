"""Redis and Valkey: publish and subscribe, over two connections. Nothing is stored there.

redis-py's own ways to connect anew are not used: they hide that something was missed.
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
"""How often the server is asked whether it is there."""

SILENT_PERIODS, BUSY_PERIODS = 2, 3
"""After so many periods without an answer to a command the server counts as away: while nothing comes at all, and while
messages of others do, behind which the answer may be waiting.
"""


class Verbs(NamedTuple):
    """How publishing and subscribing is called."""

    publish: str
    subscribe: str
    unsubscribe: str


CLASSIC = Verbs("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE")
SHARDED = Verbs("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE")

_PONG = b"pong"
_MESSAGE = (b"message", b"smessage")


class _Asked(NamedTuple):
    """A command on the hearing connection whose answer is still to come."""

    verb: bytes
    name: bytes
    answered: asyncio.Future[None] | None


class RedisEngine:
    """One connection to publish on, and one to hear."""

    max_bytes = 1 << 29

    def __init__(self, connect: Callable[[], AbstractConnection], prefix: str, verbs: Verbs = CLASSIC) -> None:
        self._speaking, self._hearing = connect(), connect()
        self._prefix = f"{prefix}:".encode()
        self._verbs = verbs
        self._asked: deque[_Asked] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._turn_to_speak = asyncio.Lock()
        self._heard = self._answered = 0
        self._has_spoken = True

    async def start(self, deliver: Deliver, broken: Broken) -> None:
        """Connect, and begin to read."""
        for connection in (self._speaking, self._hearing):  # not at once: if one fails, none may be on its way
            await connection.connect()
        works = (self._read(deliver), self._ask_hearing(), self._ask_speaking(), self._watch_server())
        self._tasks = [asyncio.create_task(work) for work in works]
        for task in self._tasks:
            task.add_done_callback(lambda done: done.cancelled() or broken(_error_of(done)))

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Publish in one go, and see that the server has taken everything."""
        commands = [(self._verbs.publish, self.name(parcel.channel), parcel.data) for parcel in parcels]
        async with self._turn_to_speak:
            self._has_spoken = True
            await self._speaking.send_packed_command(self._speaking.pack_commands(commands), check_health=False)
            missing = len(commands)
            while missing > 0:
                answers = await _read_answers(self._speaking)
                missing -= len(answers)
                if error := next((answer for answer in answers if isinstance(answer, Exception)), None):
                    raise error

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to channels, and return when the server has confirmed each of them."""
        await self._tell(self._verbs.subscribe, channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Want no more of channels."""
        await self._tell(self._verbs.unsubscribe, channels)

    async def close(self) -> None:
        """Close both connections."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in (self._speaking, self._hearing):
            await connection.disconnect()

    def name(self, channel: str) -> bytes:
        """Return what the server knows a channel by."""
        return self._prefix + as_short_bytes(channel)

    # The hearing connection: the server answers in order, among the messages.

    async def _tell(self, verb: str, channels: Collection[str]) -> None:
        commands = [(verb, self.name(channel)) for channel in channels]  # in a cluster, a command must not have more
        if not commands:
            return
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        last = len(commands) - 1
        self._asked.extend(
            _Asked(verb.lower().encode(), name, answered if number == last else None)
            for number, (_, name) in enumerate(commands)
        )
        await self._hearing.send_packed_command(self._hearing.pack_commands(commands), check_health=False)
        await answered

    async def _read(self, deliver: Deliver) -> None:
        while True:
            messages: list[bytes] = []
            for answer in await _read_answers(self._hearing):
                self._heard += 1
                if isinstance(answer, list):
                    parts = cast("list[Any]", answer)
                    if parts[0] in _MESSAGE:
                        messages.append(parts[2])
                        continue
                    verb, name = parts[0], parts[1]
                else:
                    verb, name = _PONG, b""  # the short form, of a connection without a subscription
                if messages:  # what came before a confirmation is delivered before it
                    deliver(messages)
                    messages = []
                if not isinstance(answer, Exception):
                    self._note_answer(verb, name)
                elif self._asked and self._asked[0].verb == _PONG:
                    # Refusing our PING with MISCONF, LOADING, BUSY, MASTERDOWN or NOPERM is a sign of life: the server
                    # still has our subscriptions. NOAUTH is no ResponseError: it would refuse all else as well.
                    self._take_answer()
                else:
                    raise answer
            if messages:
                deliver(messages)

    def _note_answer(self, verb: bytes, name: bytes) -> None:
        if self._asked and self._asked[0][:2] == (verb, name):
            self._take_answer()
        elif verb in (b"unsubscribe", b"sunsubscribe"):  # of itself: a cluster's node whose channels have moved
            raise ConnectionError("a channel has moved to another node")
        else:
            raise ConnectionError(f"an answer to nothing that was asked: {verb!r}")

    def _take_answer(self) -> None:
        self._answered += 1
        answered = self._asked.popleft().answered
        if answered is not None and not answered.done():
            answered.set_result(None)

    async def _ask_hearing(self) -> None:
        """Send PING, and see that it and all other commands are answered: messages of others are no proof that they
        are. Periods are counted and not seconds, since this process may have been stopped meanwhile.
        """
        periods = 0
        while True:
            heard, answered = self._heard, self._answered
            await asyncio.sleep(PING_SECONDS)
            if not self._asked:
                periods = 0
                self._asked.append(_Asked(_PONG, b"", None))
                await self._hearing.send_command("PING", check_health=False)
                continue
            periods = periods + 1 if answered == self._answered else 0
            if periods >= (SILENT_PERIODS if heard == self._heard else BUSY_PERIODS):
                raise TimeoutError(f"Redis has answered no command for {periods * PING_SECONDS:.0f} seconds")

    # The speaking connection.

    async def _ask_speaking(self) -> None:
        """Send PING if nothing was published: a dead connection is found before there is something to say."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            if self._has_spoken or self._turn_to_speak.locked():
                self._has_spoken = False
                continue
            ping = asyncio.create_task(self._ping_to_speak())
            try:
                for _ in range(SILENT_PERIODS):
                    await asyncio.wait((ping,), timeout=PING_SECONDS)
                if not ping.done():
                    raise TimeoutError(f"Redis has not answered PING for {SILENT_PERIODS * PING_SECONDS:.0f} seconds")
                ping.result()
            finally:
                ping.cancel()

    async def _ping_to_speak(self) -> None:
        async with self._turn_to_speak:
            await self._speaking.send_command("PING", check_health=False)
            with contextlib.suppress(ResponseError, BusyLoadingError):  # as above
                await self._speaking.read_response(disconnect_on_error=False)

    async def _watch_server(self) -> None:
        """Look now and then whether another server should be talked to."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            await self._check_server()

    async def _check_server(self) -> None:
        """Raise if another server should be talked to by now."""


async def _read_answers(connection: AbstractConnection) -> list[object]:
    """Wait for an answer of the server; return it with those that were read together with it.

    An error that the server answers is returned; one after which the connection is of no use is raised. redis-py gives
    one answer a call, at several times the cost of parsing it; hiredis, which does the parsing, is asked for the rest.
    """
    answers: list[object] = []
    try:
        answers.append(cast("object", await connection.read_response(disconnect_on_error=False, push_request=True)))
    except (ResponseError, BusyLoadingError) as error:
        answers.append(error)
    parse = getattr(getattr(getattr(connection, "_parser", None), "_reader", None), "gets", None)
    if parse is not None:  # redis-py's own parser has none: then there is one answer a call
        while isinstance(answer := parse(), list | bytes | int | Exception):
            if isinstance(answer, Exception) and not isinstance(answer, ResponseError | BusyLoadingError):
                raise answer
            answers.append(cast("object", answer))
    return answers


def _error_of(task: "asyncio.Task[None]") -> Exception:
    error = task.exception()
    return error if isinstance(error, Exception) else ConnectionError(f"reading ended: {error!r}")


def engine_maker(url: str, options: Options) -> MakeEngine:
    """Return what makes engines for an address, `redis://host:6379/0`; its query may have options of redis-py."""
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
    """Return what the names of channels begin with: the prefix, and the number of the database if it is not 0.

    Redis has one space of channels for all databases, so the name has to keep them apart.
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
"""How our connections are: they are not made anew behind our back, and what they read is bytes, whenever it comes."""

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
"""Options of redis-py that have no meaning for a relay or would break it; they may be in an address, without effect."""

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
"""Options of every connection that an address may have."""


def read_settings(url: str) -> dict[str, Any]:
    """Return how the connections of an address are made.

    Raises `ValueError` for an option that is unknown. One that a relay has to set itself is ignored, with a line in the
    log, so that an address which others use as well need not be changed.
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
        if not settings.get(name, 1) > 0:  # nothing would ever be read, or not before the end
            raise ValueError(f"a broker's address has an option that does not work: {name} must be more than 0")
    return {name: value for name, value in settings.items() if name not in IGNORED} | OURS


def check_settings(make: Callable[[], object]) -> None:
    """Raise `ValueError` if a connection cannot be made, without connecting, because of an option."""
    try:
        make()
    except (TypeError, RedisError) as error:
        raise ValueError(f"a broker's address has an option that does not work: {error}") from None


def split_hosts(netloc: str, port: int) -> tuple[str, list[tuple[str, int]]]:
    """Return the part before the `@`, and the hosts with their ports. Raises `ValueError` for what is no port."""
    user, _, hosts = netloc.rpartition("@")
    parts = [urlsplit(f"//{host}") for host in hosts.split(",")]
    return user, [(part.hostname or "localhost", part.port or port) for part in parts]


def read_options(url: str) -> dict[str, Any]:
    """Return what an address with several hosts says beside them, as redis-py reads it."""
    parts = urlsplit(url)
    user, _ = split_hosts(parts.netloc, 0)
    scheme = parts.scheme.partition("+")[0]
    settings = read_settings(
        parts._replace(scheme=scheme, netloc=f"{user}@localhost" if user else "localhost").geturl()
    )
    del settings["host"]
    return settings
