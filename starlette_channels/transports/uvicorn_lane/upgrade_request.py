"""The upgrade request of a WebSocket handshake (RFC 6455, section 4.2.1), read and checked in one pass.

The pass covers the requests of browsers and of common clients. Other requests are read by the HTTP parser of uvicorn
and by `websockets`: they accept all requests that are accepted here, and read them in the same way.
"""

import binascii
import hashlib
import logging
import re
from typing import NamedTuple

from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS, Request
from websockets.server import ServerProtocol

from starlette_channels.transports.uvicorn_lane.http_response import refusal

MAX_BYTES = MAX_LINE_LENGTH
"""Larger requests are read by `websockets`, which has such a limit for each line."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"
_VALUE = rb"[!-~]++(?:[\t ]++[!-~]++)*+"
_TARGET = rb"/[-A-Za-z0-9._~:/?@!$&'()*+,;=%\[\]]*+"
_HEAD = re.compile(rb"GET (%b) HTTP/1\.1\r\n((?:%b: %b\r\n)++)\r\n" % (_TARGET, _TOKEN, _VALUE))
_HEADER = re.compile(rb"([^:]++): ([^\r]++)\r\n")
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_SUBPROTOCOLS = re.compile(rb"%b(?:[\t ]*+,[\t ]*+%b)*+" % (_TOKEN, _TOKEN))

_CONNECTION = frozenset({b"upgrade", b"keep-alive, upgrade"})
_ONCE = frozenset(
    {b"host", b"upgrade", b"connection", b"origin", b"sec-websocket-key", b"sec-websocket-version"},
)
_UNUSUAL = frozenset({b"content-length", b"transfer-encoding", b"expect", b"proxy-connection"})


class UpgradeRequest(NamedTuple):
    """A valid upgrade request."""

    target: bytes
    """Path and query."""
    headers: list[tuple[bytes, bytes]]
    subprotocols: list[str]
    accept: bytes
    """The value of `Sec-WebSocket-Accept`."""
    size: int
    """Size of the request in bytes; frames may follow it."""


def read_upgrade(data: bytes) -> UpgradeRequest | None:
    """Read the upgrade request at the beginning of `data`; `None` if it is incomplete, invalid, or not a common one."""
    head = _HEAD.match(data, 0, MAX_BYTES)
    if head is None:
        return None
    headers = [(name.lower(), value) for name, value in _HEADER.findall(head[2])]
    fields = dict(headers)
    key = fields.get(b"sec-websocket-key", b"")
    if (
        fields.get(b"connection", b"").lower() not in _CONNECTION
        or fields.get(b"upgrade", b"").lower() != b"websocket"
        or fields.get(b"sec-websocket-version") != b"13"
        or _KEY.fullmatch(key) is None
        or b"host" not in fields
        or not _UNUSUAL.isdisjoint(fields)
        or len(headers) > MAX_NUM_HEADERS
        or (len(fields) < len(headers) and _repeats_a_header(headers))
    ):
        return None
    subprotocols: list[str] = []
    if b"sec-websocket-protocol" in fields:
        for name, value in headers:
            if name == b"sec-websocket-protocol":
                if _SUBPROTOCOLS.fullmatch(value) is None:
                    return None
                subprotocols += [one.strip() for one in value.decode("ascii").split(",")]
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    accept = binascii.b2a_base64(digest, newline=False)
    return UpgradeRequest(head[1], headers, subprotocols, accept, head.end())


def _repeats_a_header(headers: list[tuple[bytes, bytes]]) -> bool:
    """Return whether a header that must be unique is repeated."""
    once = [name for name, _ in headers if name in _ONCE]
    return len(once) > len(set(once))


def read_any_upgrade(data: bytes, logger: logging.Logger) -> UpgradeRequest | bytes:
    """Read an upgrade request as `websockets` does; return the response that refuses it if it is invalid."""
    protocol = ServerProtocol(logger=logger)
    protocol.receive_data(data)
    request = next((event for event in protocol.events_received() if isinstance(event, Request)), None)
    if request is None:
        return b"".join(protocol.data_to_send()) or refusal(400, [], b"Bad Request")
    response = protocol.accept(request)
    if response.status_code != 101:
        protocol.send_response(response)
        return b"".join(protocol.data_to_send())
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in request.headers.raw_items()]
    offers = request.headers.get_all("Sec-WebSocket-Protocol")
    return UpgradeRequest(
        request.path.encode("ascii"),
        headers,
        [one.strip() for offer in offers for one in offer.split(",")],
        response.headers["Sec-WebSocket-Accept"].encode("ascii"),
        len(data),
    )
