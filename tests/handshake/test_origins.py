"""Which pages may connect: `Channels(check_origin=...)`."""

import logging
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from starlette_channels import Channels, Handshake, Socket, channel
from starlette_channels.handshake.origins import Allowed, Origin, is_same_host, parse_allowed, parse_origin
from starlette_channels.testing import HandshakeRefused, connect
from tests.support.polling import Poller

pytestmark = pytest.mark.anyio
PROPERTY = settings(derandomize=True, database=None, deadline=None)


@channel("room:*")
async def room(socket: Socket[Any], payload: Any) -> None: ...


async def status(channels: Channels[Any], *, mount: str = "", app: Any = None, **headers: str) -> int:
    """The status of a handshake with these headers; 101 if it succeeds."""
    try:
        async with connect(app or channels, mount, headers=headers):
            return 101
    except HandshakeRefused as refusal:
        return refusal.status if refusal.body == "" else 0


SAME_HOST = [
    ("https://chat.example", "chat.example"),
    ("http://chat.example", "chat.example"),  # TLS may end at a proxy: the scheme is not known
    ("https://chat.example", "chat.example:443"),
    ("https://chat.example:8443", "chat.example"),
    ("http://localhost:5173", "localhost:8000"),  # the page of a development server
    ("https://CHAT.example", "chat.EXAMPLE"),
    ("http://127.0.0.1:3000", "127.0.0.1:8000"),
    ("http://[::1]:3000", "[::1]:8000"),
    ("https://chat_1.example", "chat_1.example"),
    ("https://xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("capacitor://localhost", "localhost"),
]
ELSEWHERE = [
    ("https://evil.example", "chat.example"),
    ("https://chat.example.evil.example", "chat.example"),
    ("https://evilchat.example", "chat.example"),
    ("https://other.chat.example", "chat.example"),
    ("https://example", "chat.example"),
    ("https://chat.example@evil.example", "chat.example"),
    ("https://evil.example@chat.example", "chat.example"),
    ("https://chat.example:x", "chat.example"),
    ("https://chat.example:", "chat.example"),
    ("https://chat.example/", "chat.example"),
    ("https://chat.example?", "chat.example"),
    ("https://chat.exa\tmple", "chat.example"),
    (" https://chat.example", "chat.example"),
    ("https://chat.example\n", "chat.example"),
    ("https://chat.example, https://evil.example", "chat.example"),
    ("https:chat.example", "chat.example"),
    ("//chat.example", "chat.example"),
    ("chat.example", "chat.example"),
    ("null", "null"),
    ("null", "chat.example"),
    ("file://", "chat.example"),
    ("file://", ""),
    ("", "chat.example"),
    ("", ""),
    ("https://chat.example", ""),
    ("https://chat.example", "chat.example, evil.example"),
    ("https://\xe9.example", "\xe9.example"),
    ("http://localhost:3000", "127.0.0.1:8000"),
]


@pytest.mark.parametrize(("origin", "host"), SAME_HOST)
async def test_pages_of_our_own_host_may_connect_by_default(origin: str, host: str) -> None:
    assert await status(Channels([room]), origin=origin, host=host) == 101


@pytest.mark.parametrize(("origin", "host"), ELSEWHERE)
async def test_pages_from_elsewhere_may_not(origin: str, host: str) -> None:
    channels = Channels([room])
    assert await status(channels, origin=origin, host=host) == 403
    assert channels.statistics().counts == {"origin_refused": 1}


def nobody(conn: Handshake) -> bool:
    return False


@pytest.mark.parametrize("setting", [True, False, ["https://chat.example"], nobody])
async def test_a_program_sends_no_origin_and_may_connect(setting: Any) -> None:
    assert await status(Channels([room], check_origin=setting)) == 101


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "rubbish"])
async def test_the_check_can_be_switched_off(origin: str) -> None:
    assert await status(Channels([room], check_origin=False), origin=origin) == 101


