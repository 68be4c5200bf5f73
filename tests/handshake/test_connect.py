"""The handshake: who gets a connection, who does not, and what they are told."""

import base64
import json
import logging
from typing import Any

import itsdangerous
import pytest
from msgspec import Struct
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from starlette_channels import Channels, ConnectError, Handshake, Reply, Socket, channel
from starlette_channels.testing import HandshakeRefused, connect

pytestmark = pytest.mark.anyio


class User(Struct):
    name: str


@channel("me")
async def me(socket: Socket[Any], payload: Any) -> Reply:
    """Tell the client what `connect` made of it."""
    return Reply("ok", socket.assigns)


async def told(app: ASGIApp, mount: str = "", **options: Any) -> Any:
    """Connect and return what the client is told about itself."""
    async with connect(app, mount, **options) as client:
        return (await client.join("me")).reply.payload


async def refused(app: ASGIApp, mount: str = "", **options: Any) -> HandshakeRefused:
    """Return how a connection is refused."""
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(app, mount, **options):
            pass
    return caught.value


def with_scope(app: ASGIApp, **changes: Any) -> ASGIApp:
    """Return the app as a server sees it that passes another scope."""

    async def changed(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, **changes}, receive, send)

    return changed


def raising(error: Exception) -> Channels[Any]:
    async def enter(conn: Handshake) -> None:
        raise error

    return Channels([me], connect=enter)


async def enter_with_params(conn: Handshake) -> dict[str, Any]:
    return conn.params


async def test_what_connect_returns_is_the_assigns() -> None:
    async def enter(conn: HTTPConnection) -> User:
        name = conn.query_params.get("user")
        if not name:
            raise ConnectError("no user given")
        return User(name)

    channels = Channels([me], connect=enter)
    assert await told(channels, user="ann") == {"name": "ann"}
    refusal = await refused(channels)
    assert (refusal.status, refusal.body) == (403, "no user given")


