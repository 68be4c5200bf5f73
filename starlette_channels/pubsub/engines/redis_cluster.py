"""Redis Cluster: sharded publish and subscribe (Redis 7), which keeps each channel on one node.

redis-py finds the node of a channel; the connections are our own. When slots move, all of them are replaced.
"""

# pyright: reportUnknownMemberType=false
# The library's own annotations are incomplete.

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, SSLConnection

from starlette_channels.pubsub.engines.base import Broken, Deliver, MakeEngine, Parcel
from starlette_channels.pubsub.engines.redis import (
    OURS,
    SHARDED,
    RedisEngine,
    check_settings,
    read_options,
    split_hosts,
)
from starlette_channels.pubsub.engines.url import Options


class RedisClusterEngine:
    """One engine for each primary node."""

    max_bytes: int = RedisEngine.max_bytes

    def __init__(self, hosts: Sequence[tuple[str, int]], settings: Mapping[str, Any], prefix: str) -> None:
        self._hosts, self._settings = hosts, settings
        self._prefix = prefix
        self._cluster: RedisCluster | None = None
        self._engines: dict[str, RedisEngine] = {}

    async def start(self, deliver: Deliver, broken: Broken) -> None:
        """Discover the nodes, and connect to all primaries."""
        doors = [ClusterNode(host, port) for host, port in self._hosts]
        self._cluster = RedisCluster(startup_nodes=doors, **self._settings)
        try:
            await self._cluster.initialize()
        finally:
            await asyncio.gather(*(door.disconnect() for door in doors))  # redis-py does not close these
        self._engines = {
            node.name: RedisEngine(_connector(node), self._prefix, SHARDED) for node in self._cluster.get_primaries()
        }
        for engine in self._engines.values():
            await engine.start(deliver, broken)

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Publish on all nodes concurrently; the order is kept for each node."""
        by_engine: dict[RedisEngine, list[Parcel]] = {}
        for parcel in parcels:
            by_engine.setdefault(self._engine_of(parcel.channel), []).append(parcel)
        await asyncio.gather(*(engine.publish(its) for engine, its in by_engine.items()))

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to each channel at its node; returns when all have confirmed."""
        await asyncio.gather(*(engine.subscribe(its) for engine, its in self._divided(channels)))

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Unsubscribe from channels."""
        await asyncio.gather(*(engine.unsubscribe(its) for engine, its in self._divided(channels)))

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(engine.close() for engine in self._engines.values()), return_exceptions=True)
        if self._cluster is not None:
            await self._cluster.aclose()

    def _divided(self, channels: Collection[str]) -> Collection[tuple[RedisEngine, list[str]]]:
        by_engine: dict[RedisEngine, list[str]] = {}
        for channel in channels:
            by_engine.setdefault(self._engine_of(channel), []).append(channel)
        return by_engine.items()

    def _engine_of(self, channel: str) -> RedisEngine:
        some_engine = next(iter(self._engines.values()), None)
        if self._cluster is None or some_engine is None:
            raise ConnectionError("there is no node of the cluster")
        slot = self._cluster.keyslot(some_engine.name(channel))
        return self._engines[self._cluster.nodes_manager.get_node_from_slot(slot).name]


def _connector(node: ClusterNode) -> Callable[[], AbstractConnection]:
    options: dict[str, Any] = {**node.connection_kwargs, **OURS}
    return lambda: node.connection_class(**options)


def engine_maker(url: str, options: Options) -> MakeEngine:
    """Return a factory of engines for `redis+cluster://user:password@host:6379,other:6379`."""
    parts = urlsplit(url)
    if parts.path not in ("", "/") or not parts.netloc:
        raise ValueError(
            "a broker's address for a cluster is redis+cluster://host:6379,other:6379; it has no databases"
        )
    _, hosts = split_hosts(parts.netloc, 6379)
    settings = read_options(url)
    if settings.pop("db", 0):
        raise ValueError("a broker's address for a cluster has no databases: leave out db, or give it a prefix")
    settings["ssl"] = settings.pop("connection_class", None) is SSLConnection
    check_settings(lambda: RedisCluster(startup_nodes=[ClusterNode("localhost", 0)], **settings))
    return lambda: RedisClusterEngine(hosts, settings, options.prefix)
