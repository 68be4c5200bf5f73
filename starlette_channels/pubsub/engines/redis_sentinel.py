"""Redis Sentinel: the sentinels know which server is the primary, and promote another one when it fails."""

# pyright: reportUnknownMemberType=false
# The library's own annotations are incomplete.

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.exceptions import RedisError

from starlette_channels.exceptions import explain
from starlette_channels.pubsub.engines.base import MakeEngine
from starlette_channels.pubsub.engines.redis import RedisEngine, check_settings, prefix_of, read_options, split_hosts
from starlette_channels.pubsub.engines.url import Options

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override


class RedisSentinelEngine(RedisEngine):
    """Two connections to the primary, and one to a sentinel."""

    def __init__(self, name: str, hosts: Sequence[tuple[str, int]], settings: Mapping[str, Any], prefix: str) -> None:
        self._sentinel = Sentinel(hosts, sentinel_kwargs={"socket_timeout": 1.0})
        self._pool = SentinelConnectionPool(name, self._sentinel, **settings)
        super().__init__(self._pool.make_connection, prefix)

    @override
    async def close(self) -> None:
        await super().close()
        for client in self._sentinel.sentinels:
            await client.aclose()

    @override
    async def _check_server(self) -> None:
        """Ask the sentinels for the primary: a demoted one accepts commands for a while.

        Sentinels that do not answer, or know no primary, are ignored.
        """
        try:
            address = cast("tuple[str, int]", await self._pool.get_master_address())
        except RedisError as error:
            logger.debug("The sentinels know of no primary: %s", explain(error))
            return
        if address != (getattr(self._subscribing, "host", ""), getattr(self._subscribing, "port", 0)):
            raise ConnectionError("another server is the primary now")


def engine_maker(url: str, options: Options) -> MakeEngine:
    """Return a factory of engines for `redis+sentinel://user:password@host:26379,other:26379/name/0`."""
    parts = urlsplit(url)
    name, _, database = parts.path.strip("/").partition("/")
    if not name:
        raise ValueError("a broker's address for Sentinel is redis+sentinel://host:26379,other:26379/name/0")
    _, hosts = split_hosts(parts.netloc, 26379)
    if database and not database.isdecimal():
        raise ValueError("a broker's address for Sentinel is redis+sentinel://host:26379,other:26379/name/0")
    settings = read_options(parts._replace(path=f"/{database}").geturl())
    prefix = prefix_of(options, settings)

    def make() -> RedisSentinelEngine:
        return RedisSentinelEngine(name, hosts, settings, prefix)

    check_settings(make)
    return make
