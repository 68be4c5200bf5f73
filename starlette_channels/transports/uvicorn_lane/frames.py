"""WebSocket frames (RFC 6455, no extensions) for a server: parses frames of clients, builds frames for them.

No I/O. Own code because it is the hot path of the fast lane; the tests compare it with the parser of `websockets`.
"""

from codecs import utf_8_decode
from collections import deque
from struct import pack

from msgspec import Raw, Struct

try:
    from websockets.speedups import apply_mask
except ImportError:  # websockets was installed without its C helper
    from websockets.utils import apply_mask

FAILURES = frozenset({1002, 1007, 1008, 1009, 1011})
"""Close codes after which input of the client is ignored, except for its close frame: RFC 6455, §7.1.7."""

_NO_CODE, _CODES = 1005, frozenset((1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)))  # §7.4, and IANA
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x81, 0x82, 0x88, 0x89, 0x8A  # first bytes; 0x80 is "final", 0x08 is "control"
_BETWEEN = frozenset((0x01, 0x02, _TEXT, _BINARY, _CLOSE, _PING, _PONG))  # first bytes allowed between messages,
_WITHIN = frozenset((0x00, 0x80, _CLOSE, _PING, _PONG))  # and within one
_SMALL = 125  # bytes: longest payload whose length fits into the second byte, and longest of any control frame

SLICE_BYTES = 1 << 16
"""Maximum bytes of one client parsed at once."""

FRAMES_AT_ONCE = 64
"""Maximum frames of one client parsed at once: empty frames cost as much as others."""


class Ping(Struct, frozen=True):
    """A ping; its answer is a pong with the same data."""

    data: bytes


class Pong(Struct, frozen=True):
    """A pong: the answer to a ping, or an unsolicited heartbeat."""

    data: bytes


class Close(Struct, frozen=True):
    """The client's close frame; the code is 1005 if it has none."""

    code: int
    reason: str


class Failure(Struct, frozen=True):
    """A violation by the client; the code is 1002 (protocol error), 1007 (text that is not UTF-8) or 1009 (too big)."""

    code: int
    reason: str


Event = str | bytes | Ping | Pong | Close | Failure


class FrameReader:
    """Parser of a client's bytes: returns messages (text is `str`, binary is `bytes`), pings, pongs and the close.

    `max_bytes` is the maximum size of a message, in any number of frames; control frames do not count.
    """

    __slots__ = (
        *("_ended", "_final", "_idle", "_mask", "_max_bytes", "_message", "_most_at_once"),
        *("_missing", "_rest", "_room", "_text", "_valid", "uncounted"),
    )

    def __init__(self, max_bytes: int) -> None:
        self.uncounted: int = 0
        """Number of frames received without a message: control frames, and all but the last fragment of messages."""
        self._most_at_once: int = min(max_bytes, _SMALL) + 6  # the longest frame of a small message
        self._max_bytes = self._room = max_bytes  # bytes allowed for a message, and for the rest of this one
        self._idle, self._ended = True, False  # idle: no incomplete frame or message, and not stopped
        self._rest = b""  # incomplete frame: a part of a header, or of a control frame
        self._message: bytearray | None = None  # the unmasked bytes of an incomplete message
        self._text, self._valid = False, 0  # whether it is text; size of its complete characters in bytes
        # The current frame: whether it is the final one, the mask rotated for the missing bytes, and their number.
        self._final, self._mask = False, b""
        self._missing: int = 0

    def read_one(self, data: bytes) -> str | None:
        """Read data that is exactly one small text message, the usual case; return `None` for anything else.

        `None` means that no data was consumed: pass it to `read`.
        """
        size = len(data)
        if self._idle and 6 <= size <= self._most_at_once and data[0] == _TEXT and data[1] == size + 122:
            try:
                return apply_mask(data[6:], data[2:6]).decode()
            except UnicodeDecodeError:
                pass  # reported by `read`
        return None

    def feed(self, data: bytes) -> list[Event]:
        """Parse bytes in pieces of any size; return complete events in order. A `Close` or `Failure` is the last."""
        events, at = deque[Event](), 0
        while at < len(data):
            at = self.read(data, at, events)
        return list(events)

    def read(self, data: bytes, at: int, events: deque[Event]) -> int:
        """Parse some of the bytes from position `at` on; return the position of the first byte that was not consumed.

        At most `SLICE_BYTES` and `FRAMES_AT_ONCE` are parsed, so the time is bounded: half a millisecond at most, and
        a few microseconds for each small message.
        """
        if self._ended:
            return len(data)
        end = min(len(data), at + SLICE_BYTES)
        left = FRAMES_AT_ONCE
        if self._idle:
            before = len(events)
            at = self._skim(data, at, end, events)
            left -= len(events) - before
        if at >= end or not left:
            return at
        try:
            if self._rest:
                rest, self._rest = self._rest, b""
                joined = rest + data[at:end]
                at += self._read(joined, 0, len(joined), left, events) - len(rest)
            else:
                at = self._read(data, at, end, left, events)
        except UnicodeDecodeError:
            self._fail(1007, "text is not UTF-8", events)
        return len(data) if self._ended else at

    def stop(self) -> None:
        """Stop parsing: further bytes cannot be parsed, or earlier ones were dropped."""
        self._idle, self._ended, self._rest, self._message, self._missing = False, True, b"", None, 0

    def _fail(self, code: int, reason: str, events: deque[Event]) -> int:
        events.append(Failure(code, reason))
        self.stop()
        return 0

    def _skim(self, data: bytes, at: int, end: int, events: deque[Event]) -> int:
        """Parse complete small text messages in a tight loop; return the position of the first other frame."""
        body, room = at + 6, len(events) + FRAMES_AT_ONCE
        most = _SMALL if self._room > _SMALL else self._room
        while body <= end and data[at] == _TEXT and len(events) < room:
            stop = body + data[at + 1] - 0x80
            if not body <= stop <= end or stop - body > most:
                break
            try:
                events.append(apply_mask(data[body:stop], data[at + 2 : body]).decode())
            except UnicodeDecodeError:
                break
            at, body = stop, stop + 6
        return at

    def _read(self, data: bytes, at: int, end: int, left: int, events: deque[Event]) -> int:
        if self._missing:
            stop = min(at + self._missing, end)
            self._take(apply_mask(data[at:stop], self._mask), events)
            at = stop
        while left and end - at >= 2:
            first, second = data[at], data[at + 1]
            if second < 0x80 or first not in (_BETWEEN if self._message is None else _WITHIN):
                return self._fail(1002, _objection(first, second), events)
            length, body, control = second - 0x80, at + 6, first & 0x08
            if length > _SMALL:
                if control:
                    return self._fail(1002, "control frame too long", events)
                body = at + (4 if length == 126 else 10)
                if body > end:
                    break
                length = int.from_bytes(data[at + 2 : body], "big")
                if length >> 63:
                    return self._fail(1002, "length out of range", events)
                body += 4
            if length > self._room and not control:
                return self._fail(1009, f"message of more than {self._max_bytes} bytes", events)
            stop = body + length
            if stop > end and (control or body > end):
                break
            left -= 1
            mask = data[body - 4 : body]
            payload = apply_mask(data[body : min(stop, end)], mask)
            at = min(stop, end)
            if first == _TEXT and stop <= end:
                events.append(payload.decode())
            elif first == _BINARY and stop <= end:
                events.append(payload)
            elif first == _CLOSE:
                events.append(_close(payload))
                self.stop()
                return 0
            elif control:
                self.uncounted += 1
                events.append(Ping(payload) if first == _PING else Pong(payload))
            else:  # a fragment, or an incomplete frame
                if self._message is None:
                    self._message, self._text, self._valid = bytearray(), first & 0x0F == 1, 0
                if first < 0x80:
                    self.uncounted += 1
                self._room -= length
                self._final, self._missing, self._mask = first >= 0x80, length, mask
                self._take(payload, events)
        if left and at < end:
            self._rest = data[at:end]
            at = end
        self._idle = not self._rest and self._message is None
        return at

    def _take(self, payload: bytes, events: deque[Event]) -> None:
        message, turn = self._message, len(payload) % 4
        assert message is not None
        message += payload
        if self._text:  # invalid UTF-8 ends the connection at once, not at the end of a long message
            self._valid += utf_8_decode(message[self._valid :], "strict", False)[1]
        self._mask = self._mask[turn:] + self._mask[:turn]
        self._missing -= len(payload)
        if self._final and not self._missing:
            events.append(message.decode() if self._text else bytes(message))
            self._message, self._room = None, self._max_bytes


