"""A handshake that the fast lane reads by itself is read as `websockets` reads it, or left to that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS, Request
from websockets.server import ServerProtocol

from starlette_channels.transports.uvicorn_lane.handshake import read_request

SHAKE = [
    (b"host", b"example.org"),
    (b"upgrade", b"websocket"),
    (b"connection", b"keep-alive, Upgrade"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"sec-websocket-version", b"13"),
    (b"cookie", b"a=1; b=x y"),
    (b"cookie", b"c=:,;\t2"),
]


def written(path: bytes, headers: list[tuple[bytes, bytes]], method: bytes = b"GET") -> bytes:
    """What uvicorn writes for `websockets` to read."""
    lines = [method + b" " + path + b" HTTP/1.1\r\n", *(name + b": " + value + b"\r\n" for name, value in headers)]
    return b"".join((*lines, b"\r\n"))


def read_by_websockets(data: bytes) -> Request | None:
    protocol = ServerProtocol()
    protocol.receive_data(data)
    events = protocol.events_received()
    return events[0] if events and isinstance(events[0], Request) else None


def test_the_request_of_a_browser_is_read_here() -> None:
    data = written(b"/socket/websocket?vsn=2.0.0&name=J%C3%B6rg", SHAKE)
    assert read_request(data) is not None
    assert read_request(data) == read_by_websockets(data)


@pytest.mark.parametrize(
    "data",
    [
        written(b"/", SHAKE, b"POST"),
        written(b"/", [*SHAKE, (b"transfer-encoding", b"chunked")]),
        written(b"/", [*SHAKE, (b"Content-Length", b"3")]),
        written(b"/", [*SHAKE, (b"x", b"\xff")]),
        written(b"/", [*SHAKE, (b"x", b"")]),
        written(b"/", [*SHAKE, (b"x", b" y ")]),
        written(b"/\xff", SHAKE),
        written(b"/", [(b"x", b"y")] * (MAX_NUM_HEADERS + 1)),
        written(b"/" + b"x" * MAX_LINE_LENGTH, SHAKE),
        written(b"/", []),
        written(b"/", SHAKE) + b"\x81\x80",
        written(b"/", SHAKE)[:-1],
    ],
)
def test_what_is_not_that_plain_is_left_to_websockets(data: bytes) -> None:
    assert read_request(data) is None


printable = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=12).map(
    lambda text: text.encode("latin-1")
)
names = st.sampled_from([b"host", b"Upgrade", b"x-y", b"content-length", b"Transfer-Encoding", b"b d"]) | printable


@given(path=printable.map(lambda path: b"/" + path), headers=st.lists(st.tuples(names, printable), max_size=5))
def test_no_request_is_read_in_a_way_of_our_own(path: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    data = written(path, headers)
    request = read_request(data)
    assert request is None or request == read_by_websockets(data)
