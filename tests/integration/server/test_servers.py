"""The same short story under every server that we name as supported, and in every place where people mount an app."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fuzzing.wire import SECONDS, Address, Refused, Wire, binary, text
from tests.support.servers import (
    FAST_LANE,
    GRANIAN,
    HYPERCORN,
    HYPERCORN_TRIO,
    ROOT,
    UVICORN,
    UVICORN_WSPROTO,
    Kind,
    Server,
    serve,
    uvicorn,
)

UVICORNS = {
    f"uvicorn {ws.rpartition(':')[2]} {loop} {http}": uvicorn(ws, "--loop", loop, "--http", http)
    for ws in ("websockets-sansio", "wsproto", "starlette_channels.transports.uvicorn:FastLane")
    for loop in ("asyncio", "uvloop")
    for http in ("httptools", "h11")
}
KINDS = {**UVICORNS, "hypercorn asyncio": HYPERCORN, "hypercorn trio": HYPERCORN_TRIO, "granian": GRANIAN}

# How clients see a server that is told to stop; granian ends the application's calls before it hears of that.
STOPPED = {name: {1006, 1012} if name == "granian" else {1012} for name in KINDS}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def until_event(wire: Wire, event: str) -> list[object]:
    """The next text message of a certain event; others are skipped."""
    while True:
        message = await wire.receive()
        if isinstance(message, str) and json.loads(message)[3] == event:
            return json.loads(message)


async def the_story(where: Address, mount: str) -> tuple[Wire, Wire]:
    """Everything that a client does on an ordinary day; the two clients are left in the room."""
    with pytest.raises(Refused):
        await Wire.open(where, f"{mount}/websocket?vsn=2.0.0")
    with pytest.raises(Refused):
        await Wire.open(where, f"{mount}/nowhere?vsn=2.0.0&user=ann")
    ann = await Wire.open(where, f"{mount}/websocket?vsn=2.0.0&user=ann")
    bob = await Wire.open(where, f"{mount}/websocket?vsn=2.0.0&user=bob")
    heartbeat = await ann.call(None, "0", "phoenix", "heartbeat")
    assert heartbeat == {"status": "ok", "response": {}}

    # Join: typed segments, assigns, and somebody else who hears of it.
    assert await ann.join("room:7") == {"room": "7", "user": "ann"}
    assert await bob.join("room:7", "b1") == {"room": "7", "user": "bob"}
    assert json.loads(await ann.receive()) == [None, None, "room:7", "came", {"user": "bob"}]

    # Push, reply and broadcast, in this order.
    ann.send(text("1", "2", "room:7", "new_msg", {"body": "héllo 😀"}))
    said = [None, None, "room:7", "new_msg", {"body": "héllo 😀", "user": "ann"}]
    assert json.loads(await ann.receive()) == said
    assert json.loads(await ann.receive()) == [
        "1",
        "2",
        "room:7",
        "phx_reply",
        {"status": "ok", "response": {"sent": True}},
    ]
    assert json.loads(await bob.receive()) == said

    # Bytes, both ways.
    data = bytes(range(256)) * 300
    ann.send(binary("1", "3", "room:7", "bytes", data))
    assert await ann.receive() == b"\1\1\1\6\2" + b"13room:7ok" + data[::-1]
    assert await bob.receive() == b"\2\6\5" + b"room:7bytes" + data

    # A crash ends one channel of one client.
    await ann.join("room:8", "8")
    ann.send(text("8", "4", "room:8", "crash"))
    assert json.loads(await ann.receive()) == ["8", "8", "room:8", "phx_error", {"reason": "channel_crash"}]
    assert (await ann.call("8", "5", "room:8", "new_msg"))["response"] == {"reason": "unmatched topic"}
    assert (await ann.call("1", "6", "room:7", "nope"))["response"] == {"reason": "unmatched event"}

    # Leave, and come back.
    bob.send(text("b1", "b2", "room:7", "phx_leave"))
    assert json.loads(await bob.receive())[1:4] == ["b2", "room:7", "phx_reply"]
    assert json.loads(await bob.receive()) == ["b1", "b1", "room:7", "phx_close", {}]
    assert (await until_event(ann, "gone"))[4] == {"user": "bob", "reason": "left"}
    await bob.join("room:7", "b3")
    await until_event(ann, "came")

    # Be disconnected by somebody: 1001, and the others hear why.
    for _ in range(2):
        kicked = await Wire.open(where, f"{mount}/websocket?vsn=2.0.0&user=cat")
        await kicked.join("room:7")
        ann.send(text("1", None, "room:7", "kick", {"user": "cat"}))
        assert (await kicked.closed()).code == 1001
        await kicked.end()
        for wire in (ann, bob):
            assert (await until_event(wire, "gone"))[4] == {"user": "cat", "reason": "closed"}

    # Be gone without a word.
    lost = await Wire.open(where, f"{mount}/websocket?vsn=2.0.0&user=dog")
    await lost.join("room:7")
    await lost.discard()
    assert (await until_event(bob, "gone"))[4] == {"user": "dog", "reason": "closed"}
    await until_event(ann, "gone")

    # Leave the house.
    eve = await Wire.open(where, f"{mount}/websocket?vsn=2.0.0&user=eve")
    await eve.join("room:7")
    assert (await eve.close()).code in (1000, 1005)
    assert (await until_event(bob, "gone"))[4] == {"user": "eve", "reason": "closed"}
    await until_event(ann, "gone")
    return ann, bob


async def are_stopped(server: Server, clients: tuple[Wire, Wire]) -> set[int]:
    """Stop the server under its clients; return how they were closed."""
    stopping = asyncio.create_task(asyncio.to_thread(server.stop))
    codes = {(await client.closed()).code for client in clients}
    for client in clients:
        await client.discard()
    assert await stopping, server.tail()
    return codes


async def come_back(server: Server, where: Address, mount: str) -> None:
    """Start the server anew, and find that its clients can meet again."""
    await asyncio.to_thread(server.start)
    ann, bob = [await Wire.open(where, f"{mount}/websocket?vsn=2.0.0&user={user}") for user in ("ann", "bob")]
    await ann.join("room:7")
    await bob.join("room:7")
    assert (await until_event(ann, "came"))[4] == {"user": "bob"}
    for client in (ann, bob):
        await client.close()


@pytest.mark.anyio
@pytest.mark.parametrize("name", KINDS)
async def test_a_chat_works_and_survives_a_restart(name: str) -> None:
    with serve("tests.fuzzing.mounts:mounted", KINDS[name]) as server:
        where = Address(server.port)
        clients = await the_story(where, "/socket")
        log = server.log.read_text()
        assert log.count("Traceback") == log.count("tests.fuzzing.mounts.Asked"), log
        assert await are_stopped(server, clients) <= STOPPED[name]
        await come_back(server, where, "/socket")


PLACES = {
    "mounted": "/socket",
    "nested": "/api/v7/socket",
    "fast": "/socket",
    "fast_inside": "/inner/socket",
    "channels": "",
}


@pytest.mark.anyio
@pytest.mark.parametrize("place", PLACES)
async def test_a_chat_works_wherever_it_is_mounted(place: str) -> None:
    with serve(f"tests.fuzzing.mounts:{place}", UVICORN) as server:
        await the_story_ends(Address(server.port), PLACES[place])
        await serves_its_client(f"{server.http}{PLACES[place]}")


def with_option(kind: Kind, option: str) -> Kind:
    return Kind(f"{kind}-{option.split()[0].strip('-')}", f"{kind.command} {option}")


# uvicorn expects that the proxy has cut the prefix off, the others that it has not.
PREFIXED = {
    "uvicorn": (with_option(UVICORN, "--root-path /pre/fix"), ""),
    "uvicorn wsproto": (with_option(UVICORN_WSPROTO, "--root-path /pre/fix"), ""),
    "hypercorn": (with_option(HYPERCORN, "--root-path /pre/fix"), "/pre/fix"),
    "granian": (with_option(GRANIAN, "--url-path-prefix /pre/fix"), "/pre/fix"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", PREFIXED)
@pytest.mark.parametrize("place", ["nested", "fast_inside", "channels"])
async def test_a_chat_works_behind_a_proxy_with_a_root_path(name: str, place: str) -> None:
    kind, prefix = PREFIXED[name]
    with serve(f"tests.fuzzing.mounts:{place}", kind) as server:
        await the_story_ends(Address(server.port), prefix + PLACES[place])
        await serves_its_client(f"{server.http}{prefix}{PLACES[place]}")


async def the_story_ends(where: Address, mount: str) -> None:
    for wire in await the_story(where, mount):
        await wire.close()


async def serves_its_client(base: str) -> None:
    async with httpx.AsyncClient(trust_env=False, verify=False) as http:
        client = await http.get(f"{base}/channels.js")
        assert client.status_code == 200
        assert "export" in client.text
        assert (await http.get(f"{base}/nothing")).status_code == 404


@pytest.fixture
def unix_socket(tmp_path: Path) -> Iterator[str]:
    """Where a server of its own listens."""
    path, log = tmp_path / "socket", tmp_path / "log"
    command = ["uvicorn", "tests.fuzzing.mounts:mounted", "--uds", str(path), "--ws", "websockets-sansio"]
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + SECONDS
        while not answers(path):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield str(path)
    finally:
        process.terminate()
        process.wait(SECONDS)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.mark.anyio
async def test_a_chat_works_through_a_unix_socket(unix_socket: str) -> None:
    await the_story_ends(Address(unix=unix_socket), "/socket")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for a day, and its key. No package of ours makes one, but most machines can."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    options += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([openssl, "req", *options, "-out", cert, "-keyout", key], check=True, capture_output=True)
    return cert, key


TLS = {
    "uvicorn": (UVICORN, "--ssl-certfile {cert} --ssl-keyfile {key}"),
    "uvicorn wsproto": (UVICORN_WSPROTO, "--ssl-certfile {cert} --ssl-keyfile {key}"),
    "uvicorn fast lane": (FAST_LANE, "--ssl-certfile {cert} --ssl-keyfile {key}"),
    "hypercorn": (HYPERCORN, "--certfile {cert} --keyfile {key}"),
    "granian": (GRANIAN, "--ssl-certificate {cert} --ssl-keyfile {key}"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", TLS)
async def test_a_chat_works_over_tls(name: str, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    kind, options = TLS[name]
    trusting = ssl.create_default_context(cafile=str(cert))
    with serve("tests.fuzzing.mounts:mounted", with_option(kind, options.format(cert=cert, key=key))) as server:
        await the_story_ends(Address(server.port, tls=trusting), "/socket")
