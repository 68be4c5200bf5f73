"""Refusals that a page can read: the WebSocket is accepted and closed with a code and a reason of the application."""

import asyncio
import base64
import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from starlette_channels import Channels, ConnectError, Expiry, Handshake, Socket, channel
from starlette_channels.testing import ConnectionClosed, HandshakeRefused, connect
from tests.fuzzing.wire import CLOSE, SECONDS, Address, Refused, Wire, frame, opened, text
from tests.support.polling import Poller
from tests.support.servers import (
    FAST_LANE,
    GRANIAN,
    HYPERCORN,
    HYPERCORN_TRIO,
    UVICORN,
    UVICORN_WSPROTO,
    Kind,
    Server,
    serve,
)

KINDS = [FAST_LANE, UVICORN, UVICORN_WSPROTO, HYPERCORN, HYPERCORN_TRIO, GRANIAN]
LONGEST = "é" * 61 + "x"  # 123 bytes


# ---- what may be said


@pytest.mark.parametrize("code", [3000, 4001, 4401, 4999, 1000, 1001, 1008, 1011, 1013])
def test_a_code_that_a_server_may_send_is_taken(code: int) -> None:
    error = ConnectError(LONGEST, close=code)
    assert (error.close, error.reason, error.status) == (code, LONGEST, 403)
    assert ConnectError("no").close is None


@pytest.mark.parametrize(
    "code", [0, -1, 401, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65536, 4401.0, "4401", True]
)
def test_another_code_is_refused_with_the_codes_that_may_be_sent(code: Any) -> None:
    with pytest.raises(ValueError, match=r"ConnectError\(close=.*\): a server may send 1000, .* and 3000 to 4999"):
        ConnectError("no", close=code)


def test_a_reason_that_does_not_fit_into_a_close_frame_is_refused_with_a_code_only() -> None:
    with pytest.raises(ValueError, match=r"ConnectError\(reason=\.\.\.\): it must have at most 123 bytes"):
        ConnectError(f"{LONGEST}!", close=4401)
    with pytest.raises(ValueError):  # noqa: PT011 - a surrogate is no Unicode
        ConnectError("\ud800", close=4401)
    assert ConnectError(f"{LONGEST}!").reason == f"{LONGEST}!"


# ---- in the same process


@channel("room:*")
async def room(socket: Socket[Any], payload: Any) -> None: ...


def refusing(error: Exception, **options: Any) -> Channels[Any]:
    async def enter(conn: Handshake) -> dict[str, Any]:
        raise error

    return Channels([room], connect=enter, **options)


@pytest.mark.anyio
async def test_a_client_is_accepted_and_closed_and_is_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    channels = refusing(ConnectError("expired", close=4401), subprotocols=["chat"])
    async with connect(channels, subprotocols=["other", "chat"]) as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.join("room:a")
        assert (closed.value.code, closed.value.reason) == (4401, "expired")
        assert client.subprotocol == "chat"
        assert channels.statistics().connections == 0
        await client.received_nothing()
    assert channels.statistics().counts == {"connect_refused": 1}
    assert [record.message for record in caplog.records] == ["Connection refused with 4401: 'expired'"]


@pytest.mark.anyio
async def test_without_a_code_the_refusal_is_an_http_status_as_ever() -> None:
    with pytest.raises(HandshakeRefused) as refused:
        async with connect(refusing(ConnectError("no", 401))):
            pass
    assert (refused.value.status, refused.value.body) == (401, "no")


@pytest.mark.anyio
async def test_a_server_without_the_extension_for_statuses_can_close_with_a_code() -> None:
    channels = refusing(ConnectError("expired", close=4401))

    async def server(scope: Any, receive: Any, send: Any) -> None:
        await channels({**scope, "extensions": None}, receive, send)

    async with connect(server) as client:
        assert await client.closed() == 4401


@pytest.mark.anyio
async def test_a_crowd_of_refused_clients_is_logged_a_few_times_only(caplog: pytest.LogCaptureFixture) -> None:
    channels = refusing(ConnectError("expired", close=4401))
    for _ in range(100):
        async with connect(channels) as client:
            assert await client.closed() == 4401
    assert channels.statistics().counts == {"connect_refused": 100}
    assert len(caplog.records) < 30


@pytest.mark.anyio
async def test_a_client_that_polls_gets_403_with_the_code_and_the_reason() -> None:
    channels = refusing(ConnectError("expired", 401, close=4401), longpoll=True)
    answer = await Poller(channels).poll()
    assert answer.json == {"status": 403, "code": 4401, "reason": "expired"}
    assert channels.statistics().connections == 0
    assert (await Poller(refusing(ConnectError("no", 401), longpoll=True)).poll()).json == {"status": 403}


@pytest.mark.anyio
async def test_a_refresh_that_is_refused_with_a_code_is_answered_and_closes_nothing() -> None:
    async def enter(conn: Handshake) -> dict[str, Any]:
        return {}

    async def refresh(user: dict[str, Any], payload: Any) -> dict[str, Any]:
        raise ConnectError("still expired", close=4401)

    channels = Channels([room], connect=enter, expiry=Expiry(at=lambda _: 4e9, refresh=refresh))
    async with connect(channels) as client:
        client.send(None, "1", "phoenix", "refresh", {})
        assert (await client.reply("1")).payload == {"reason": "still expired"}
        await client.join("room:a")


