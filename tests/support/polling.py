"""A long-poll client over plain ASGI, without a server: its requests can be left, and answers not be read."""

from typing import Any
from urllib.parse import urlencode

import anyio
import msgspec
from starlette.types import ASGIApp, Message, Scope

from tests.fuzzing.wire import strict

Headers = dict[str, str]


class Exchange:
    """One request and its answer."""

    def __init__(self, app: ASGIApp, method: str, url: str, headers: Headers, *chunks: bytes) -> None:
        path, _, query = url.partition("?")
        self._app = app
        self._scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
            "http_version": "1.1",
        }
        self._chunks = list(chunks)
        self.unfinished = False  # for tests: the last chunk is not the last
        self.gone = anyio.Event()  # for tests: the client goes
        self.reading = anyio.Event()  # for tests: the client reads, which it does unless a test makes a new event
        self.reading.set()
        self.broken: Exception | None = None  # for tests: what the server raises instead of sending
        self.status = 0
        self.headers: Headers = {}
        self.body = b""
        self.complete = False

    async def __call__(self) -> "Exchange":
        """Make the request, and wait until it is over."""
        await self._app(self._scope, self._receive, self._send)
        return self

    async def _receive(self) -> Message:
        if self._chunks:
            chunk = self._chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks) or self.unfinished}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.reading.wait()
        if self.broken is not None:
            raise self.broken
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
            self.complete = not message.get("more_body", False)

    @property
    def json(self) -> Any:
        """What a protocol answer holds; its HTTP status is 200."""
        assert (self.status, self.complete) == (200, True)
        return msgspec.json.decode(self.body)

    @property
    def frames(self) -> list[Any]:
        """The messages of an answer that has some."""
        answer = self.json
        assert answer["status"] == 200
        return [_decode(message) for message in answer["messages"]]


def _decode(message: str) -> Any:
    """A frame; what somebody fuzzed may have numbers that only Python can hold."""
    try:
        return msgspec.json.decode(message)
    except msgspec.ValidationError:
        return strict(message)


class Poller:
    """A client with a session, once it has been opened."""

    def __init__(self, app: ASGIApp, path: str = "/longpoll", **params: str) -> None:
        self.token: str | None = None
        self.params: dict[str, str] = {"vsn": "2.0.0", **params}
        self._app = app
        self._path = path

    @property
    def url(self) -> str:
        """Where it asks now."""
        token = {} if self.token is None else {"token": self.token}
        return f"{self._path}?{urlencode(self.params | token)}"

    def request(self, method: str, *chunks: bytes, **headers: str) -> Exchange:
        """Make a request that waits to be awaited; underscores in names of headers are dashes."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return Exchange(self._app, method, self.url, names, *(chunks or (b"",)))

    async def open(self) -> "Poller":
        """Open a session."""
        answer = (await self.request("GET")()).json
        assert (answer["status"], answer["messages"]) == (410, [])
        self.token = answer["token"]
        return self

    def polling(self) -> Exchange:
        """A poll that waits to be awaited."""
        return self.request("GET")

    async def poll(self) -> Exchange:
        """Poll once."""
        return await self.polling()()

    async def post(self, *frames: Any) -> Any:
        """Send messages, one request for all, and return the status that is meant."""
        lines = [frame if isinstance(frame, bytes) else msgspec.json.encode(frame) for frame in frames]
        request = self.request("POST", b"\n".join(lines), content_type="application/x-ndjson")
        return (await request()).json["status"]

    async def join(self, topic: str, payload: Any = None) -> None:
        """Join a topic, and fetch the answer and nothing else."""
        assert await self.post(["1", "1", topic, "phx_join", payload or {}]) == 200
        (reply,) = (await self.poll()).frames
        assert reply[:4] == ["1", "1", topic, "phx_reply"]
        assert reply[4]["status"] == "ok"


BEAT: list[Any] = [None, "1", "phoenix", "heartbeat", {}]
BEATEN: list[Any] = [None, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}]
