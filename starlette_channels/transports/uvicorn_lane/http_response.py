"""HTTP responses that the fast lane writes itself: the 101 of a handshake, and refusals."""

import re
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from http import HTTPStatus

Header = tuple[bytes, bytes]

_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "


class DefaultHeaders:
    """The server's default headers as bytes; uvicorn makes a new list once a second."""

    __slots__ = ("_bytes", "_headers")

    def __init__(self) -> None:
        self._headers: Sequence[Header] = ()
        self._bytes = b""

    def encode(self, headers: Sequence[Header]) -> bytes:
        """Return the lines of the headers; cached until the list is another one."""
        if headers is not self._headers:
            self._headers, self._bytes = headers, encode_headers(headers)
        return self._bytes


def encode_headers(headers: Iterable[Header]) -> bytes:
    """Return the lines of headers. Raises `RuntimeError` for a name or a value that HTTP does not allow."""
    lines: list[bytes] = []
    for name, value in headers:
        if _NAME.fullmatch(name) is None:
            raise RuntimeError("Invalid HTTP header name.")
        if _VALUE.fullmatch(value) is None:
            raise RuntimeError("Invalid HTTP header value.")
        lines += (name, b": ", value, b"\r\n")
    return b"".join(lines)


def switching_protocols(
    accept: bytes, default_lines: bytes, headers: Sequence[Header], subprotocol: str | None
) -> bytes:
    """Return the response that accepts a WebSocket."""
    lines = encode_headers((name.lower(), value) for name, value in headers) if headers else b""
    if subprotocol:
        lines += encode_headers([(b"Sec-WebSocket-Protocol", subprotocol.encode("latin-1"))])
    return b"".join((_SWITCH, accept, b"\r\n", default_lines, lines, b"\r\n"))


def refusal(status: int, headers: Sequence[Header], body: bytes) -> bytes:
    """Return the response that refuses a WebSocket. The connection ends with it."""
    given = {name.lower() for name, _ in headers}
    defaults = (
        (b"Date", formatdate(usegmt=True).encode()),
        (b"Connection", b"close"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Content-Type", b"text/plain; charset=utf-8"),
    )
    lines = encode_headers([*headers, *(one for one in defaults if one[0].lower() not in given)])
    return b"".join((b"HTTP/1.1 %d %b\r\n" % (status, phrase(status).encode()), lines, b"\r\n", body))


def phrase(status: int) -> str:
    """Return the reason phrase of a status; empty for an unknown one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
