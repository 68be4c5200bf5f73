"""A websocket client that can misbehave: it writes whatever frames it is told to, well formed or not."""

import asyncio
import base64
import contextlib
import json
import os
import socket
import ssl
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, NoReturn, Self

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
SECONDS = 20.0  # that a server may take on a busy machine, until we say that it hangs
CHUNK = 1 << 18
PATH = "/socket/websocket?vsn=2.0.0"

Frame = str | bytes


class Closed(Exception):
    """The server closed the websocket, with this code; 1006 means that there was no close frame."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason


class Refused(Exception):
    """The server answered the handshake with an HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


@dataclass(frozen=True)
class Address:
    """Where a server listens: a port of this machine, with or without TLS, or a Unix socket.

    `lazy` makes clients whose system takes next to nothing that they do not read.
    """

    port: int = 0
    tls: ssl.SSLContext | None = None
    unix: str | None = None
    lazy: bool = False

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.lazy:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # it must be set before connecting
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
            return await asyncio.open_connection(sock=client, limit=2048)
        if self.unix is not None:
            return await asyncio.open_unix_connection(self.unix, limit=CHUNK)
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, limit=CHUNK)


def frame(
    payload: Frame, opcode: int | None = None, *, final: bool = True, reserved: int = 0, mask: bool = True
) -> bytes:
    """A frame as a client sends it; its mask of zeros is a legal one, and leaves the payload readable."""
    if opcode is None:
        opcode = TEXT if isinstance(payload, str) else BINARY
    data = payload.encode() if isinstance(payload, str) else payload
    first = (0x80 if final else 0) | reserved << 4 | opcode
    bit = 0x80 if mask else 0
    size = len(data)
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 1 << 16:
        head = bytes((first, bit | 126)) + size.to_bytes(2)
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8)
    return b"".join((head, b"\0\0\0\0" if mask else b"", data))


def split(buffer: bytearray) -> list[tuple[int, bytes]]:
    """Take the whole frames, as opcode and payload, off the beginning of a buffer. Servers here do not fragment."""
    frames: list[tuple[int, bytes]] = []
    start = 0
    while len(buffer) - start >= 2:
        size, head = buffer[start + 1] & 0x7F, 2
        if size > 125:
            head = 4 if size == 126 else 10
            size = int.from_bytes(buffer[start + 2 : start + head])
        end = start + head + size
        if len(buffer) < max(end, start + head):
            break
        assert buffer[start] & 0x80, "a fragment from the server"
        frames.append((buffer[start] & 0x0F, bytes(buffer[start + head : end])))
        start = end
    del buffer[:start]
    return frames


def text(join_ref: Any, ref: Any, topic: Any, event: Any, payload: Any = None) -> str:
    """A text frame of version 2; no payload is an empty object."""
    return json.dumps([join_ref, ref, topic, event, {} if payload is None else payload])


def binary(join_ref: str, ref: str, topic: str, event: str, data: bytes = b"") -> bytes:
    """A binary frame of version 2."""
    names = [name.encode() for name in (join_ref, ref, topic, event)]
    return b"".join((b"\0", bytes(map(len, names)), *names, data))


def strict(message: str) -> Any:
    """What a message says, if it is JSON as browsers understand it; `None` if it is too deep for this Python."""
    try:
        return json.loads(message, parse_constant=_refuse, parse_int=str)  # no limit to the digits of a string
    except RecursionError:
        return None


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


