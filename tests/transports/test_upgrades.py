"""Upgrades to WebSockets: the answer is the same, whatever the way of the request and whatever the application."""

import asyncio
import email.utils
import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from starlette_channels import Channels, ConnectError, Handshake, Socket, channel
from starlette_channels.transports.uvicorn import FastLane, SlicedHTTP
from starlette_channels.transports.uvicorn_lane.connection import Lane
from tests.fuzzing.wire import frame, text
from tests.support.lanes import Pipe

pytestmark = pytest.mark.anyio

REQUEST = (
    b"GET /a%20b/websocket?vsn=2.0.0&token=s3cret HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: chat, phoenix\r\nX-Forwarded-For: 10.1.2.3\r\nX-Forwarded-Proto: https\r\n"
    b"Cookie: a=1\r\nCookie: b=2\r\n\r\n"
)
DEFAULT_HEADERS = [(b"date", b"Sun, 29 Nov 2026 21:38:41 GMT"), (b"server", b"uvicorn")]

WAYS: dict[str, tuple[type[Any], type[Any]]] = {
    "uvicorn alone": (HttpToolsProtocol, WebSocketsSansIOProtocol),
    "behind httptools": (HttpToolsProtocol, FastLane),
    "behind h11": (H11Protocol, FastLane),
    "at once": (SlicedHTTP, FastLane),
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starlette_channels.transports.uvicorn_lane.handshake.freeze_gc", lambda: None)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


OURS = pytest.mark.parametrize("way", [way for way in WAYS if way != "uvicorn alone"])


class TCP(Pipe):
    """A transport with addresses."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8_000)}.get(name, default)


class Visit:
    """A client of an application, by one of the ways."""

    def __init__(self, way: str, app: ASGIApp, **options: Any) -> None:
        http, websocket = WAYS[way]
        options = {"lifespan": "off", "log_config": None, "ws_per_message_deflate": False, **options}
        self.config = Config(app, http=http, ws=websocket, **options)
        self.config.load()
        self.state = ServerState()
        self.state.default_headers = DEFAULT_HEADERS
        self.pipe = TCP()
        protocol = http(config=self.config, server_state=self.state, app_state={"db": 1})
        self.pipe.set_protocol(protocol)
        protocol.connection_made(self.pipe)

    @property
    def protocol(self) -> Any:
        return self.pipe.get_protocol()

    @property
    def written(self) -> bytes:
        return b"".join(self.pipe.written)

    def send(self, data: bytes) -> None:
        self.protocol.data_received(data)

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(20):
            while not condition():
                await anyio.lowlevel.checkpoint()

    async def answered(self) -> tuple[str, dict[str, list[str]], bytes]:
        """The status line, the headers and the body of the answer."""
        await self.until(lambda: b"\r\n\r\n" in self.written)
        head, _, body = self.written.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers.setdefault(name.lower(), []).append(value)
        return status, headers, body

    async def leave(self) -> None:
        self.pipe.closed = True
        self.protocol.connection_lost(None)
        await self.until(lambda: not self.state.tasks and not self.state.connections)


@asynccontextmanager
async def visit(way: str, app: ASGIApp, **options: Any) -> AsyncGenerator[Visit]:
    client = Visit(way, app, **options)
    try:
        yield client
    finally:
        if client.state.connections:
            await client.leave()


def simple(answer: Callable[[Scope, Receive, Send], Any]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive()) == {"type": "websocket.connect"}
        await answer(scope, receive, send)

    return app


# ---- the scope, and other applications


async def test_the_scope_is_that_of_uvicorn(way: str) -> None:
    scopes: list[Any] = []

    async def accept(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(dict(scope))
        await send({"type": "websocket.accept"})
        await receive()

    async with visit(way, simple(accept), root_path="/röt".replace("ö", "o"), forwarded_allow_ips="*") as client:
        client.send(REQUEST)
        await client.answered()
    [scope] = scopes
    scope["extensions"].pop("starlette_channels", None)
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "wss",
        "server": ("127.0.0.1", 8_000),
        "client": ("10.1.2.3", 0),
        "root_path": "/rot",
        "path": "/rot/a b/websocket",
        "raw_path": b"/rot/a%20b/websocket",
        "query_string": b"vsn=2.0.0&token=s3cret",
        "headers": [
            (b"host", b"example.org"),
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
            (b"sec-websocket-version", b"13"),
            (b"sec-websocket-protocol", b"chat, phoenix"),
            (b"x-forwarded-for", b"10.1.2.3"),
            (b"x-forwarded-proto", b"https"),
            (b"cookie", b"a=1"),
            (b"cookie", b"b=2"),
        ],
        "subprotocols": ["chat", "phoenix"],
        "state": {"db": 1},
        "extensions": {"websocket.http.response": {}},
    }


async def test_another_application_receives_and_sends_as_with_uvicorn_alone(way: str) -> None:
    seen: list[Any] = []

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"X-Own", b"1")]})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})
        seen.append(message)

    async with visit(way, simple(echo)) as client:
        client.send(REQUEST)
        status, headers, _ = await client.answered()
        assert status == "HTTP/1.1 101 Switching Protocols"
        assert headers == {
            "upgrade": ["websocket"],
            "connection": ["Upgrade"],
            "sec-websocket-accept": ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="],
            "date": [DEFAULT_HEADERS[0][1].decode()],
            "server": ["uvicorn"],
            "x-own": ["1"],
            "sec-websocket-protocol": ["chat"],
        }
        await client.until(lambda: client.pipe.reading)
        client.send(frame("hello"))
        await client.until(lambda: client.written.endswith(b"\x81\x05HELLO"))
        client.send(frame((4001).to_bytes(2), 8))
        await client.until(lambda: seen)
    assert seen == [{"type": "websocket.disconnect", "code": 4001, "reason": ""}]


async def test_another_application_may_refuse_with_or_without_a_response(way: str) -> None:
    async def close(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close"})

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.http.response.start", "status": 418, "headers": [(b"x-own", b"1")]})
        await send({"type": "websocket.http.response.body", "body": b"tea", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"pot"})

    async with visit(way, simple(close)) as client:
        client.send(REQUEST)
        assert (await client.answered())[0] == "HTTP/1.1 403 Forbidden"
        await client.until(lambda: client.pipe.closed)
    async with visit(way, simple(respond)) as client:
        client.send(REQUEST)
        status, headers, body = await client.answered()
        assert (status, headers["x-own"], body) == ("HTTP/1.1 418 I'm a Teapot", ["1"], b"teapot")
        await client.until(lambda: client.pipe.closed)


async def test_an_application_that_fails_is_logged_and_answered_500(way: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    for app, line in (
        (fail, "Exception in ASGI application\n"),
        (simple(fail), "Exception in ASGI application\n"),
        (nothing, "ASGI callable returned without completing handshake."),
    ):
        caplog.clear()
        async with visit(way, app) as client:
            client.send(REQUEST)
            status, _, body = await client.answered()
            assert (status, body) == ("HTTP/1.1 500 Internal Server Error", b"Internal Server Error")
            await client.until(lambda client=client: client.pipe.closed)
        assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [line]


async def test_an_application_whose_client_goes_hears_of_it(way: str, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []
    at_work, gone = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        at_work.set()
        await gone.wait()
        heard.append(await receive())
        await send({"type": "websocket.accept"})

    async with visit(way, simple(slow)) as client:
        client.send(REQUEST)
        await at_work.wait()
        client.pipe.closed = True
        client.protocol.connection_lost(None)
        gone.set()
        await client.until(lambda: not client.state.tasks)
    assert heard == [{"type": "websocket.disconnect", "code": 1006}]
    assert client.written == b""
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# ---- channels


@channel("room:*")
async def room(socket: Socket[Any], payload: Any) -> None: ...


async def connect(conn: Handshake) -> dict[str, Any]:
    match conn.params.get("token"):
        case "slow":
            await asyncio.Event().wait()
        case "refused":
            raise ConnectError("go away", 401)
        case "closed":
            raise ConnectError("expired", close=4401)
        case "broken":
            raise ZeroDivisionError
        case _:
            await asyncio.sleep(0)
    return {}


def endpoint(**options: Any) -> Channels[Any]:
    return Channels([room], connect=connect, drain=False, subprotocols=["phoenix"], path="/a b/websocket", **options)


def request(token: str) -> bytes:
    return REQUEST.replace(b"s3cret", token.encode())


@OURS
async def test_channels_are_on_the_fast_lane_with_the_same_answer(way: str) -> None:
    async with visit(way, endpoint()) as client:
        client.send(REQUEST)
        status, headers, _ = await client.answered()
        assert status == "HTTP/1.1 101 Switching Protocols"
        assert headers == {
            "upgrade": ["websocket"],
            "connection": ["Upgrade"],
            "sec-websocket-accept": ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="],
            "date": [DEFAULT_HEADERS[0][1].decode()],
            "server": ["uvicorn"],
            "sec-websocket-protocol": ["phoenix"],
        }
        await client.until(lambda: not client.state.tasks)
        assert client.state.connections == {client.protocol}
        assert isinstance(client.protocol, Lane)
        client.send(frame(text("1", "1", "room:a", "phx_join")))
        await client.until(lambda: b"phx_reply" in client.written)


@OURS
@pytest.mark.parametrize(
    ("token", "status", "expected"),
    [("refused", "401 Unauthorized", b"go away"), ("broken", "500 Internal Server Error", b"Internal Server Error")],
)
async def test_channels_refuse_with_status_and_body(way: str, token: str, status: str, expected: bytes) -> None:
    async with visit(way, endpoint()) as client:
        client.send(request(token))
        line, headers, body = await client.answered()
        assert (line, body) == (f"HTTP/1.1 {status}", expected)
        assert email.utils.parsedate_to_datetime(headers.pop("date")[0])
        assert headers == {
            "content-type": ["text/plain; charset=utf-8"],
            "cache-control": ["no-store"],
            "connection": ["close"],
            "content-length": [str(len(expected))],
        }
        await client.until(lambda: client.pipe.closed)


@OURS
async def test_channels_that_cannot_say_a_status_answer_403(way: str) -> None:
    channels = endpoint()

    async def without_statuses(scope: Scope, receive: Receive, send: Send) -> None:
        del scope["extensions"]["websocket.http.response"]
        await channels(scope, receive, send)

    async with visit(way, without_statuses) as client:
        client.send(request("refused"))
        assert (await client.answered())[0] == "HTTP/1.1 403 Forbidden"
        await client.until(lambda: client.pipe.closed)


@OURS
async def test_channels_close_with_a_code(way: str) -> None:
    async with visit(way, endpoint()) as client:
        client.send(request("closed"))
        assert (await client.answered())[2] == b"\x88\x09" + (4401).to_bytes(2) + b"expired"
        client.send(frame((4401).to_bytes(2), 8))
        await client.until(lambda: client.pipe.closed)


@OURS
async def test_middleware_changes_the_answer_and_may_ask_first(way: str) -> None:
    channels = endpoint()

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        first = await receive()

        async def receive_again() -> Any:
            return first

        async def send_more(message: Any) -> None:
            await asyncio.sleep(0)
            await send({**message, "headers": [(b"X-Own", b"1")]})
            await asyncio.sleep(0)

        await channels(scope, receive_again, send_more)

    async with visit(way, middleware) as client:
        client.send(REQUEST)
        assert (await client.answered())[1]["x-own"] == ["1"]
        await client.until(lambda: isinstance(client.protocol, Lane))


@OURS
@pytest.mark.parametrize("header", [(b"x\r\ny", b"1"), (b"x", b"1\r\nSet-Cookie: a=b")])
async def test_middleware_cannot_write_headers_that_end_early(way: str, header: tuple[bytes, bytes]) -> None:
    channels = endpoint()

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Any) -> None:
            await send({**message, "headers": [header]})

        await channels(scope, receive, send_more)

    async with visit(way, middleware) as client:
        client.send(REQUEST)
        assert (await client.answered())[0] == "HTTP/1.1 500 Internal Server Error"


@OURS
@pytest.mark.parametrize("moment", ["in the queue", "in connect"])
async def test_a_handshake_without_an_answer_gets_500_when_the_server_stops(way: str, moment: str) -> None:
    async with visit(way, endpoint()) as client:
        client.send(request("slow"))
        if moment == "in connect":
            await client.until(lambda: client.state.tasks)
        for connection in list(client.state.connections):
            connection.shutdown()
        assert (await client.answered())[0] == "HTTP/1.1 500 Internal Server Error"
        assert client.pipe.closed
        for task in client.state.tasks:
            task.cancel()


@OURS
@pytest.mark.parametrize("number", [1, 400])
async def test_frames_behind_the_request_are_early_data(way: str, number: int) -> None:
    if way == "behind httptools":
        return  # it drops them
    channels = endpoint()
    async with visit(way, channels) as client:
        client.send(REQUEST + frame(text("1", "1", "room:a", "phx_join")) * number)
        if number == 1:
            await client.until(lambda: b"phx_reply" in client.written)
        else:
            await client.until(lambda: b"early_bytes" in client.written)
            assert channels.statistics().counts == {"early_bytes": 1}


@OURS
@pytest.mark.parametrize("access_log", [True, False])
@pytest.mark.parametrize("token", ["s3cret", "refused"])
async def test_the_access_log_has_no_query_and_may_be_off(
    way: str, access_log: bool, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with visit(way, endpoint(), access_log=access_log) as client:
        client.send(request(token))
        await client.answered()
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]
    end = ("[accepted]", "connection open") if token == "s3cret" else ("401", "connection rejected (401 Unauthorized)")
    assert lines == ([f'10.1.2.3:0 - "WebSocket /a%20b/websocket" {end[0]}', end[1]] if access_log else [])


async def test_a_request_that_comes_in_pieces_or_behind_another_one_is_served() -> None:
    channels = endpoint()
    async with visit("at once", channels) as client:
        for at in range(0, len(REQUEST), 50):
            client.send(REQUEST[at : at + 50])
        await client.answered()
        await client.until(lambda: isinstance(client.protocol, Lane))
    async with visit("at once", channels) as client:
        client.send(b"GET /channels.js HTTP/1.1\r\nHost: example.org\r\n\r\n")
        await client.until(lambda: b"export" in client.written)
        await client.until(lambda: not client.state.tasks)
        client.pipe.written.clear()
        client.send(REQUEST)
        assert (await client.answered())[0] == "HTTP/1.1 101 Switching Protocols"


async def test_sliced_http_leaves_upgrades_to_another_websocket_protocol() -> None:
    WAYS["sliced alone"] = (SlicedHTTP, WebSocketsSansIOProtocol)
    async with visit("sliced alone", endpoint()) as client:
        client.send(REQUEST)
        assert (await client.answered())[0] == "HTTP/1.1 101 Switching Protocols"
        assert isinstance(client.protocol, WebSocketsSansIOProtocol)
    del WAYS["sliced alone"]


async def test_a_client_that_goes_in_the_middle_of_connect_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    channels = endpoint()
    async with visit("at once", channels) as client:
        client.send(request("slow"))
        await client.until(lambda: client.state.tasks)
        client.pipe.closed = True
        client.protocol.connection_lost(None)
        for task in list(client.state.tasks):
            task.cancel()
        await client.until(lambda: not client.state.tasks)
    assert channels.statistics().connections == 0


async def test_the_call_ends_quietly_if_the_client_goes_between_accept_and_attach() -> None:
    channels = endpoint()
    raised: list[BaseException] = []

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_lose(message: Any) -> None:
            try:
                await send(message)
                client.pipe.closed = True
                client.protocol.connection_lost(None)
                await send({"type": "websocket.send", "text": "too late"})
            except ClientDisconnected as error:
                raised.append(error)

        await channels(scope, receive, send_and_lose)

    async with visit("at once", middleware) as client:
        client.send(REQUEST)
        await client.until(lambda: raised and not client.state.tasks)
    assert json.dumps(channels.statistics().connections) == "0"
