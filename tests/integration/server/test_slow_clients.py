"""Clients that do not read: they are closed, or not read from either, and nobody else waits for them."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType

import pytest
from starlette.types import Message, Scope

from starlette_channels import Channels
from starlette_channels.transports.asgi_websocket import warn_about_server
from tests.fuzzing.honest import Figures, figures, figures_when, nothing_left
from tests.fuzzing.wire import CLOSE, PING, SECONDS, Address, Wire, binary, frame, opened, text
from tests.support.servers import GRANIAN, HYPERCORN, HYPERCORN_TRIO, Kind, Server, serve, uvicorn

QUIET = ("--log-level", "warning")
FAST_LANE = uvicorn("starlette_channels.transports.uvicorn:FastLane", *QUIET, name="fast-lane")
SERVERS = (
    FAST_LANE,
    uvicorn("websockets-sansio", *QUIET),
    uvicorn("wsproto", *QUIET),
    HYPERCORN,
    HYPERCORN_TRIO,
    GRANIAN,
)

SMALL = "/small/websocket?vsn=2.0.0"
OUTBOX = 256 * 1024  # of that mount
TOPIC = "room:busy"
MEGABYTE = 1 << 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=SERVERS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    kind: Kind = request.param
    with serve("tests.fuzzing.app:app", kind) as server:
        yield server


class Clients:
    """Makes clients that have joined the topic, and throws them away in the end."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._all: list[Wire] = []

    async def join(self, path: str = SMALL, *, lazy: bool = False) -> Wire:
        wire = await Wire.open(Address(self._server.port, lazy=lazy), path)
        self._all.append(wire)
        await wire.join(TOPIC)
        return wire

    async def discard(self) -> None:
        for wire in self._all:
            await wire.discard()


@pytest.fixture
async def clients(server: Server) -> AsyncIterator[Clients]:
    clients = Clients(server)
    try:
        yield clients
    finally:
        await clients.discard()
        await figures_when(nothing_left, server.http, "small", collect=True)


@pytest.mark.anyio
async def test_clients_that_stop_reading_are_closed_and_the_others_get_everything_meanwhile(
    server: Server, clients: Clients
) -> None:
    lazy, filler, most = 10, "x" * 20_000, 1_000
    before = await figures(server.http, "small")
    speaker, listener = await clients.join(), await clients.join()
    sleepers = [await clients.join(lazy=True) for _ in range(lazy)]
    start = await figures(server.http, "small", collect=True)
    peak = start["rss"]
    for number in range(most):
        speaker.send(text("1", None, TOPIC, "flood", {"first": number, "messages": 1, "size": 20_000}))
        for wire in (speaker, listener):  # in lockstep: nobody is a message behind while others do not read at all
            assert json.loads(await wire.receive())[3:] == ["flood", {"number": number, "filler": filler}]
        if number % 10 == 0:
            now = await figures(server.http, "small")
            peak = max(peak, now["rss"])
            if now["counts"].get("slow_client", 0) == before["counts"].get("slow_client", 0) + lazy:
                break
    else:
        found = await figures(server.http, "small")
        raise AssertionError(f"the server goes on to send to clients that do not read: {found}")
    found = await figures_when(only_two_are_left, server.http, "small", collect=True)
    assert not found["failures"]
    # What waited for them was bounded: an outbox each, and what the server and asyncio keep below it.
    assert peak < start["rss"] + lazy * (OUTBOX + MEGABYTE) + 8 * MEGABYTE
    for sleeper in sleepers:  # whether there was room for the close frame is the server's affair
        assert (await sleeper.closed()).code in (1006, 1008)
    for wire in (speaker, listener):
        await wire.call("1", "end", TOPIC, "echo")
        await wire.close()


def only_two_are_left(found: Figures) -> bool:
    # Not the transports: hypercorn's trio worker cannot be cancelled while it sends, and keeps them until TCP gives up.
    return found["connections"] == found["channels"] == found["objects"]["JoinedChannel"] == 2