def _objection(first: int, second: int) -> str:
    if first & 0x70 or first & 0x07 > 2:
        return "reserved bits or an unknown opcode"
    if second < 0x80:
        return "frame is not masked"
    if first & 0x08:
        return "control frame in fragments"
    return "message within a message" if first & 0x0F else "continuation of no message"


def _close(payload: bytes) -> Close | Failure:
    code, reason = int.from_bytes(payload[:2], "big") if payload else _NO_CODE, payload[2:].decode()
    return Close(code, reason) if code in _CODES or not payload else Failure(1002, "invalid close code")


COMMON = 1024
"""Bytes: the headers of shorter text frames are precomputed."""

TEXT_HEADERS: list[bytes] = [
    bytes((_TEXT, size)) if size <= _SMALL else pack("!BBH", _TEXT, 126, size) for size in range(COMMON)
]
"""The header of a text frame, by the size of its payload."""


def text_frame(payload: bytes | Raw) -> bytes:
    """A text message in one frame; the payload is UTF-8."""
    return TEXT_HEADERS[size] + payload if (size := len(payload)) < COMMON else _frame(_TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """A binary message in one frame."""
    return _frame(_BINARY, payload)


def ping_frame(data: bytes) -> bytes:
    """A ping; raises `ValueError` for more than 125 bytes."""
    return _frame(_PING, data)


def pong_frame(data: bytes) -> bytes:
    """The answer to a `Ping`, with its data; raises `ValueError` for more than 125 bytes."""
    return _frame(_PONG, data)


def close_frame(code: int, reason: str) -> bytes:
    """A close frame with the reason, cut to fit; an empty frame for 1005, the answer to a close without a code."""
    # Characters without an encoding become question marks; a character cut in two is left out.
    text = reason.encode(errors="replace")[: _SMALL - 2].decode(errors="ignore")
    return _frame(_CLOSE, b"" if code == _NO_CODE else pack("!H", code) + text.encode())


def _frame(first: int, payload: bytes | Raw) -> bytes:
    size = len(payload)
    if size <= _SMALL:
        return b"%c%c%b" % (first, size, payload)
    if first & 0x08:
        raise ValueError(f"control frame of {size} bytes; it may have {_SMALL}")
    return (pack("!BBH", first, 126, size) if size < 1 << 16 else pack("!BBQ", first, 127, size)) + payload
