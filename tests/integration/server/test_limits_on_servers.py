"""The limits on rates, connections and times, over every transport and in front of real servers."""

import json
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.fuzzing.wire import SECONDS, Address, Refused, opened, text
from tests.support.servers import FAST_LANE, HYPERCORN_TRIO, UVICORN, Server, serve

pytestmark = pytest.mark.anyio

WAYS = {
    "fast lane": (FAST_LANE, "websocket"),
    "portable": (UVICORN, "websocket"),
    "portable on trio": (HYPERCORN_TRIO, "websocket"),
    "long-polling": (UVICORN, "longpoll"),
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Place:
    """One server and one way to it."""

    def __init__(self, server: Server, transport: str) -> None:
        self.server = server
        self.transport = transport

    @asynccontextmanager
    async def client(self, mount: str, user: str = "") -> AsyncGenerator["Caller"]:
        """Connect. Raises `Refused`."""
        query = f"vsn=2.0.0&user={user}" if user else "vsn=2.0.0"
        path = f"/{mount}/{self.transport}?{query}"
        if self.transport == "websocket":
            async with opened(Address(self.server.port), path) as wire:
                yield Caller(wire)
        else:
            async with self.http() as http:
                answer = await http.get(path)
                if answer.status_code != 200:
                    raise Refused(answer.status_code)
                yield Caller(Poll(http, f"{path}&token={answer.json()['token']}"))

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.server.http, trust_env=False, timeout=SECONDS)

    async def counts(self, mount: str) -> dict[str, int]:
        """What has been counted so far."""
        async with self.http() as http:
            return (await http.get(f"/figures/{mount}")).json()


