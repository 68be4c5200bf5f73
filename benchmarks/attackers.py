"""Attacks: async functions that run until they are cancelled.

They run in a process of their own, with a lower priority than the honest clients, whose latencies are therefore the
server's.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import count
from typing import Any, TypeAlias

from benchmarks.apps.attacked_app import tokens
from benchmarks.machine import permit_files
from tests.fuzzing.wire import BINARY, CONTINUATION, PING, Address, Closed, Refused, Wire, frame, text

Attack: TypeAlias = Callable[[int], Coroutine[Any, Any, None]]

HALF_OPEN = 10_000
SLOW_READERS = 1_000
SLOW_SECONDS = 6.0, 12.0
"""Minimum and maximum time of a slow reader's connection, long enough to be detected as slow."""

FLOODERS = 20
USERS = 5
"""Number of accounts of the flooding clients."""

TINY = 1_000
"""Number of tiny messages per write."""

HUGE_BYTES = 990_000
AT_ONCE = 50
PAUSE_AFTER_REFUSAL = 0.05

GONE = (OSError, Closed, Refused, TimeoutError, EOFError, ValueError)
"""Errors that mean that the server has closed the connection."""


def _path(name: str) -> str:
    return f"/socket/websocket?vsn=2.0.0&token={tokens.sign(name)}"


async def half_open_handshakes(port: int) -> None:
    """Open ten thousand connections with an incomplete request."""
    kept: list[asyncio.StreamWriter] = []
    while len(kept) < HALF_OPEN:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /socket/websocket HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            kept.append(writer)
        if len(kept) % AT_ONCE == 0:
            await asyncio.sleep(0.01)  # the pace of the attack: a few thousand a second
    await asyncio.Event().wait()


def _many(one: Attack, at_once: int = FLOODERS) -> Attack:
    async def attack(port: int) -> None:
        async def again_and_again() -> None:
            while True:
                with suppress(*GONE):
                    await one(port)
                await asyncio.sleep(PAUSE_AFTER_REFUSAL)

        await asyncio.gather(*(again_and_again() for _ in range(at_once)))

    return attack


_names = count()


async def _listen_lazily(port: int) -> None:
    wire = await Wire.open(Address(port, lazy=True), _path(f"slow {next(_names) % SLOW_READERS}"))
    wire.send(text("1", "1", "feed", "phx_join"))
    await asyncio.sleep(random.uniform(*SLOW_SECONDS))
    await wire.discard()


slow_readers = _many(_listen_lazily, SLOW_READERS)
"""Connect a thousand clients to the feed that never read, and reconnect."""


async def _flood(port: int, message: Callable[[int], str | bytes], many: int) -> None:
    """Write as fast as the server reads, and read its answers, until it closes."""
    wire = await Wire.open(Address(port), _path(f"flood {next(_names) % USERS}"))
    try:
        await wire.join("room:flood")
        reading = asyncio.create_task(_read(wire))
        refs = count(2)
        while not reading.done():
            wire.write(b"".join(frame(message(next(refs))) for _ in range(many)))
            await wire.drain()
    finally:
        await wire.discard()


async def _read(wire: Wire) -> None:
    with suppress(*GONE):
        while True:
            await wire.receive()


@_many
async def floods_of_joins(port: int) -> None:
    """Join and leave as fast as possible."""
    await _flood(port, lambda n: text(str(n), str(n), f"room:{n % 7}", "phx_join"), TINY)


@_many
async def floods_of_tiny_messages(port: int) -> None:
    """Push tiny events without end."""
    await _flood(port, lambda n: text("1", str(n), "room:flood", "echo"), TINY)


STORMERS = 300
JOINS = 100
"""The default of `Limits.channels`."""


async def _storm(port: int) -> None:
    wire = await Wire.open(Address(port), _path(f"storm {next(_names) % STORMERS}"))
    try:
        reading = asyncio.create_task(_read(wire))
        wire.write(b"".join(frame(text(str(n), str(n), f"room:{n}", "phx_join")) for n in range(JOINS)))
        await wire.drain()
        await asyncio.wait([reading], timeout=random.uniform(*SLOW_SECONDS))
    finally:
        await wire.discard()


join_storms = _many(_storm, STORMERS)
"""Connect three hundred clients that join a hundred topics at once, stay a while, and reconnect."""