class Wire:
    """One websocket. All waits end after `SECONDS`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.unread: deque[Frame] = deque()
        self._buffer = bytearray()
        self._closed: Closed | None = None
        self._hung_up = False

    @classmethod
    async def open(cls, where: Address, path: str = PATH, *, extra: str = "") -> Self:
        """Connect; `extra` is a header line. Raises `Refused`."""
        async with asyncio.timeout(SECONDS):
            self = cls(*await where.connect())
            key = base64.b64encode(os.urandom(16)).decode()
            lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"]
            lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", *filter(None, [extra])]
            self.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
            try:
                answer = await self.reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                answer = error.partial or b"HTTP/1.1 0"
            status = int(answer.split(None, 2)[1])
            if status != 101:
                self.abort()
                raise Refused(status)
            return self

    def write(self, data: bytes) -> None:
        """Send bytes as they are; after `hang_up`, none."""
        if not self._hung_up:
            self.writer.write(data)

    def send(self, *messages: Frame) -> None:
        """Send messages, one frame for each."""
        self.write(b"".join(map(frame, messages)))

    def hang_up(self) -> None:
        """Tell the server's TCP that nothing more will come, and go on reading."""
        self._hung_up = True
        self.writer.write_eof()

    async def drain(self) -> None:
        """Wait until the server has taken most of what was sent, or closed."""
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):
                await self.writer.drain()

    async def receive(self) -> Frame:
        """Return the next message. Raises `Closed`."""
        if not self.unread and self._closed is None:
            async with asyncio.timeout(SECONDS):
                await self.read()
        if self.unread:
            return self.unread.popleft()
        assert self._closed is not None
        raise self._closed

    async def read(self) -> None:
        """Put what comes next into `unread`, however long that takes: at least one message, or the close."""
        while not self.unread and self._closed is None:
            try:
                data = await self.reader.read(CHUNK)
            except (ConnectionError, ssl.SSLError):
                data = b""
            if not data:
                self._closed = Closed(1006)
            self._buffer += data
            for opcode, payload in split(self._buffer):
                self._take(opcode, payload)

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self.unread.append(payload.decode())
        elif opcode == BINARY:
            self.unread.append(payload)
        elif opcode == PING:
            self.write(frame(payload, PONG))
        elif opcode == CLOSE and self._closed is None:
            code = int.from_bytes(payload[:2]) if payload else 1005
            self._closed = Closed(code, payload[2:].decode())
            self.write(frame(payload[:2], CLOSE))

    async def until(self, ref: Any) -> list[Any]:
        """Return the text messages up to the one with a certain ref, that one last."""
        messages: list[Any] = []
        while not messages or messages[-1][1] != ref:
            message = await self.receive()
            assert isinstance(message, str), message
            messages.append(json.loads(message))
        return messages

    async def call(self, join_ref: Any, ref: Any, topic: Any, event: Any, payload: Any = None) -> Any:
        """Send a message and return the payload of what comes next, which must be its reply."""
        self.send(text(join_ref, ref, topic, event, payload))
        messages = await self.until(ref)
        assert len(messages) == 1, messages
        assert messages[0][2:4] == [topic, "phx_reply"]
        return messages[0][4]

    async def join(self, topic: str, join_ref: str = "1", payload: Any = None) -> Any:
        """Join and return the reply, which must be `ok`."""
        reply = await self.call(join_ref, join_ref, topic, "phx_join", payload)
        assert reply["status"] == "ok", reply
        return reply["response"]

    async def closed(self) -> Closed:
        """Wait until the server closes; messages that come before are skipped."""
        async with asyncio.timeout(SECONDS):
            while self._closed is None:
                self.unread.clear()
                await self.read()
        return self._closed

    async def close(self, code: int = 1000) -> Closed:
        """Close in good order and return what the server answers."""
        self.write(frame(code.to_bytes(2), CLOSE))
        closed = await self.closed()
        await self.end()
        return closed

    async def end(self) -> None:
        """Let go of the TCP connection."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def abort(self) -> None:
        """Be gone at once, as a client that lost its network and came back: the server gets a reset."""
        self.writer.transport.abort()

    async def discard(self) -> None:
        """Be gone, and wait until nothing of this client is left in the event loop."""
        self.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def opened(where: Address, path: str = PATH, *, extra: str = "") -> AsyncGenerator[Wire]:
    """A websocket for the time of a block; what is left of it is thrown away."""
    wire = await Wire.open(where, path, extra=extra)
    try:
        yield wire
    finally:
        await wire.discard()