LISTED = [
    ("//any.example", "http://any.example", True),
    ("//any.example", "https://any.example:8443", True),
    ("//any.example", "capacitor://any.example", True),
    ("//any.example", "https://a.any.example", False),
    ("//any.example", "https://any.example.evil.example", False),
    ("//port.example:81", "http://port.example:81", True),
    ("//port.example:81", "https://port.example:81", True),
    ("//port.example:81", "http://port.example", False),
    ("//port.example:443", "https://port.example", True),
    ("//port.example:443", "http://port.example", False),
    ("https://tls.example", "https://tls.example", True),
    ("https://tls.example", "https://tls.example:443", True),
    ("https://tls.example", "http://tls.example", False),
    ("https://tls.example", "http://tls.example:443", False),
    ("https://tls.example", "https://tls.example:8443", False),
    ("https://tls.example:8443", "https://tls.example:8443", True),
    ("https://tls.example:8443", "https://tls.example", False),
    ("http://plain.example", "http://plain.example:80", True),
    ("//*.wild.example", "https://wild.example", True),
    ("//*.wild.example", "https://a.wild.example", True),
    ("//*.wild.example", "http://a.b.wild.example:81", True),
    ("//*.wild.example", "https://evilwild.example", False),
    ("//*.wild.example", "https://wild.example.evil.example", False),
    ("https://*.wild.example", "http://a.wild.example", False),
    ("https://*.wild.example:8443", "https://a.wild.example:8443", True),
    ("//*.localhost:3000", "http://shop.localhost:3000", True),
    ("capacitor://localhost", "capacitor://localhost", True),
    ("capacitor://localhost", "http://localhost", False),
    ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop", True),
    ("chrome-extension://abcdefghijklmnop", "chrome-extension://ponmlkjihgfedcba", False),
    ("//[::1]", "http://[::1]:3000", True),
    ("HTTPS://TLS.example", "https://tls.EXAMPLE", True),
    ("//any.example", "null", False),
    ("//any.example", "//any.example", False),
]


@pytest.mark.parametrize(("entry", "origin", "admitted"), LISTED)
async def test_an_entry_of_a_list_admits_what_it_names(entry: str, origin: str, *, admitted: bool) -> None:
    for setting in ([entry], ("//nobody.example", entry)):
        assert await status(Channels([room], check_origin=setting), origin=origin) == (101 if admitted else 403)


async def test_a_list_is_the_whole_list_our_own_host_is_not_on_it() -> None:
    headers = {"host": "chat.example", "origin": "https://chat.example"}
    assert await status(Channels([room], check_origin=["https://partner.example"]), **headers) == 403
    assert await status(Channels([room], check_origin=[]), **headers) == 403


async def test_a_function_sees_the_handshake_and_decides() -> None:
    def check(conn: Handshake) -> bool:
        return conn.headers["origin"] == f"https://{conn.params['tenant']}.example"

    channels = Channels([room], check_origin=check)
    async with connect(channels, headers={"origin": "https://ann.example"}, tenant="ann"):
        pass
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(channels, headers={"origin": "https://ann.example"}, tenant="bob"):
            pass
    assert caught.value.status == 403
    assert await status(Channels([room], check_origin=lambda conn: True), origin="null") == 101


@pytest.mark.parametrize("verdict", [None, 1, "yes", object()])
async def test_a_function_that_returns_no_bool_admits_nobody(verdict: Any, caplog: pytest.LogCaptureFixture) -> None:
    channels = Channels([room], check_origin=lambda conn: verdict)
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(channels, headers={"origin": "https://chat.example"}):
            pass
    assert (caught.value.status, caught.value.body) == (500, "Internal Server Error")
    assert channels.statistics().counts == {"connect_crashed": 1}
    assert "must be True or False" in caplog.text


async def test_a_function_that_raises_admits_nobody_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    channels = Channels([room], check_origin=lambda conn: bool(conn.headers["x-missing"]))
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(channels, headers={"origin": "https://chat.example"}):
            pass
    assert (caught.value.status, caught.value.body) == (500, "Internal Server Error")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


async def test_a_refusal_is_logged_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    await status(Channels([room]), origin="https://evil.example\x1b[31m", host="chat.example")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "https://evil.example\\x1b[31m" in record.message
    assert "chat.example" in record.message
    assert "Channels(check_origin=[...])" in record.message
    assert "\x1b" not in record.message


