"""Test client: the real wire format over real ASGI, without a server, a socket or a sleep.

    async with connect(app, "/socket", user="ann") as client:
        room = await client.join("room:lobby")
        assert await room.push("new_msg", {"body": "hi"}) == Reply("ok")
        assert await room.receive("new_msg") == {"body": "hi", "user": "ann"}
        assert await room.received_nothing()

It works with anyio's pytest plugin, on asyncio and trio. A message that does not arrive within `timeout` seconds fails
the test with a list of those that did; on trio with `MockClock(autojump_threshold=0)`, no real time passes.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
from msgspec import Struct
from starlette.types import ASGIApp, Message, Scope

from starlette_channels.handshake.auth_token import SUBPROTOCOL, encode_token
from starlette_channels.runtime.tasks import Tasks
from starlette_channels.wire.messages import Frame, Raw, Reply, encode_payload
from starlette_channels.wire.query import encode_query

_decode_array = msgspec.json.Decoder(tuple[Any, Any, Any, Any, Any]).decode


class HandshakeRefused(Exception):
    """The server refused the connection, with an HTTP `status` and a `body`."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status} {body}".strip())
        self.status = status
        self.body = body


class JoinRefused(Exception):
    """The server refused the join, with a `reply`."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"{reply.status}: {reply.payload}")
        self.reply = reply


class ConnectionClosed(Exception):
    """The server closed the connection, with a `code` and a `reason`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason


class ChannelCrashed(Exception):
    """The channel ended with `phx_error` before the reply: probably a handler raised, and its traceback is in the log.

    `payload` is the payload of the `phx_error`.
    """

    def __init__(self, topic: str, payload: Any) -> None:
        super().__init__(f"{topic!r} ended with phx_error {payload}: look into the log")
        self.topic = topic
        self.payload = payload


class Received(Struct, frozen=True):
    """A message from the server. The payload is decoded JSON, or bytes."""

    join_ref: Any
    ref: Any
    topic: str
    event: str
    payload: Any

    @property
    def reply(self) -> Reply:
        """The status and response of a `phx_reply`."""
        return Reply(self.payload["status"], self.payload["response"])


