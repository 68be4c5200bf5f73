"""Zenoh: without any server, between the processes of one machine; or through a router.

What arrives at a link is worked off in order, so the answer to a query tells that what was sent before has been done: a
router answers one for keys that nobody serves, and the processes of one machine serve a key each.

It never looks for others by multicast or gossip. A message waits until there is room for it, in a thread of its own,
instead of being dropped; a process that does not read for a second is cut off.
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
"""How long a process that starts waits for the others, in case that one of them hangs."""

PEER_SECONDS = 1.0
"""How long the others have to take note of a subscription; one that hangs is not waited for any longer."""

ROUTER_SECONDS = 3.0
"""How long a router has to answer; one that hangs is left."""

PERSONAL = "@here"
"""The part of a key that each process has for itself. Wildcards do not match what begins with `@`."""

LAST_CALLS_SECONDS = 0.05
"""How long a closed session may still call us. The interpreter must not end during such a call: it would be aborted."""

COMMON: dict[str, Any] = {
    "scouting/multicast/enabled": False,
    "scouting/gossip/enabled": False,
    "scouting/delay": 0,
    "transport/unicast/open_timeout": 2_000,
    "transport/unicast/accept_timeout": 2_000,
    "transport/link/tx/lease": 4_000,
    "transport/link/tx/queue/congestion_control/block/wait_before_close": 1_000_000,
}
"""What differs from Zenoh's own settings."""

MESH: dict[str, Any] = {
    "mode": "peer",
    "connect/exit_on_failure": False,
    "connect/timeout_ms": -1,  # the others may not listen yet, or hang
    "connect/retry": {"period_init_ms": 50, "period_max_ms": 1_000, "period_increase_factor": 2},
}
"""What is added for the processes of one machine."""

ROUTED: dict[str, Any] = {
    "mode": "client",
    "connect/timeout_ms": 0,  # once: a session that waits for its router by itself hides that it was away
}
"""What is added for a router."""


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
        """Open a session, and meet those who are there."""
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._broken = broken
        await self._worker.run(self._open)

    async def publish(self, parcels: Sequence[Parcel]) -> None:
        """Put everything on its way; a router has it when this returns."""
        await self._worker.run(self._put, parcels)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to channels; return when the router, or each of the others, has taken note of it."""
        await self._worker.run(self._declare, channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Take it back."""
        await self._worker.run(self._undeclare, channels)

    async def close(self) -> None:
        """Close the session, behind what is on its way."""
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
        """Answer the questions of the others, and wait until each has answered one: then we know what it wants."""
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
        """Return when the router has done all that it was sent; raise if it does not answer."""
        for reply in session.get(f"{self._prefix}/{PERSONAL}", timeout=ROUTER_SECONDS):
            if reply.err is not None:
                raise TimeoutError(f"the Zenoh router has not answered for {ROUTER_SECONDS:.0f} seconds")
        if not session.info.routers_zid():
            raise ConnectionError("the Zenoh router is away")

    def _ask_peers(self, session: zenoh.Session, seconds: float) -> set[str]:
        """Return who of the others has answered within this time, and so has done all that it was sent."""
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
                )  # in the engine's own thread: Zenoh does not say when its last call is over
        finally:
            if self._claim is not None:
                self._claim.close()

    def _opened(self) -> tuple[zenoh.Session, Subscribers]:
        if self._session is None or self._subscribers is None:
            raise ConnectionError("the Zenoh session is not open")
        return self._session, self._subscribers

    # In threads of Zenoh.

    def _take(self, data: bytes) -> None:
        self._arrived.append(data)
        if not self._is_called:
            self._is_called = True
            self._call(self._hand_on)

    def _note_transport(self, event: zenoh.TransportEvent) -> None:
        lost = event.kind == zenoh.SampleKind.DELETE
        if lost and self._folder is None:  # through a router; of the others on this machine, anyone may go
            self._call(self._broken, ConnectionError("the Zenoh router is away"))

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is over
            self._loop.call_soon_threadsafe(function, *args)

    # In the event loop again.

    def _hand_on(self) -> None:
        self._is_called = False
        if arrived := [self._arrived.popleft() for _ in range(len(self._arrived))]:
            self._deliver(arrived)


def _config(settings: Mapping[str, Any], file: str | None) -> zenoh.Config:
    """Return Zenoh's settings: its own, those of a file, and above both what the relay depends on."""
    config = zenoh.Config() if file is None else zenoh.Config.from_file(file)
    for key, value in settings.items():
        config.insert_json5(key, json.dumps(value))
    return config


def _endpoint(socket: Path) -> str:
    return f"unixsock-stream/{socket}"


def engine_maker(url: str, options: Options) -> MakeEngine:
    """Return what makes engines for an address.

    That is `zenoh://` for the processes of one machine, `zenoh://user:password@host:7447` for a router, `zenoh+tls://`
    for one that does TLS, all with `?config=FILE` for more of Zenoh's own settings.
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