async def test_the_origin_is_checked_before_the_version_the_subprotocol_and_connect() -> None:
    asked: list[str] = []

    async def enter(conn: Handshake) -> None:
        asked.append("connect")

    channels = Channels([room], connect=enter, subprotocols=["chat"], auth_token=True)
    with pytest.raises(HandshakeRefused):
        async with connect(
            channels, vsn="9.0.0", headers={"origin": "https://evil.example"}, subprotocols=["base64url.bearer.phx.!"]
        ):
            pass
    assert channels.statistics().counts == {"origin_refused": 1}
    assert asked == []


async def test_only_the_first_origin_counts() -> None:
    channels = Channels([room])

    def with_origins(*origins: str) -> Any:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            lines = [(b"origin", origin.encode()) for origin in origins]
            await channels({**scope, "headers": [*scope["headers"], *lines]}, receive, send)

        return app

    ours, theirs = "https://testserver", "https://evil.example"
    assert await status(channels, app=with_origins(ours, theirs)) == 101
    assert await status(channels, app=with_origins(theirs, ours)) == 403


@pytest.mark.parametrize(("origin", "expected"), [("https://evil.example", 403), ("https://testserver", 400)])
async def test_a_plain_request_to_the_websocket_is_checked_too(origin: str, expected: int) -> None:
    channels = Channels([room])
    transport = httpx.ASGITransport(channels)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as http:
        assert (await http.get("/websocket", headers={"origin": origin})).status_code == expected
        # Pages from anywhere may import the client.
        assert (await http.get("/channels.js", headers={"origin": origin})).status_code == 200
    assert channels.statistics().counts.get("origin_refused", 0) == (expected == 403)


SITES = [
    ("cross-site", False),
    ("same-site", False),
    ("Cross-Site", False),
    ("same-origin, cross-site", False),
    ("same-origin", True),
    ("none", True),  # the user has typed the address
    ("", True),
    ("rubbish", True),
]


@pytest.mark.parametrize("setting", [True, False, ["https://page.example"], nobody])
@pytest.mark.parametrize(("site", "admitted"), SITES)
async def test_what_a_browser_asks_for_without_an_origin_opens_no_session_for_a_page_from_elsewhere(
    site: str, setting: Any, *, admitted: bool
) -> None:
    channels = Channels([room], check_origin=setting, longpoll=True)
    answer = (await Poller(channels).request("GET", host="chat.example", sec_fetch_site=site)()).json
    assert answer["status"] == (410 if admitted else 403)
    assert channels.statistics().connections == admitted
    assert channels.statistics().counts.get("origin_refused", 0) == (not admitted)


def everybody(conn: Handshake) -> bool:
    return True


@pytest.mark.parametrize("setting", [False, ["https://page.example"], everybody])
async def test_a_script_of_an_admitted_page_sends_an_origin_and_gets_its_session(setting: Any) -> None:
    channels = Channels([room], check_origin=setting, longpoll=True)
    headers = {"host": "chat.example", "origin": "https://page.example", "sec_fetch_site": "cross-site"}
    poller = Poller(channels)
    poller.token = (await poller.request("GET", **headers)()).json["token"]
    assert (await poller.request("POST", b'[null,null,"phoenix","heartbeat",{}]', **headers)()).json["status"] == 200
    assert (await poller.request("GET", **headers)()).json["status"] == 200


async def test_the_refusal_of_what_has_no_origin_is_logged_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    channels = Channels([room], longpoll=True)
    await Poller(channels).request("GET", sec_fetch_site="same-site")()
    assert "no origin, and Sec-Fetch-Site same-site" in caplog.text


@pytest.mark.parametrize("entry", ["//*.WILD.example", "//*.wild.EXAMPLE", "HTTPS://*.Wild.Example"])
@pytest.mark.parametrize("origin", ["https://a.wild.example", "https://A.WILD.example", "HTTPS://wild.Example"])
async def test_a_star_compares_hosts_without_regard_to_case(entry: str, origin: str) -> None:
    assert await status(Channels([room], check_origin=[entry]), origin=origin) == 101