class Poll:
    """What a WebSocket is, with requests."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self.http = http
        self.url = url
        self.outgoing: list[str] = []
        self.unread: list[str] = []

    def send(self, *messages: str) -> None:
        self.outgoing += messages

    async def post(self) -> int:
        """Send what is queued, and return the status of the answer."""
        batch, self.outgoing = "\n".join(self.outgoing), []
        answer = await self.http.post(self.url, content=batch, headers={"content-type": "application/x-ndjson"})
        return answer.json()["status"]

    async def receive(self) -> str:
        """Return the next message; an empty one when the session is over."""
        if self.outgoing:
            await self.post()
        if not self.unread:
            answer = (await self.http.get(self.url)).json()
            self.unread = answer["messages"] if answer["status"] == 200 else [""]
        return self.unread.pop(0)


class Caller:
    """A client that sends, and waits for replies."""

    def __init__(self, wire: Any) -> None:
        self.wire = wire

    def send(self, ref: Any, topic: str, event: str, payload: Any = None) -> None:
        self.wire.send(text("1", ref, topic, event, {} if payload is None else payload))

    async def call(self, ref: str, topic: str, event: str, payload: Any = None) -> Any:
        """Send, and return the payload of the reply."""
        self.send(ref, topic, event, payload)
        while True:
            message = json.loads(await self.wire.receive())
            if message[1] == ref:
                return message[4]

    async def event(self) -> str:
        """Return the next event."""
        return json.loads(await self.wire.receive())[3]

    async def closed(self) -> int:
        """Wait for the end; a session that is over has no code."""
        if isinstance(self.wire, Poll):
            while await self.wire.receive():
                pass
            return 1008
        return (await self.wire.closed()).code


@pytest.fixture(scope="module", params=WAYS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind, transport = WAYS[request.param]
    with serve("tests.support.limits_app:app", kind) as server:
        yield Place(server, transport)


def is_limited(payload: Any, code: str) -> bool:
    response = payload["response"]
    assert payload["status"] == "error"
    assert response["reason"] == "rate limited"
    assert 400 < response["retry_after"] <= 1_000
    return response["code"] == code


OK: dict[str, Any] = {"status": "ok", "response": {}}


async def test_messages_and_joins_have_their_rates_and_who_goes_on_is_closed(place: Place) -> None:
    before = await place.counts("rates")
    async with place.client("rates") as client, place.client("rates") as other:
        assert await client.call("1", "room:a", "phx_join") == OK
        assert await other.call("1", "room:a", "phx_join") == OK
        assert await client.call("2", "room:b", "phx_join") == OK
        assert is_limited(await client.call("3", "room:c", "phx_join"), "too_many_joins")
        for ref in "456":
            assert await client.call(ref, "room:a", "echo", {"n": ref}) == {"status": "ok", "response": {"n": ref}}
        assert is_limited(await client.call("7", "room:a", "echo"), "too_many_messages")
        assert await client.call("8", "phoenix", "heartbeat") == OK
        client.send(None, "room:a", "echo")
        client.send("9", "room:a", "echo")
        assert await client.closed() == 1008
        assert await other.call("2", "room:a", "echo") == OK
        after = await place.counts("rates")
    assert {code: after[code] - before.get(code, 0) for code in after} == {
        "too_many_joins": 1,
        "too_many_messages": 2,
        "flooding": 1,
    }


async def test_a_user_shares_them_over_all_connections_and_may_have_only_so_many(place: Place) -> None:
    async with place.client("shared", "ann") as one, place.client("shared", "ann") as two:
        with pytest.raises(Refused) as refused:
            async with place.client("shared", "ann"):
                pass
        assert refused.value.status == 429
        assert await one.call("1", "room:a", "phx_join") == OK
        assert await two.call("1", "room:a", "phx_join") == OK
        assert await two.call("2", "room:b", "phx_join") == OK
        assert is_limited(await one.call("2", "room:b", "phx_join"), "too_many_identity_joins")
        for ref in "345":
            assert await (one, two)[int(ref) % 2].call(ref, "room:a", "echo") == OK
        assert is_limited(await one.call("6", "room:a", "echo"), "too_many_identity_messages")
        assert is_limited(await two.call("6", "room:a", "echo"), "too_many_identity_messages")
        async with place.client("shared", "bob") as other:
            assert await other.call("1", "room:a", "phx_join") == OK


async def test_lists_objects_and_members_count_as_messages_and_a_message_may_have_only_so_many(place: Place) -> None:
    before = await place.counts("nodes")
    heavy: dict[str, Any] = {"x": [[]] * 1_500}  # which counts as six messages, its bytes with it or without
    async with place.client("nodes") as client, place.client("nodes") as other:
        assert await client.call("1", "room:a", "phx_join") == OK
        assert await client.call("2", "room:a", "echo", heavy) == {"status": "ok", "response": heavy}
        assert await client.call("3", "room:a", "echo", heavy) == {"status": "ok", "response": heavy}
        assert (await client.call("4", "room:a", "echo"))["response"]["code"] == "too_many_messages"
        assert await other.call("1", "room:a", "phx_join") == OK
        other.send("2", "room:a", "echo", {"x": [{"y": 1}] * 1_000})
        if place.transport == "websocket":
            assert await other.closed() == 1009
        else:
            assert await other.wire.post() == 400
            assert await other.call("3", "room:a", "echo") == OK
        after = await place.counts("nodes")
    assert {code: after[code] - before.get(code, 0) for code in after} == {"too_many_messages": 1, "too_many_nodes": 1}


async def test_when_all_places_are_taken_the_next_client_gets_503_and_when_to_come_again(place: Place) -> None:
    async with place.client("full"):
        with pytest.raises(Refused) as refused:
            async with place.client("full"):
                pass
        assert refused.value.status == 503
        async with place.http() as http:
            key = {"sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==", "sec-websocket-version": "13"}
            upgrade = {**key, "upgrade": "websocket", "connection": "upgrade"}
            headers = upgrade if place.transport == "websocket" else {}
            answer = await http.get(f"/full/{place.transport}?vsn=2.0.0", headers=headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")


async def test_connect_joins_and_handlers_have_their_time(place: Place) -> None:
    with pytest.raises(Refused) as refused:
        async with place.client("times", "x&hang=1"):
            pass
    assert refused.value.status == 503
    async with place.client("times") as client:
        timed_out = {"status": "error", "response": {"reason": "join timed out"}}
        assert await client.call("1", "room:a", "phx_join", {"hang": 1}) == timed_out
        assert await client.call("1", "room:a", "phx_join") == OK
        client.send("2", "room:a", "hang")
        assert await client.event() == "phx_error"
        assert await client.call("1", "room:a", "phx_join") == OK


async def test_refused_joins_are_answered_later(place: Place) -> None:
    async with place.client("delay") as client:
        start = time.monotonic()
        client.send("1", "room:a", "phx_join", {"refuse": 1})
        client.send("2", "nowhere", "phx_join")
        assert await client.call("3", "room:b", "phx_join") == OK
        assert [await client.event(), await client.event()] == ["phx_reply", "phx_reply"]
        assert time.monotonic() - start >= 0.2
