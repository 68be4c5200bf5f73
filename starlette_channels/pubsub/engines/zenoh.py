"""Zenoh: peer to peer between the processes of one machine, without a server; or through a router.

Messages of a link are processed in order, so the answer to a query confirms all messages before it. A router answers
a query even for a key without a queryable; of the processes of one machine, each declares a queryable of its own.

Multicast and gossip discovery are disabled. A full link blocks the publish, in a thread of its own, instead of dropping
messages; a process that does not read for a second is disconnected.
"""

# pyright: reportUnknownMemberType=false
# The library's own annotations are incomplete.

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import zenoh

from starlette_channels.pubsub.engines.base import Broken, Deliver, MakeEngine, Parcel
from starlette_channels.pubsub.engines.url import Options, check_known
from starlette_channels.pubsub.engines.zenoh_discovery import Claim, mesh_folder
from starlette_channels.pubsub.engines.zenoh_keys import Subscribers, key_of
from starlette_channels.pubsub.engines.zenoh_thread import ZenohThread

PORT = 7447
MEET_SECONDS = 2.0
"""Maximal wait of a starting process for the answers of the others, in seconds, in case one of them hangs."""

PEER_SECONDS = 1.0
"""Maximal wait for the other processes to process a subscription, in seconds, in case one of them hangs."""

ROUTER_SECONDS = 3.0
"""Time limit for an answer of a router, in seconds; then the engine fails."""

PERSONAL = "@here"
"""Part of the key of each process's own queryable. Wildcards do not match key parts that begin with `@`."""

LAST_CALLS_SECONDS = 0.05
"""Time for which a closed session may still call back, in seconds. If the interpreter exits during such a call, the
process is aborted.
"""

COMMON: dict[str, Any] = {
    "scouting/multicast/enabled": False,
    "scouting/gossip/enabled": False,
    "scouting/delay": 0,
    "transport/unicast/open_timeout": 2_000,
    "transport/unicast/accept_timeout": 2_000,
    "transport/link/tx/lease": 4_000,
    "transport/link/tx/queue/congestion_control/block/wait_before_close": 1_000_000,
}
"""Settings that differ from Zenoh's defaults."""

MESH: dict[str, Any] = {
    "mode": "peer",
    "connect/exit_on_failure": False,
    "connect/timeout_ms": -1,  # the others may not listen yet, or hang
    "connect/retry": {"period_init_ms": 50, "period_max_ms": 1_000, "period_increase_factor": 2},
}
"""Additional settings for the processes of one machine."""

ROUTED: dict[str, Any] = {
    "mode": "client",
    "connect/timeout_ms": 0,  # one attempt: a session that reconnects by itself hides losses
}
"""Additional settings for a router."""