# ---- on servers


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=KINDS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    kind: Kind = request.param
    with serve("tests.support.refusing_app:app", kind) as server:
        yield server


PATH = "/socket/websocket?vsn=2.0.0&code=4401"


async def figures(server: Server) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"{server.http}/figures")).json()


async def hung_up(wire: Wire) -> None:
    """Wait until the server has closed the TCP connection, too."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(SECONDS):
            while await wire.reader.read(65536):
                pass
    await wire.end()


@pytest.mark.anyio
@pytest.mark.parametrize(("code", "reason"), [(4401, "expired"), (3000, ""), (4999, LONGEST), (1008, "banned")])
async def test_every_server_closes_with_code_and_reason_and_then_the_connection(
    server: Server, code: int, reason: str
) -> None:
    async with httpx.AsyncClient() as http:
        query = http.build_request("GET", "http://x", params={"code": code, "reason": reason}).url.query.decode()
    async with opened(Address(server.port), f"/socket/websocket?vsn=2.0.0&{query}") as wire:
        closed = await wire.closed()
        assert (closed.code, closed.reason) == (code, reason)
        await hung_up(wire)
    found = await figures(server)
    assert (found["connections"], found["events"]) == (0, [])
    assert found["counts"]["connect_refused"] >= 1


@pytest.mark.anyio
async def test_the_status_is_the_default_on_every_server(server: Server) -> None:
    with pytest.raises(Refused) as refused:
        await Wire.open(Address(server.port), "/socket/websocket?vsn=2.0.0&code=none")
    assert refused.value.status in (401, 403)  # not every server can say which


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("sip, chat", "chat"),
        ("sip", "sip"),
        (f"phoenix, base64url.bearer.phx.{base64.urlsafe_b64encode(b'secret').decode().rstrip('=')}", "phoenix"),
        ("", None),
    ],
)
async def test_the_subprotocol_is_the_one_that_would_have_been_chosen(
    server: Server, offered: str, chosen: str | None
) -> None:
    reader, writer = await Address(server.port).connect()
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [f"GET {PATH} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
    lines += [f"Sec-WebSocket-Protocol: {offered}"] if offered else []
    writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
    async with asyncio.timeout(SECONDS):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert head.startswith("http/1.1 101")
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    assert headers.get("sec-websocket-protocol") == chosen
    wire = Wire(reader, writer)
    assert (await wire.closed()).code == 4401
    await wire.end()


@pytest.mark.anyio
async def test_what_a_refused_client_sends_reaches_nobody(server: Server) -> None:
    for _ in range(5):
        async with opened(Address(server.port), PATH) as wire:
            wire.send(*(text(str(n), str(n), f"room:{n}", "phx_join") for n in range(20)))
            assert (await wire.closed()).code == 4401
    found = await figures(server)
    assert (found["connections"], found["events"]) == (0, [])


@pytest.mark.anyio
async def test_a_crowd_that_does_not_answer_the_close_leaves_nothing_behind(server: Server) -> None:
    wires = [await Wire.open(Address(server.port), PATH) for _ in range(50)]
    began = time.monotonic()
    found = await figures(server)
    assert found["connections"] == 0
    async with opened(Address(server.port), "/socket/websocket?vsn=2.0.0") as honest:
        assert await honest.call(None, "1", "phoenix", "heartbeat") == {"status": "ok", "response": {}}
    for wire in wires:
        if server.kind is FAST_LANE:  # others wait for longer, which is their own affair
            await hung_up(wire)
        else:
            await wire.end()
    assert time.monotonic() - began < 8


@pytest.mark.anyio
async def test_a_flood_after_the_close_costs_the_fast_lane_nothing() -> None:
    """What a refused client sends is not parsed: 20 floods of empty frames, and an honest client beside them."""
    empty = frame(b"", 0, final=False) * 40_000
    with serve("tests.support.refusing_app:app", FAST_LANE) as server:
        async with opened(Address(server.port), "/socket/websocket?vsn=2.0.0") as honest:
            wires = [await Wire.open(Address(server.port), PATH) for _ in range(20)]
            for wire in wires:
                wire.write(frame("", 1, final=False) + empty)
            times: list[float] = []
            for number in range(50):
                began = time.monotonic()
                await honest.call(None, str(number), "phoenix", "heartbeat")
                times.append(time.monotonic() - began)
            assert max(times) < 1.0
            for wire in wires:
                await hung_up(wire)


@pytest.mark.anyio
async def test_a_client_that_hangs_up_in_the_middle_leaves_no_trace(server: Server) -> None:
    for cut in (0, 3, 6):
        wire = await Wire.open(Address(server.port), PATH)
        wire.write(frame((4401).to_bytes(2), CLOSE)[:cut])
        await wire.discard()
    assert (await figures(server))["connections"] == 0
    assert "Traceback" not in server.tail()


@pytest.mark.anyio
async def test_a_poll_is_refused_with_the_same_code_on_every_server(server: Server) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{server.http}/socket/longpoll", params={"vsn": "2.0.0", "code": "4401"})
    assert json.loads(answer.text) == {"status": 403, "code": 4401, "reason": "expired"}
