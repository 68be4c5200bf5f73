"""Redis and Valkey: publish and subscribe, over two connections. Nothing is stored there.

redis-py's own ways to connect anew are not used: they hide that something was missed.
"""

# pyright: reportUnknownMemberType=false
# The library's own annotations are incomplete.

import asyncio
import contextlib
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from starlette_channels.brokers.engine import Broken, Deliver, MakeEngine, Parcel
from starlette_channels.brokers.names import as_bytes
from starlette_channels.brokers.options import Options

PING_SECONDS = 3.0
"""After so much silence the server is asked whether it is there; after twice as much, it is not."""


class RedisEngine:
    """One connection to publish on, and one to hear."""

    max_bytes = 1 << 29

    def __init__(self, connect: Callable[[], AbstractConnection], prefix: str) -> None:
        self._speaking, self._hearing = connect(), connect()
        self._prefix = f"{prefix}:".encode()
        self._tasks: list[asyncio.Task[None]] = []
        self._heard_at = 0.0

    async def start(self, deliver: Deliver, broken: Broken) -> None:
        """Connect, and begin to read."""
        await asyncio.gather(self._speaking.connect(), self._hearing.connect())
        self._heard_at = asyncio.get_running_loop().time()
        self._tasks = [asyncio.create_task(work) for work in (self._read(deliver), self._ask())]
        for task in self._tasks:
            task.add_done_callback(lambda done: done.cancelled() or broken(_error_of(done)))

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Publish in one go, and see that the server has taken everything."""
        commands = [("PUBLISH", self._name(parcel.channel), parcel.data) for parcel in parcels]
        await self._speaking.send_packed_command(self._speaking.pack_commands(commands), check_health=False)
        for _ in commands:
            await self._speaking.read_response(disconnect_on_error=False)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Ask for channels; the answer is read among the messages."""
        await self._hearing.send_command("SUBSCRIBE", *map(self._name, channels), check_health=False)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Want no more of channels."""
        await self._hearing.send_command("UNSUBSCRIBE", *map(self._name, channels), check_health=False)

    async def close(self) -> None:
        """Close both connections."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in (self._speaking, self._hearing):
            await connection.disconnect(nowait=True)

    def _name(self, channel: str) -> bytes:
        return self._prefix + as_bytes(channel)

    async def _read(self, deliver: Deliver) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            answer = cast(
                "Sequence[Any]",
                await self._hearing.read_response(timeout=math.inf, disconnect_on_error=False, push_request=True),
            )
            self._heard_at = clock()
            if answer[0] == b"message":
                deliver(answer[2])

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


def _error_of(task: "asyncio.Task[None]") -> Exception:
    error = task.exception()
    return error if isinstance(error, Exception) else ConnectionError(f"reading ended: {error!r}")


def engine_maker(url: str, options: Options) -> MakeEngine:
    """Return what makes engines for an address, which may have all options of redis-py."""
    parts = urlsplit(url)
    if parts.scheme != "unix" and not re.fullmatch(r"/?|/\d+", parts.path):
        raise ValueError("a broker's address for Redis is redis://host:6379/0, the number of a database at its end")
    from_url = cast("Callable[..., ConnectionPool]", ConnectionPool.from_url)
    pool = from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=None, health_check_interval=0)
    try:
        pool.make_connection()
    except TypeError as error:
        raise ValueError(f"a broker's address has an option that is unknown: {error}") from None
    return lambda: RedisEngine(pool.make_connection, options.prefix)