class ZenohEngine:
    """One session."""

    max_bytes = 1 << 30

    def __init__(self, config: dict[str, Any], file: str | None, folder: Path | None, prefix: str) -> None:
        self._settings, self._file, self._folder, self._prefix = config, file, folder, prefix
        self._worker = ZenohThread()
        self._claim: Claim | None = None
        self._session: zenoh.Session | None = None
        self._subscribers: Subscribers | None = None
        self._arrived: deque[bytes] = deque()
        self._is_called = False

    async def start(self, deliver: Deliver, broken: Broken) -> None:
        """Open a session; on one machine, wait for the answers of the other processes."""
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._broken = broken
        await self._worker.run(self._open)

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Publish parcels; with a router, returns when it has processed them."""
        await self._worker.run(self._put, parcels)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to channels; returns when the router, or each of the other processes, has processed it."""
        await self._worker.run(self._declare, channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Unsubscribe from channels."""
        await self._worker.run(self._undeclare, channels)

    async def close(self) -> None:
        """Close the session, after the calls before."""
        try:
            await self._worker.run(self._close)
        finally:
            self._worker.close()

    # In the worker's thread.

    def _open(self) -> None:
        settings = dict(self._settings)
        others: dict[str, Path] = {}
        if self._folder is not None:
            self._claim = Claim(self._folder)
            others = self._claim.others()
            settings |= MESH | {
                "id": self._claim.id,
                "listen/endpoints": [_endpoint(self._claim.socket)],
                "connect/endpoints": [_endpoint(socket) for socket in others.values()],
            }
        session = self._session = zenoh.open(_config(settings, self._file))
        self._subscribers = Subscribers(session, self._prefix, self._take)
        self._events = session.info.declare_transport_events_listener(self._note_transport)
        if self._claim is not None:
            self._meet(session, self._claim.id, set(others))

    def _meet(self, session: zenoh.Session, me: str, missing: set[str]) -> None:
        """Answer queries of the others, and wait until each has answered one: then its subscriptions are known here."""
        mine = f"{self._prefix}/{PERSONAL}/{me}"

        def answer(query: zenoh.Query) -> None:
            query.reply(mine, b"")

        self._answering = session.declare_queryable(mine, answer)
        deadline = time.monotonic() + MEET_SECONDS
        while missing and (left := deadline - time.monotonic()) > 0:
            if not missing.isdisjoint(str(peer) for peer in session.info.peers_zid()):
                missing -= self._ask_peers(session, min(left, PEER_SECONDS))
            time.sleep(0.01)  # in the engine's own thread, which has nothing else to do

    def _put(self, parcels: Sequence[Parcel]) -> None:
        session, _ = self._opened()
        for parcel in parcels:
            key = key_of(self._prefix, parcel.channel)
            session.put(key, parcel.data, congestion_control=zenoh.CongestionControl.BLOCK)
        if self._folder is None:
            self._ask_router(session)

    def _declare(self, channels: Collection[str]) -> None:
        session, subscribers = self._opened()
        subscribers.add(channels)
        if self._folder is None:
            self._ask_router(session)
        else:
            self._ask_peers(session, PEER_SECONDS)

    def _undeclare(self, channels: Collection[str]) -> None:
        _, subscribers = self._opened()
        subscribers.remove(channels)

    def _ask_router(self, session: zenoh.Session) -> None:
        """Return when the router has processed all messages so far; raises if it does not answer."""
        for reply in session.get(f"{self._prefix}/{PERSONAL}", timeout=ROUTER_SECONDS):
            if reply.err is not None:
                raise TimeoutError(f"the Zenoh router has not answered for {ROUTER_SECONDS:.0f} seconds")
        if not session.info.routers_zid():
            raise ConnectionError("the Zenoh router is away")

    def _ask_peers(self, session: zenoh.Session, seconds: float) -> set[str]:
        """Return the ids of the processes that answer within `seconds`: they have processed all messages so far."""
        replies = session.get(
            f"{self._prefix}/{PERSONAL}/*",
            timeout=seconds,
            target=zenoh.QueryTarget.ALL,
            consolidation=zenoh.ConsolidationMode.NONE,
            allowed_destination=zenoh.Locality.REMOTE,
        )
        return {str(reply.ok.key_expr).rpartition("/")[2] for reply in replies if reply.ok is not None}

    def _close(self) -> None:
        try:
            if self._session is not None:
                self._session.close()
                time.sleep(
                    LAST_CALLS_SECONDS
                )  # in the engine's own thread: Zenoh does not report the end of its last call
        finally:
            if self._claim is not None:
                self._claim.close()

    def _opened(self) -> tuple[zenoh.Session, Subscribers]:
        if self._session is None or self._subscribers is None:
            raise ConnectionError("the Zenoh session is not open")
        return self._session, self._subscribers

    # In the threads of Zenoh.

    def _take(self, data: bytes) -> None:
        self._arrived.append(data)
        if not self._is_called:
            self._is_called = True
            self._call(self._hand_on)

    def _note_transport(self, event: zenoh.TransportEvent) -> None:
        lost = event.kind == zenoh.SampleKind.DELETE
        if lost and self._folder is None:  # only the router: a process on this machine may end at any time
            self._call(self._broken, ConnectionError("the Zenoh router is away"))

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(function, *args)

    # In the event loop.

    def _hand_on(self) -> None:
        self._is_called = False
        if arrived := [self._arrived.popleft() for _ in range(len(self._arrived))]:
            self._deliver(arrived)


def _config(settings: Mapping[str, Any], file: str | None) -> zenoh.Config:
    """Return the settings, in ascending priority: Zenoh's defaults, those of a file, and those of the relay."""
    config = zenoh.Config() if file is None else zenoh.Config.from_file(file)
    for key, value in settings.items():
        config.insert_json5(key, json.dumps(value))
    return config


def _endpoint(socket: Path) -> str:
    return f"unixsock-stream/{socket}"


def engine_maker(url: str, options: Options) -> MakeEngine:
    """Return a factory of engines for an address.

    `zenoh://` is for the processes of one machine, `zenoh://user:password@host:7447` for a router, and `zenoh+tls://`
    for a router with TLS. All may have `?config=FILE`, a file with further settings of Zenoh.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    file, ca = query.pop("config", None), query.pop("ca", None)
    check_known(query, ("config", "ca"))
    if parts.path not in ("", "/"):
        raise ValueError("a broker's address for Zenoh is zenoh:// or zenoh://host:7447; a name goes into ?prefix=")
    for name in (file, ca):
        if name is not None and not Path(name).is_file():
            raise ValueError(f"a broker's address names the file {name}, which does not exist")
    is_encrypted = parts.scheme == "zenoh+tls"
    if (is_encrypted and not parts.hostname) or (ca is not None and not is_encrypted):
        raise ValueError("a broker's address for Zenoh with TLS is zenoh+tls://host:7447?ca=FILE")
    settings = dict(COMMON)
    try:
        _config(settings, file)
    except zenoh.ZError as error:
        raise ValueError(f"a broker's address names the file {file}, which Zenoh cannot read: {error}") from None
    if not parts.hostname:
        folder = mesh_folder(None if options.prefix == Options().prefix else options.prefix)
        return lambda: ZenohEngine(settings, file, folder, options.prefix)
    settings |= _to_router(parts)
    if ca is not None:
        settings["transport/link/tls/root_ca_certificate"] = ca
    return lambda: ZenohEngine(settings, file, None, options.prefix)


def _to_router(parts: SplitResult) -> dict[str, Any]:
    """Return the settings of a client of a router."""
    protocol = "tls" if parts.scheme == "zenoh+tls" else "tcp"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    settings = ROUTED | {"connect/endpoints": [f"{protocol}/{host}:{parts.port or PORT}"]}
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        settings |= {"transport/auth/usrpwd/user": user, "transport/auth/usrpwd/password": password}
    return settings