DROPPED = 50
"""Number of clients that disconnect at the same moment, as if their proxy was killed."""


async def joins_then_drop(port: int) -> None:
    """Connect waves of clients that join a hundred topics each, and disconnect at the same moment."""
    joins = b"".join(frame(text(str(n), str(n), f"room:{n}", "phx_join")) for n in range(JOINS))

    async def join(wires: list[Wire]) -> None:
        with suppress(*GONE):
            wire = await Wire.open(Address(port), _path(f"drop {next(_names) % STORMERS}"))
            wires.append(wire)
            wire.write(joins)
            await wire.until(str(JOINS - 1))

    while True:
        wires: list[Wire] = []
        await asyncio.gather(*(join(wires) for _ in range(DROPPED)))
        for wire in wires:
            wire.abort()
        await asyncio.sleep(PAUSE_AFTER_REFUSAL)


@_many
async def empty_fragments(port: int) -> None:
    """Send a message of endless empty fragments, and pings."""
    wire = await Wire.open(Address(port), _path(f"flood {next(_names) % USERS}"))
    try:
        reading = asyncio.create_task(_read(wire))
        wire.write(frame("", final=False))
        while not reading.done():
            wire.write((frame(b"", CONTINUATION, final=False) * 9 + frame(b"", PING)) * TINY)
            await wire.drain()
    finally:
        await wire.discard()