async def test_without_connect_everybody_comes_in_and_the_assigns_are_an_empty_dict() -> None:
    assert await told(Channels([me]), user="ann") == {}


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (ConnectError(), 403, ""),
        (ConnectError("who are you?"), 403, "who are you?"),
        (ConnectError("slow down", status=429), 429, "slow down"),
        (ConnectError("später", 503), 503, "später"),
        (ConnectError(status=401), 401, ""),
        (HTTPException(401, "log in first"), 401, "log in first"),
        (HTTPException(429), 429, "Too Many Requests"),
        (ExceptionGroup("tasks", [HTTPException(401, "log in first")]), 401, "log in first"),
        (ExceptionGroup("tasks", [ExceptionGroup("inner", [ConnectError("expired")])]), 403, "expired"),
    ],
)
async def test_connect_refuses_with_a_status_and_a_body(
    error: Exception, status: int, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    channels = raising(error)
    refusal = await refused(channels)
    assert (refusal.status, refusal.body) == (status, body)
    assert channels.statistics().counts == {"connect_refused": 1}
    assert channels.statistics().connections == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(status) in record.message
    assert body in record.message


@pytest.mark.parametrize("error", [RuntimeError("secret"), KeyError("secret"), ExceptionGroup("secret", [OSError()])])
async def test_a_connect_that_raises_is_logged_and_the_client_learns_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    channels = raising(error)
    refusal = await refused(channels)
    assert (refusal.status, refusal.body) == (500, "Internal Server Error")
    assert channels.statistics().counts == {"connect_crashed": 1}
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("socket_id", [7, b"bytes", ["list"], True])
async def test_a_socket_id_must_be_a_string_or_none(socket_id: Any) -> None:
    channels = Channels([me], socket_id=lambda _: socket_id)
    assert (await refused(channels)).status == 403
    assert await told(Channels([me], socket_id=lambda _: None)) == {}
    assert await told(Channels([me], socket_id=lambda _: "")) == {}


async def test_a_socket_id_function_that_raises_is_a_crash() -> None:
    channels = Channels([me], socket_id=lambda assigns: assigns["missing"])
    assert (await refused(channels)).status == 500
    assert channels.statistics().counts == {"connect_crashed": 1}


async def test_a_server_without_the_extension_for_refusals_gets_a_plain_close() -> None:
    sent: list[Any] = []

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def record(message: Any) -> None:
            sent.append(message)
            await send(message)

        await raising(ConnectError("no", 429))({**scope, "extensions": {}}, receive, record)

    assert (await refused(server)).status == 403
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert (await refused(with_scope(raising(ConnectError("no", 429)), extensions=None))).status == 403


@pytest.mark.parametrize("vsn", ["2.0.0", "2.0.9", "2.0.1-rc.1", "2.0.4+build5", "1.0.0", "1.0.5"])
async def test_a_version_that_a_serializer_fits_is_served(vsn: str) -> None:
    async with connect(Channels([me]), vsn=vsn) as client:
        assert await client.heartbeat() == Reply("ok", {})


async def test_without_a_version_it_is_the_first() -> None:
    async with connect(with_scope(Channels([me]), query_string=b"a=1"), vsn="1.0.0") as client:
        assert await client.heartbeat() == Reply("ok", {})


@pytest.mark.parametrize(
    "query",
    ["1.1.0", "2.1.0", "3.0.0", "2.0", "2", "", "2.0.0-rc.1", "x", "2.0.0 ", "[]=2.0.0", "[a]=2.0.0", "%32.0.0.0"],
)
async def test_other_versions_are_refused_before_connect_is_asked(query: str) -> None:
    channels = raising(AssertionError("connect was asked"))
    line = f"vsn{query}" if query.startswith("[") else f"vsn={query}"
    refusal = await refused(with_scope(channels, query_string=line.encode()))
    assert (refusal.status, refusal.body) == (403, "")
    assert channels.statistics().counts == {"connect_refused": 1}


@pytest.mark.parametrize(
    ("ours", "offered", "chosen"),
    [
        (None, [], None),
        (None, ["chat"], None),
        (["chat", "sip"], [], None),
        (["chat", "sip"], ["sip", "chat"], "chat"),
        (["chat", "sip"], ["other", "sip"], "sip"),
    ],
)
async def test_the_first_of_our_subprotocols_that_the_client_offers_is_chosen(
    ours: list[str] | None, offered: list[str], chosen: str | None
) -> None:
    async with connect(Channels([me], subprotocols=ours), subprotocols=offered) as client:
        assert client.subprotocol == chosen


@pytest.mark.parametrize(("ours", "offered"), [(["chat"], ["other"]), ([], ["chat"]), (["chat"], ["CHAT"])])
async def test_a_client_that_offers_only_other_subprotocols_is_refused(ours: list[str], offered: list[str]) -> None:
    assert (await refused(Channels([me], subprotocols=ours), subprotocols=offered)).status == 403


@pytest.mark.parametrize(
    ("query", "params"),
    [
        ("user[name]=ann&user[tags][]=a&user[tags][]=b", {"user": {"name": "ann", "tags": ["a", "b"]}}),
        ("list[0]=x&list[1]=y", {"list": {"0": "x", "1": "y"}}),
        ("a=1&a=2&flag&&", {"a": "2", "flag": ""}),
        ("q=%C3%A9+%2B", {"q": "é +"}),
    ],
)
async def test_params_are_decoded_as_phoenix_js_writes_them(query: str, params: dict[str, Any]) -> None:
    channels = Channels([me], connect=enter_with_params)
    app = with_scope(channels, query_string=f"{query}&vsn=2.0.0".encode())
    assert await told(app) == {**params, "vsn": "2.0.0"}


@pytest.mark.parametrize("query", ["a=%ff", "a=%zz", "%ff=a", "a=%", "&".join("a" * 2000), "a" + "[b]" * 99])
async def test_a_malformed_query_is_400_and_not_a_crash(query: str) -> None:
    channels = raising(AssertionError("connect was asked"))
    refusal = await refused(with_scope(channels, query_string=query.encode() + b"&vsn=2.0.0"))
    assert (refusal.status, refusal.body) == (400, "")


async def test_path_variables_of_mount_and_path_are_params_and_win_over_the_query() -> None:
    channels = Channels([me], connect=enter_with_params, path="/ws/{region}/{n:int}")
    app = Starlette(routes=[Mount("/{tenant}/socket", app=channels)])
    params = await told(app, "/acme/socket", path="/ws/eu/7", region="us", tenant="evil", other="kept")
    assert params == {"tenant": "acme", "region": "eu", "n": 7, "other": "kept", "vsn": "2.0.0"}


async def test_connect_sees_what_middleware_has_made_of_the_request() -> None:
    class Backend(AuthenticationBackend):
        async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
            name = conn.headers.get("authorization")
            return None if name is None else (AuthCredentials(["authenticated"]), SimpleUser(name))

    async def enter(conn: Handshake) -> dict[str, Any]:
        if not conn.user.is_authenticated:
            raise ConnectError("log in", 401)
        return {"user": conn.user.display_name, "scopes": conn.auth.scopes, "session": dict(conn.session)}

    cookie = itsdangerous.TimestampSigner("key").sign(base64.b64encode(json.dumps({"cart": [1]}).encode())).decode()
    app = Starlette(
        routes=[Mount("/socket", app=Channels([me], connect=enter))],
        middleware=[
            Middleware(SessionMiddleware, secret_key="key"),
            Middleware(AuthenticationMiddleware, backend=Backend()),
        ],
    )
    headers = {"Authorization": "ann", "Cookie": f"session={cookie}"}
    expected = {"user": "ann", "scopes": ["authenticated"], "session": {"cart": [1]}}
    assert await told(app, "/socket", headers=headers) == expected
    assert (await told(app, "/socket", headers={"Authorization": "bob"}))["session"] == {}
    refusal = await refused(app, "/socket")
    assert (refusal.status, refusal.body) == (401, "log in")


async def test_connect_sees_headers_cookies_address_and_the_application() -> None:
    async def enter(conn: Handshake) -> dict[str, Any]:
        assert conn.client is not None
        return {
            "agent": conn.headers["user-agent"],
            "cookies": conn.cookies,
            "host": conn.client.host,
            "path": conn.url.path,
            "database": conn.app.state.database,
            "offered": conn.offered_subprotocols,
        }

    app = Starlette(routes=[Mount("/socket", app=Channels([me], connect=enter))])
    app.state.database = "a database"
    headers = {"User-Agent": "test", "Cookie": "a=1; b=2"}
    assert await told(app, "/socket", headers=headers, subprotocols=["chat"]) == {
        "agent": "test",
        "cookies": {"a": "1", "b": "2"},
        "host": "testclient",
        "path": "/socket/websocket",
        "database": "a database",
        "offered": ["chat"],
    }


async def test_a_client_that_is_gone_before_it_is_accepted_leaves_nothing_behind() -> None:
    channels = Channels([me], socket_id=lambda _: "somebody")

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        raise OSError("gone")

    scope: Scope = {"type": "websocket", "path": "/websocket", "query_string": b"vsn=2.0.0", "headers": []}
    await channels(scope, receive, send)
    assert channels.statistics().connections == channels.statistics().topics == 0