@pytest.mark.anyio
async def test_a_burst_larger_than_the_outbox_is_no_harm_to_clients_that_read(server: Server, clients: Clients) -> None:
    before = await figures(server.http, "small")
    speaker, listener = await clients.join(), await clients.join()
    messages, size = 300, 10_000  # twelve times the outbox, queued in one go
    speaker.send(text("1", None, TOPIC, "flood", {"messages": messages, "size": size}))
    for number in range(messages):
        for wire in (speaker, listener):
            assert json.loads(await wire.receive())[4]["number"] == number
    after = await figures(server.http, "small")
    assert after["counts"] == before["counts"]
    for wire in (speaker, listener):
        await wire.close()


@pytest.mark.anyio
async def test_a_client_that_does_not_read_its_replies_is_not_read_from_until_it_does(
    server: Server, clients: Clients
) -> None:
    size, most = 1_000, 100 * MEGABYTE
    before = await figures(server.http, "small")
    client = await clients.join(lazy=True)
    sent = 0
    client.writer.transport.set_write_buffer_limits(high=0)
    while sent * size < most:
        client.send(text("1", str(sent), TOPIC, "echo", "x" * size))
        sent += 1
        if client.writer.transport.get_write_buffer_size() and await stalled(server, client):
            break
    else:
        raise AssertionError("the server takes whatever comes from a client that reads nothing")
    now = await figures(server.http, "small")
    assert now["connections"] == 1
    assert now["rss"] < before["rss"] + 32 * MEGABYTE
    async with opened(Address(server.port), SMALL) as other:  # nobody else notices
        await other.join("room:other")
        await other.call("1", "2", "room:other", "echo", {"how": "are you"})
    for number in range(sent):  # and when it reads again, nothing is missing
        assert json.loads(await client.receive())[1] == str(number)
    await client.call("1", "end", TOPIC, "echo")
    await client.close()
    after = await figures_when(lambda found: found["connections"] == 0, server.http, "small", collect=True)
    assert after["counts"] == before["counts"]


@pytest.mark.anyio
async def test_messages_that_handlers_have_no_time_for_are_not_read_whatever_their_size(
    server: Server, clients: Clients
) -> None:
    size, most = 900_000, 100
    path = "/socket/websocket?vsn=2.0.0"
    client, other = await clients.join(path), await clients.join(path)
    before = await figures(server.http)
    client.send(text("1", None, TOPIC, "hold", "the gate"))
    sent = 0
    for sent in range(1, most):
        client.send(text("1", str(sent), TOPIC, "echo", "x" * size))
        if client.writer.transport.get_write_buffer_size() > size and await stalled(server, client):
            break
    else:
        raise AssertionError("the server takes whatever comes for a handler that is busy")
    now = await figures(server.http)
    assert now["rss"] < before["rss"] + 64 * MEGABYTE
    await other.call("1", "2", TOPIC, "echo")  # the same topic, but another client
    other.send(text("1", None, TOPIC, "release", "the gate"))
    for number in range(1, sent + 1):
        assert json.loads(await client.receive())[1] == str(number)


@pytest.mark.anyio
async def test_a_flood_of_tiny_messages_waits_for_a_busy_handler(server: Server, clients: Clients) -> None:
    messages = 12_000  # ten thousand fit into what a server reads in one go
    client, other = await clients.join(), await clients.join()
    client.send(text("1", None, TOPIC, "hold", "the other gate"))
    client.send(*(binary("1", "", TOPIC, "echo") for _ in range(messages)))
    await client.drain()
    other.send(text("1", None, TOPIC, "release", "the other gate"))
    for _ in range(messages):
        assert await client.receive() == b"\1\1\0\x09\2" + f"1{TOPIC}ok".encode()
    await client.call("1", "end", TOPIC, "echo")


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["close", "hang up"])
async def test_a_client_that_leaves_without_reading_what_it_asked_for_is_forgotten(
    server: Server, clients: Clients, way: str
) -> None:
    # Its reply, with the long ref, is there at once, and more than the operating systems will take.
    heartbeat = frame(text(None, "x" * 9_500_000, "phoenix", "heartbeat"))
    client = await clients.join("/impatient/websocket?vsn=2.0.0", lazy=True)
    client.write(heartbeat)
    if way == "close":
        client.write(frame((1000).to_bytes(2), CLOSE))
    else:
        client.hang_up()
    await figures_when(lambda found: found["connections"] == found["topics"] == 0, server.http, "impatient")


