"""An upgrade request that the fast lane reads itself is read in the same way by the parsers of uvicorn."""

from typing import Any

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS, Request
from websockets.server import ServerProtocol

from starlette_channels.transports.uvicorn_lane.handshake import server_logger
from starlette_channels.transports.uvicorn_lane.upgrade_request import UpgradeRequest, read_any_upgrade, read_upgrade

Headers = list[tuple[bytes, bytes]]

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE: Headers = [
    (b"Host", b"example.org"),
    (b"Upgrade", b"websocket"),
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Sec-WebSocket-Key", KEY),
    (b"Sec-WebSocket-Version", b"13"),
]
COOKIES: Headers = [(b"Cookie", b"a=1; b=x y"), (b"Cookie", b"c=:,;\t2")]


def written(target: bytes, headers: Headers, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    lines = [b"%b %b HTTP/%b\r\n" % (method, target, version), *(b"%b: %b\r\n" % header for header in headers)]
    return b"".join((*lines, b"\r\n"))


class Httptools:
    """The request as httptools reads it."""

    def __init__(self, data: bytes) -> None:
        self.target, self.headers = b"", Headers()
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.end: int = upgrade.args[0]
        self.method, self.version = self._parser.get_method(), self._parser.get_http_version()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def read_by_h11(data: bytes) -> tuple[bytes, Headers, bytes]:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert event.http_version == b"1.1"
    assert event.method == b"GET"
    return event.target, [(name, value) for name, value in event.headers], connection.trailing_data[0]


def rewritten(request: UpgradeRequest) -> bytes:
    """The request as uvicorn writes it for its WebSocket protocols."""
    return written(request.target, request.headers)


def assert_others_agree(data: bytes, request: UpgradeRequest) -> None:
    """Fail unless httptools, h11 and `websockets` accept the request, and read the same."""
    parsed = Httptools(data)
    assert (parsed.method, parsed.version) == (b"GET", "1.1")
    assert (parsed.target, parsed.headers) == (request.target, request.headers)
    assert read_by_h11(data) == (request.target, request.headers, data[request.size :])
    again = rewritten(request)
    assert read_any_upgrade(again, server_logger) == request._replace(size=len(again))


def read_by_websockets(data: bytes) -> tuple[Request | None, int]:
    """The request, and the status of the answer."""
    protocol = ServerProtocol()
    protocol.receive_data(data)
    events = [event for event in protocol.events_received() if isinstance(event, Request)]
    return (events[0], protocol.accept(events[0]).status_code) if events else (None, 400)


@pytest.mark.parametrize(
    "more",
    [
        [],
        COOKIES,
        [(b"Origin", b"https://example.org"), (b"sec-websocket-protocol", b"phoenix, base64url.bearer.phx.YWJj")],
        [(b"Sec-WebSocket-Protocol", b"a,b"), (b"Sec-WebSocket-Protocol", b"c")],
        [(b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits"), (b"Pragma", b"no-cache")],
    ],
)
@pytest.mark.parametrize("rest", [b"", b"\x81\x80abcd"])
def test_the_requests_of_browsers_are_read_in_one_pass(more: Headers, rest: bytes) -> None:
    data = written(b"/socket/websocket?vsn=2.0.0&name=J%C3%B6rg", UPGRADE + more)
    request = read_upgrade(data + rest)
    assert request is not None
    assert request.size == len(data)
    assert request.accept == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert_others_agree(data + rest, request)


def changed(name: bytes, *values: bytes) -> bytes:
    """A request in which a header has other values, or none."""
    headers = [header for header in UPGRADE if header[0] != name]
    return written(b"/", [*headers, *((name, value) for value in values)])


@pytest.mark.parametrize(
    "data",
    [
        written(b"/", UPGRADE, b"POST"),
        written(b"/", UPGRADE, version=b"1.0"),
        written(b"http://example.org/", UPGRADE),
        written(b"*", UPGRADE),
        written(b"/#x", UPGRADE),
        written(b"/\xff", UPGRADE),
        written(b"/" + b"x" * MAX_LINE_LENGTH, UPGRADE),
        written(b"/", UPGRADE)[:-1],
        written(b"/", []),
        written(b"/", UPGRADE + [(b"x", b"y")] * (MAX_NUM_HEADERS + 1)),
        *(
            written(b"/", [*UPGRADE, header])
            for header in (
                *((b"transfer-encoding", b"chunked"), (b"Content-Length", b"0"), (b"Expect", b"100-continue")),
                *((b"x", b"\xff"), (b"x", b""), (b"x", b" y "), (b"x", b"y\x00z"), (b"x y", b"z"), (b"", b"z")),
                (b"Sec-WebSocket-Protocol", b"a b"),
            )
        ),
        *(changed(name) for name, _ in UPGRADE),
        *(changed(name, value, value) for name, value in UPGRADE),
        changed(b"Origin", b"https://a", b"https://b"),
        changed(b"Upgrade", b"h2c"),
        changed(b"Connection", b"keep-alive"),
        changed(b"Connection", b"Upgrade, HTTP2-Settings"),
        changed(b"Sec-WebSocket-Version", b"8"),
        changed(b"Sec-WebSocket-Key", b"c2hvcnQ="),
        changed(b"Sec-WebSocket-Key", KEY.replace(b"d", b"-")),
    ],
)
def test_other_requests_are_left_to_the_parsers_of_uvicorn(data: bytes) -> None:
    assert read_upgrade(data) is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (changed(b"Sec-WebSocket-Version", b"8"), 400),
        (changed(b"Sec-WebSocket-Key"), 400),
        (changed(b"Upgrade", b"h2c"), 426),
        (written(b"/", UPGRADE, b"POST"), 405),
        (written(b"/", UPGRADE, version=b"1.0"), 505),
        (written(b"/", [*UPGRADE, (b"x", b"y" * MAX_LINE_LENGTH)]), 431),
        (written(b"/", [*UPGRADE, (b"content-length", b"3")]), 400),
    ],
)
def test_an_invalid_request_is_answered_with_its_status(data: bytes, status: int) -> None:
    answer = read_any_upgrade(data, server_logger)
    assert isinstance(answer, bytes)
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_an_uncommon_request_is_read_by_websockets() -> None:
    data = changed(b"connection", b"foo, Upgrade")
    request = read_any_upgrade(data, server_logger)
    assert isinstance(request, UpgradeRequest)
    assert request.accept == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert read_by_websockets(data)[1] == 101


printable = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=12).map(
    lambda text: text.encode("latin-1")
)
visible = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8).map(lambda text: text.encode("ascii"))
names = (
    st.sampled_from([b"host", b"Origin", b"x-y", b"content-length", b"TE", b"Trailer", b"proxy-connection", b"b d"])
    | st.sampled_from([name for name, _ in UPGRADE])
    | st.just(b"Sec-WebSocket-Protocol")
    | printable
)
values = printable | visible | st.sampled_from([value for _, value in UPGRADE]) | st.just(b"chat, phoenix")


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Valid requests with a few changes."""
    headers = [header for header in UPGRADE if draw(st.integers(0, 15))]
    headers += draw(st.lists(st.tuples(names, values), max_size=4))
    spaces: Any = st.sampled_from([b"", b"", b"", b" ", b"\t"])
    headers = [(name, draw(spaces) + value + draw(spaces)) for name, value in draw(st.permutations(headers))]
    rest = draw(st.just(b"") | printable)
    return written(b"/" + draw(printable | visible), headers) + rest


@given(requests())
def test_whatever_is_read_here_is_read_in_the_same_way_by_the_parsers_of_uvicorn(data: bytes) -> None:
    request = read_upgrade(data)
    if request is not None:
        assert_others_agree(data, request)