class Client:
    """A connection, made by `connect`."""

    def __init__(self, timeout: float, vsn: str = "2.0.0") -> None:
        self.timeout = timeout
        self.subprotocol: str | None = None
        self._version_1 = vsn.startswith("1.")
        self._refs = count(1)
        self._outgoing, self._incoming = anyio.create_memory_object_stream[Message](float("inf"))
        self._unread: list[Received] = []
        self._crashes: list[Received] = []
        self._sent: dict[Any, tuple[Any, int]] = {}
        self._news: anyio.Event | None = None
        self._accepted = False
        self._refusal: tuple[int, bytes] | None = None
        self._closed: tuple[int, str] | None = None
        self._failure: Exception | None = None

    async def join(self, topic: str, payload: Any = None) -> "Joined":
        """Join a topic and wait for the reply; `payload` defaults to `{}`. Raises `JoinRefused` if it is not `ok`."""
        ref = self.ref()
        self.send(ref, ref, topic, "phx_join", {} if payload is None else payload)
        reply = await self.reply(ref)
        if reply.status != "ok":
            raise JoinRefused(reply)
        return Joined(self, topic, ref, reply)

    async def heartbeat(self) -> Reply:
        """Send a heartbeat and return its reply."""
        ref = self.ref()
        self.send(None, ref, "phoenix", "heartbeat", {})
        return await self.reply(ref)

    def ref(self) -> str:
        """Return a new ref, unique in this connection."""
        return str(next(self._refs))

    def send(self, join_ref: Any, ref: Any, topic: Any, event: Any, payload: Any) -> None:
        """Send a message without waiting: in a binary frame if the payload is bytes."""
        body = encode_payload(payload)
        self._sent[str(ref)] = (join_ref, len(self._crashes))
        if self._version_1 and not isinstance(body, Raw):
            raise ValueError("version 1 of the protocol has no binary frames")
        if self._version_1:
            fields = {"topic": topic, "event": event, "payload": body, "ref": ref, "join_ref": join_ref}
            self.send_frame(msgspec.json.encode(fields).decode())
        elif isinstance(body, Raw):
            self.send_frame(msgspec.json.encode((join_ref, ref, topic, event, body)).decode())
        else:
            names = [str(name).encode() for name in (join_ref, ref, topic, event)]
            self.send_frame(b"".join((b"\0", bytes(map(len, names)), *names, body)))

    def send_frame(self, frame: Frame) -> None:
        """Send a raw frame, also a malformed one."""
        key = "text" if isinstance(frame, str) else "bytes"
        self._outgoing.send_nowait({"type": "websocket.receive", key: frame})

    async def reply(self, ref: Any) -> Reply:
        """Wait for the reply to a message; it may come after the end of its channel."""
        return await self._reply(ref, lambda: None)

    async def reply_unless_crashed(self, ref: Any) -> Reply:
        """Wait for the reply to a message. Raises `ChannelCrashed` if its channel crashes first."""
        return await self._reply(ref, lambda: self._raise_if_crashed(str(ref)))

    async def _reply(self, ref: Any, give_up: Callable[[], None]) -> Reply:
        what = f"the reply to {ref!r}"
        received = await self._wait_for(lambda one: one.event == "phx_reply" and one.ref == ref, what, give_up)
        return received.reply

    async def receive(self, wanted: Callable[[Received], bool] | None = None, what: str = "a frame") -> Received:
        """Wait for the next message for which `wanted` returns true, by default any; the others stay unread.

        `what` names it in the error if it does not arrive. Raises `ConnectionClosed` if the server closes first.
        """
        return await self._wait_for(wanted, what, lambda: None)

    async def _wait_for(
        self, wanted: Callable[[Received], bool] | None, what: str, give_up: Callable[[], None]
    ) -> Received:
        with anyio.move_on_after(self.timeout):
            while True:
                for position, received in enumerate(self._unread):
                    if wanted is None or wanted(received):
                        return self._unread.pop(position)
                if self._closed is not None:
                    raise ConnectionClosed(*self._closed)
                give_up()
                await self._wait()
        raise AssertionError(f"{what} did not come within {self.timeout} s; unread: {self._unread}")

    def _raise_if_crashed(self, ref: str) -> None:
        """Raise `ChannelCrashed` if the channel of a sent message has crashed since: there will be no reply."""
        join_ref, before = self._sent.get(ref, (None, 0))
        for crash in self._crashes[before:]:
            if join_ref is not None and crash.join_ref == join_ref:
                raise ChannelCrashed(crash.topic, crash.payload)

    async def received_nothing(self, wanted: Callable[[Received], bool] | None = None) -> bool:
        """Wait until all tasks are blocked, and fail if a message has arrived for which `wanted` returns true.

        Handlers that sleep, or wait for something outside of this event loop, are not waited for.
        """
        await anyio.wait_all_tasks_blocked()
        unexpected = [received for received in self._unread if wanted is None or wanted(received)]
        assert not unexpected, f"unexpected messages: {unexpected}"
        return True

    def disconnect(self, code: int = 1000) -> None:
        """Disconnect without waiting: the application gets `websocket.disconnect`."""
        self._outgoing.send_nowait({"type": "websocket.disconnect", "code": code})

    async def closed(self) -> int:
        """Wait until the server closes the connection; return the close code."""
        with anyio.move_on_after(self.timeout):
            while self._closed is None:
                await self._wait()
            return self._closed[0]
        raise AssertionError(f"the server did not close within {self.timeout} s; unread: {self._unread}")

    @asynccontextmanager
    async def talking_to(self, app: ASGIApp, scope: Scope) -> AsyncGenerator[None]:
        """Run an application for this connection; disconnect at the end of the block. `connect` builds the scope."""
        tasks = Tasks()
        with self._outgoing, self._incoming:
            tasks.spawn(self._serve, app, scope)
            try:
                await self._open()
                yield
            finally:
                self.disconnect()
                ended = False
                with anyio.CancelScope(shield=True):
                    ended = await tasks.finish(10 * self.timeout)
                if self._failure is not None:
                    raise self._failure
                assert ended, "the application did not end its side"

    async def _wait(self) -> None:
        self._news = self._news or anyio.Event()
        await self._news.wait()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    async def _serve(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application for this connection, with this client's `receive` and `send`."""
        try:
            await app(scope, self._incoming.receive, self._take)
        except Exception as error:  # noqa: BLE001 - raised again where the test is
            self._failure = error
        finally:
            self._closed = self._closed or (1006, "the application returned")
            self._tell()

    async def _take(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        match message["type"]:
            case "websocket.accept":
                self._accepted = True
                self.subprotocol = message.get("subprotocol")
            case "websocket.http.response.start":
                self._refusal = (message["status"], b"")
            case "websocket.http.response.body":
                assert self._refusal is not None
                self._refusal = (self._refusal[0], self._refusal[1] + message.get("body", b""))
            case "websocket.close" if not self._accepted:
                self._refusal = (403, b"")
            case "websocket.close":
                self._closed = (message.get("code", 1000), message.get("reason") or "")
            case _:
                text = message.get("text")
                received = _decode(message["bytes"] if text is None else text)
                self._unread.append(received)
                if received.event == "phx_error":
                    self._crashes.append(received)
        self._tell()

    async def _open(self) -> None:
        self._outgoing.send_nowait({"type": "websocket.connect"})
        with anyio.fail_after(self.timeout):
            while not self._accepted:
                if self._closed is not None:
                    status, body = self._refusal or (500, b"")
                    raise HandshakeRefused(status, body.decode())
                await self._wait()


class Joined:
    """A joined topic of a client, made by `Client.join`. `reply` is the reply to the join."""

    def __init__(self, client: Client, topic: str, join_ref: str, reply: Reply) -> None:
        self.client = client
        self.topic = topic
        self.join_ref = join_ref
        self.reply = reply

    async def push(self, event: str, payload: Any = None) -> Reply:
        """Send an event and wait for its reply. Raises `ChannelCrashed` if the channel crashes first."""
        return await self.client.reply_unless_crashed(self.send(event, payload))

    def send(self, event: str, payload: Any = None) -> str:
        """Send an event without waiting; `client.reply(ref)` waits for the reply to the returned ref."""
        ref = self.client.ref()
        self.client.send(self.join_ref, ref, self.topic, event, {} if payload is None else payload)
        return ref

    async def receive(self, event: str) -> Any:
        """Wait for the next push or broadcast of an event on this topic; return its payload."""
        received = await self.client.receive(lambda one: self._concerns(one, event), f"{event!r} on {self.topic!r}")
        return received.payload

    async def received_nothing(self, event: str | None = None) -> bool:
        """Wait until all tasks are blocked, and fail if the event (default: any) has arrived on this topic."""
        return await self.client.received_nothing(lambda one: self._concerns(one, event))

    async def leave(self) -> Reply:
        """Leave the topic and wait for `phx_close`; return the reply."""
        reply = await self.push("phx_leave")
        await self.receive("phx_close")
        return reply

    def _concerns(self, received: Received, event: str | None) -> bool:
        current = received.join_ref in (None, self.join_ref)
        return received.topic == self.topic and current and event in (None, received.event)


@asynccontextmanager
async def connect(
    app: ASGIApp,
    mount: str = "",
    *,
    path: str = "/websocket",
    vsn: str = "2.0.0",
    headers: Mapping[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    auth_token: str | None = None,
    timeout: float = 5.0,  # noqa: ASYNC109 - it bounds each wait of the client, not this function
    **params: Any,
) -> AsyncGenerator[Client]:
    """Connect to an application: `async with connect(app, "/socket", user="ann") as client:`.

    The end of the block disconnects and waits until the application has finished. The lifespan of the application is
    not run.

    Args:
        app: The whole application with its middleware, or a `Channels` alone.
        mount: The path at which the channels are mounted.
        path: The path of the WebSocket below the mount.
        vsn: The version of the wire format: `"2.0.0"` or `"1.0.0"`.
        headers: Further headers of the handshake, such as cookies and `Origin`.
        subprotocols: The subprotocols that the client offers.
        auth_token: The token that `conn.auth_token` will have, with `Channels(auth_token=True)`.
        timeout: Seconds that each wait of the client may take.
        **params: Connection parameters for the query string; they may be nested.

    Raises:
        HandshakeRefused: The server refused the connection.
    """
    query = encode_query({**params, "vsn": vsn})
    lines = {"host": "testserver", **{name.lower(): value for name, value in (headers or {}).items()}}
    scope: Scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": mount + path,
        "raw_path": (mount + path).encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines.items()],
        "client": ("testclient", 50000),
        "server": ("testserver", 80),
        "subprotocols": [*subprotocols, *([] if auth_token is None else [SUBPROTOCOL, encode_token(auth_token)])],
        "state": {},
        "extensions": {"websocket.http.response": {}, "starlette_channels.testing": {}},
    }
    client = Client(timeout, vsn)
    async with client.talking_to(app, scope):
        yield client


def _decode(frame: Frame) -> Received:
    if isinstance(frame, str):
        if frame.startswith("{"):  # version 1
            fields = msgspec.json.decode(frame)
            return Received(None, fields["ref"], fields["topic"], fields["event"], fields["payload"])
        return Received(*_decode_array(frame))
    kind, *sizes = frame[: {0: 4, 1: 5, 2: 3}[frame[0]]]
    names: list[str] = []
    start = 1 + len(sizes)
    for size in sizes:
        names.append(frame[start : start + size].decode())
        start += size
    data = frame[start:]
    match kind, names:
        case 0, [join_ref, topic, event]:
            return Received(join_ref or None, None, topic, event, data)
        case 1, [join_ref, ref, topic, status]:
            return Received(join_ref or None, ref, topic, "phx_reply", {"status": status, "response": data})
        case _:
            topic, event = names
            return Received(None, None, topic, event, data)