@pytest.mark.anyio
@pytest.mark.parametrize("server", [FAST_LANE], indirect=True, ids=str)  # elsewhere pings are the server's affair
async def test_pings_after_the_close_are_not_answered(server: Server, clients: Clients) -> None:
    before = await figures(server.http, "impatient")
    flood = echoes(2_000)
    client = await clients.join("/impatient/websocket?vsn=2.0.0", lazy=True)
    client.write(flood)
    await figures_when(grown("slow_client", before), server.http, "impatient")
    pings = frame(b"x" * 125, PING) * 8_000
    client.writer.transport.set_write_buffer_limits(high=len(pings))
    for _ in range(200):  # 200 MB, until the server hangs up
        if client.writer.transport.is_closing():
            break
        client.write(pings)
        await client.drain()
    after = await figures(server.http, "impatient")
    assert after["rss"] < before["rss"] + 32 * MEGABYTE


def echoes(number: int) -> bytes:
    """Messages of 10 kB that ask for as much. It takes a while to make them: do it before an impatient server waits."""
    return b"".join(frame(text("1", str(n), TOPIC, "echo", "x" * 10_000)) for n in range(number))


def grown(code: str, before: Figures) -> Callable[[Figures], bool]:
    return lambda found: found["counts"].get(code, 0) > before["counts"].get(code, 0)


async def stalled(server: Server, client: Wire) -> bool:
    """Whether the server takes nothing more: what waits in the client and what has arrived are the same for a while."""
    state = None
    for _ in range(10):
        found = client.writer.transport.get_write_buffer_size(), (await figures(server.http, "small"))["messages"]
        if state not in (None, found) or not found[0]:
            return False
        state = found
        await asyncio.sleep(0.02)
    return True


@pytest.mark.anyio
async def test_a_client_that_never_reads_its_replies_is_closed_when_its_time_is_over(
    server: Server, clients: Clients
) -> None:
    before = await figures(server.http, "impatient")
    flood = echoes(2_000)
    client = await clients.join("/impatient/websocket?vsn=2.0.0", lazy=True)
    client.write(flood)
    found = await figures_when(lambda found: found["connections"] == 0, server.http, "impatient", collect=True)
    assert grown("slow_client", before)(found)
    assert found["objects"]["JoinedChannel"] == 0
    client.abort()


@pytest.mark.anyio
async def test_what_comes_after_the_close_does_not_get_stuck_in_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypercorn", ModuleType("hypercorn"))
    queue: asyncio.Queue[Message] = asyncio.Queue(1)
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message["type"])

    scope: Scope = {"type": "websocket", "path": "/websocket", "query_string": b"vsn=2.0.0", "headers": []}
    async with asyncio.timeout(SECONDS):
        await queue.put({"type": "websocket.connect"})
        call = asyncio.create_task(Channels([])(scope, queue.get, send))
        for _ in range(20):
            await queue.put({"type": "websocket.receive", "text": "malformed"})
        await call
        await queue.put({"type": "websocket.disconnect", "code": 1006})
        for _ in range(3):
            await queue.put({"type": "websocket.receive", "text": "the rest of what was read"})
    assert sent == ["websocket.accept", "websocket.close"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="starlette_channels"):
        warn_about_server()
    return [record.getMessage() for record in caplog.records]


def test_daphne_is_named_in_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "daphne", ModuleType("daphne"))
    (warning,) = warnings(caplog)
    assert "daphne" in warning


def test_without_it_there_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog) == []