async def _send_early(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = f"GET {_path('early')} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(
            f"{lines}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while True:
            writer.write(frame(bytes(EARLY_BYTES), BINARY, final=False) + frame(b"", CONTINUATION, final=False))
            await writer.drain()
    finally:
        writer.transport.abort()


EARLY_BYTES = 60_000
early_data = _many(_send_early, 150)
"""Connect 150 clients that send as much as possible before the answer to their handshake."""

LARGE_REF = "[" + "1e15," * 190_000 + "1e15]"
LONG_REF = "x" * 3_900


async def _send_large_refs(port: int, ref: str) -> None:
    wire = await Wire.open(Address(port), _path(f"flood {next(_names) % USERS}"))
    try:
        reading = asyncio.create_task(_read(wire))
        wire.write(frame(f'[{ref},"1","room:refs","phx_join",{{}}]'))
        while not reading.done():
            wire.write(b"".join(frame(text(None, str(n), "room:refs", "echo")) for n in range(TINY)))
            await wire.drain()
    finally:
        await wire.discard()


@_many
async def large_refs(port: int) -> None:
    """Join with a large `join_ref`, which would be sent back with many small replies."""
    await _send_large_refs(port, LARGE_REF)
    await _send_large_refs(port, json.dumps(LONG_REF))


@_many
async def floods_of_broken_messages(port: int) -> None:
    """Send malformed messages."""
    await _flood(port, lambda n: f"[{n}", TINY)


@_many
async def huge_messages(port: int) -> None:
    """Send messages of nearly the maximum size, and some larger ones."""
    body = json.dumps({"x": "x" * HUGE_BYTES})
    await _flood(port, lambda n: f'["1",{n},"room:flood","echo",{body if n % 3 else [body] * 3}]', 1)


async def _guess(port: int) -> None:
    await Wire.open(Address(port), f"/socket/websocket?vsn=2.0.0&token=guess-{next(_names)}")


bad_tokens = _many(_guess)


POLLERS = 50
BODY_BYTES = 7_990_000
NEWLINES = b"\n" * BODY_BYTES
MALFORMED = b'["1",[' + b"[]," * 325_000 + b']],"room:a","x",{}]'
"""Nearly a megabyte of JSON with an error at its end."""

FROM_ELSEWHERE = "sec-fetch-site: same-site\r\n"


class Http:
    """An HTTP connection for raw requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> "Http":
        """Open the connection."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, method: str, path: str, head: str = "", body: bytes = b"", announced: int | None = None) -> Any:
        """Send a request and return the response; a larger `content-length` than the body never ends."""
        length = f"content-length: {len(body) if announced is None else announced}\r\n" if method == "POST" else ""
        self._writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{length}{head}\r\n".encode() + body)
        await self._writer.drain()
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        size = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if not size:
            raise Refused(int(answer.split()[1]))
        return json.loads(await self._reader.readexactly(size))

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


def _poll_path(token: str = "") -> str:
    user = f"flood {next(_names) % USERS}"
    return f"/socket/longpoll?vsn=2.0.0&token={tokens.sign(user)}" + (f"&token={token}" if token else "")


async def _post(port: int, body: bytes, head: str = "", announced: int | None = None) -> None:
    """Open a session, and post the same body until the session ends."""
    http = await Http.open(port)
    try:
        session = _poll_path((await http.ask("GET", _poll_path()))["token"])
        status = 0
        while status != 410:
            status = (await http.ask("POST", session, head, body, announced))["status"]
    finally:
        http.close()


@_many
async def floods_of_newlines(port: int) -> None:
    """Post long-polling bodies of eight million empty lines."""
    await _post(port, NEWLINES, "content-type: application/x-ndjson\r\n")


@_many
async def malformed_bodies(port: int) -> None:
    """Post long-polling bodies with an error at the end."""
    await _post(port, MALFORMED)


async def _stall(port: int) -> None:
    await _post(port, b"[" * BODY_BYTES, "content-type: application/x-ndjson\r\n", BODY_BYTES + 1)


stalled_bodies = _many(_stall, POLLERS)
"""Post long-polling bodies that never end, in many sessions."""


@_many
async def pictures_of_elsewhere(port: int) -> None:
    """Send requests of a visitor's browser for images of another host's page: they must not open sessions."""
    http = await Http.open(port)
    try:
        while True:
            await http.ask("GET", _poll_path(), FROM_ELSEWHERE)
    finally:
        http.close()


async def _flood_relay(port: int, messages: Callable[[int], str]) -> None:
    wire = await Wire.open(Address(port), _path(f"flood {next(_names) % USERS}"))
    try:
        wire.send(text("1", "1", "relay:a", "phx_join"))
        reading = asyncio.create_task(_read(wire))
        refs = count(2)
        while not reading.done():
            wire.write(b"".join(frame(messages(next(refs))) for _ in range(TINY)))
            await wire.drain()
    finally:
        await wire.discard()


RESERVED = ("phx_close", "phx_error", "phx_reply", "chan_reply_2")


@_many
async def reserved_events(port: int) -> None:
    """Send reserved events, which would end channels of other clients, to an application that passes all events on."""
    await _flood_relay(port, lambda n: text("1", None, "relay:a", RESERVED[n % len(RESERVED)]))


@_many
async def lines_in_the_log(port: int) -> None:
    """Cause log lines and tracebacks: crashes of a handler, refused joins and unknown events."""
    deeds: tuple[Callable[[int], str], ...] = (
        lambda n: text(str(n), str(n), "room:log", "phx_join"),
        lambda n: text(str(n - 1), str(n), "room:log", "crash"),
        lambda n: text("1", str(n), "relay:b", "phx_join", {"refuse": n}),
        lambda n: text("1", str(n), "relay:a", "presence_state"),
        lambda n: text("1", str(n), "nowhere", "nothing"),
    )
    await _flood_relay(port, lambda n: deeds[n % len(deeds)](n))


ATTACKS: dict[str, Attack] = {
    "half-open handshakes": half_open_handshakes,
    "slow readers": slow_readers,
    "floods of joins": floods_of_joins,
    "join storms": join_storms,
    "joins then drop": joins_then_drop,
    "empty fragments": empty_fragments,
    "early data": early_data,
    "large refs": large_refs,
    "floods of tiny messages": floods_of_tiny_messages,
    "floods of broken messages": floods_of_broken_messages,
    "huge messages": huge_messages,
    "bad tokens": bad_tokens,
    "floods of newlines": floods_of_newlines,
    "malformed bodies": malformed_bodies,
    "stalled bodies": stalled_bodies,
    "pictures of elsewhere": pictures_of_elsewhere,
    "reserved events": reserved_events,
    "lines in the log": lines_in_the_log,
}


async def _attack(port: int, names: list[str]) -> None:
    await asyncio.gather(*(ATTACKS[name](port) for name in names))


if __name__ == "__main__":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    permit_files(2 * HALF_OPEN)
    asyncio.run(_attack(int(sys.argv[1]), sys.argv[2:]))