async def test_a_name_of_the_attackers_that_leads_to_our_address_is_stopped_by_trusted_hosts() -> None:
    """DNS rebinding: origin and host agree, and neither is ours."""
    channels = Channels([room])
    app = Starlette(
        routes=[Mount("/socket", app=channels)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["chat.example"])],
    )
    rebound = {"origin": "http://evil.example:8000", "host": "evil.example:8000"}
    assert await status(channels, **rebound) == 101
    with pytest.raises(HandshakeRefused):
        async with connect(app, "/socket", headers=rebound):
            pass
    assert await status(channels, app=app, mount="/socket", origin="https://chat.example", host="chat.example") == 101


@pytest.mark.parametrize(
    ("setting", "error", "fix"),
    [
        (["chat.example"], ValueError, "write '//chat.example' for any scheme, or 'https://chat.example'"),
        (["https://chat.example/"], ValueError, "without a path"),
        (["https://chat.example/app"], ValueError, "without a path"),
        (["https://"], ValueError, "without a path"),
        (["//a.*.example"], ValueError, "write '//host'"),
        (["//*"], ValueError, "write '//host'"),
        (["*"], ValueError, "write check_origin=False"),
        (["wss://chat.example"], ValueError, "name the page's, with http"),
        (["https://b\xfccher.example"], ValueError, "in ASCII (xn--...)"),
        (["//good.example", ""], ValueError, "'' is no origin"),
        (["//[::1"], ValueError, "is no origin"),
        ("https://chat.example", TypeError, "give a list of strings"),
        ([b"//chat.example"], TypeError, "give a list of strings"),
        (None, TypeError, "give a list of strings, a function, True or False"),
        (7, TypeError, "give a list of strings, a function, True or False"),
    ],
)
def test_mistakes_fail_at_once_with_the_fix(setting: Any, error: type[Exception], fix: str) -> None:
    with pytest.raises(error) as caught:
        Channels([room], check_origin=setting)
    assert "check_origin" in str(caught.value)
    assert fix in str(caught.value)


def test_an_async_function_fails_at_once_because_its_coroutine_would_admit_everybody() -> None:
    async def check(conn: Handshake) -> bool:
        return False

    with pytest.raises(TypeError, match="must not be async"):
        Channels([room], check_origin=check)  # pyright: ignore[reportArgumentType, reportCallIssue]


HOSTS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}(\.[a-z0-9-]{1,8}){0,3}", fullmatch=True)
PORTS = st.none() | st.integers(1, 65_535)
SCHEMES = st.sampled_from(["http", "https", "capacitor"])


def origin_of(scheme: str, host: str, port: int | None) -> str:
    return f"{scheme}://{host}" + (f":{port}" if port else "")


@PROPERTY
@given(SCHEMES, HOSTS, PORTS)
def test_every_origin_that_a_browser_can_send_is_read_and_admits_itself(scheme: str, host: str, port: int) -> None:
    text = origin_of(scheme, host, port)
    origin = parse_origin(text)
    assert origin == Origin(scheme, host, port or {"http": 80, "https": 443}.get(scheme))
    assert is_same_host(text, host)
    for entry in (text, f"//{host}", f"//*.{host}", f"{scheme}://*.{text.partition('//')[2]}"):
        assert origin is not None
        assert parse_allowed(entry).admits(origin)


@PROPERTY
@given(SCHEMES, HOSTS, PORTS, HOSTS)
def test_a_star_admits_the_host_and_what_is_below_it_and_nothing_else(
    scheme: str, host: str, port: int | None, other: str
) -> None:
    star = Allowed(None, host, None, subdomains=True)
    below, beside = parse_origin(origin_of(scheme, f"{other}.{host}", port)), parse_origin(f"{scheme}://{other}{host}")
    assert below is not None
    assert star.admits(below)
    assert beside is not None
    assert star.admits(beside) == (f".{other}{host}".endswith(f".{host}"))


@PROPERTY
@given(st.text())
def test_nothing_that_a_client_sends_makes_the_check_raise(header: str) -> None:
    origin = parse_origin(header)
    assert origin is None or (origin.host and is_same_host(header, origin.host))
    assert is_same_host(header, header) is False
