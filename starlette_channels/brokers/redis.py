"""Redis and Valkey: publish and subscribe, over two connections. Nothing is stored there.

redis-py's own ways to connect anew are not used: they hide that something was missed.
"""

# pyright: reportUnknownMemberType=false
# The library's own annotations are incomplete.

import asyncio
import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from starlette_channels.brokers.engine import Broken, Deliver, MakeEngine, Parcel
from starlette_channels.brokers.names import as_bytes
from starlette_channels.brokers.options import Options

PING_SECONDS = 3.0
"""After so much silence the server is asked whether it is there; after twice as much, it is not."""


class Verbs(NamedTuple):
    """How publishing and subscribing is called."""

    publish: str
    subscribe: str
    unsubscribe: str


CLASSIC = Verbs("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE")
SHARDED = Verbs("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE")


class RedisEngine:
    """One connection to publish on, and one to hear."""

    max_bytes = 1 << 29

    def __init__(self, connect: Callable[[], AbstractConnection], prefix: str, verbs: Verbs = CLASSIC) -> None:
        self._speaking, self._hearing = connect(), connect()
        self._prefix = f"{prefix}:".encode()
        self._verbs = verbs
        self._leaving: set[bytes] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._heard_at = 0.0

    async def start(self, deliver: Deliver, broken: Broken) -> None:
        """Connect, and begin to read."""
        for connection in (self._speaking, self._hearing):  # not at once: if one fails, none may be on its way
            await connection.connect()
        self._heard_at = asyncio.get_running_loop().time()
        self._tasks = [asyncio.create_task(work) for work in (self._read(deliver), self._ask())]
        for task in self._tasks:
            task.add_done_callback(lambda done: done.cancelled() or broken(_error_of(done)))

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Publish in one go, and see that the server has taken everything."""
        commands = [(self._verbs.publish, self.name(parcel.channel), parcel.data) for parcel in parcels]
        await self._speaking.send_packed_command(self._speaking.pack_commands(commands), check_health=False)
        for _ in commands:
            await self._speaking.read_response(disconnect_on_error=False)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Ask for channels; the answers are read among the messages."""
        await self._tell(self._verbs.subscribe, map(self.name, channels))

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Want no more of channels."""
        names = [self.name(channel) for channel in channels]
        self._leaving.update(names)
        await self._tell(self._verbs.unsubscribe, names)

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
        return self._prefix + as_bytes(channel)

    async def _tell(self, verb: str, names: Iterable[bytes]) -> None:
        commands = [(verb, name) for name in names]  # in a cluster, one command must not have more
        await self._hearing.send_packed_command(self._hearing.pack_commands(commands), check_health=False)

    async def _read(self, deliver: Deliver) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            answer = cast(
                "Sequence[Any]", await self._hearing.read_response(disconnect_on_error=False, push_request=True)
            )
            self._heard_at = clock()
            if answer[0] in (b"message", b"smessage"):
                deliver(answer[2])
            elif answer[0] in (b"unsubscribe", b"sunsubscribe"):
                self._note_end_of(answer[1])

    def _note_end_of(self, name: bytes) -> None:
        """Tell our own wish from that of a cluster's node, whose channels have moved to another one."""
        if name not in self._leaving:
            raise ConnectionError("a channel has moved to another node")
        self._leaving.discard(name)

    async def _ask(self) -> None:
        """Ask a silent server whether it is there: a connection may be dead without a word."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(PING_SECONDS)
            silence = clock() - self._heard_at
            if silence > 2 * PING_SECONDS:
                raise TimeoutError(f"no word from Redis for {silence:.0f} seconds")
            if silence >= PING_SECONDS / 2:
                await self._hearing.send_command("PING", check_health=False)
            await self._check_server()

    async def _check_server(self) -> None:
        """Raise if another server should be talked to by now."""


def _error_of(task: "asyncio.Task[None]") -> Exception:
    error = task.exception()
    return error if isinstance(error, Exception) else ConnectionError(f"reading ended: {error!r}")


def engine_maker(url: str, options: Options) -> MakeEngine:
    """Return what makes engines for an address, `redis://host:6379/0`; its query may have all options of redis-py."""
    parts = urlsplit(url)
    if parts.scheme != "unix" and not re.fullmatch(r"/?|/\d+", parts.path):
        raise ValueError("a broker's address for Redis is redis://host:6379/0, the number of a database at its end")
    from_url = cast("Callable[..., ConnectionPool]", ConnectionPool.from_url)
    pool = from_url(url, **ONCE)
    check_options(pool.make_connection)
    return lambda: RedisEngine(pool.make_connection, options.prefix)


def check_options(make: Callable[[], object]) -> None:
    """Raise `ValueError` if a connection cannot be made, without connecting, because of an option."""
    try:
        make()
    except TypeError as error:
        raise ValueError(f"a broker's address has an option that is unknown: {error}") from None


ONCE: dict[str, Any] = {"protocol": 2, "retry": Retry(NoBackoff(), 0), "socket_timeout": None}
"""How our connections are: they are not made anew behind our back."""


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
    options = dict(
        parse_url(parts._replace(scheme=scheme, netloc=f"{user}@localhost" if user else "localhost").geturl())
    )
    del options["host"]
    return options
