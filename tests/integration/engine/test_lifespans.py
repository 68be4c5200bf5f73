"""One application, used again and again: with its lifespan and without, in whatever order and event loop."""

import asyncio
import itertools
import json
import warnings
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from starlette_channels import Broker, Channels, Expiry, Presence, Socket, channel
from starlette_channels.testing import HandshakeRefused, connect
from tests.conftest import until
from tests.support.engines import EngineServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette would have another HTTP client
    from starlette.testclient import TestClient


class House:
    """An application as modules have it: made once, and used by all tests."""

    def __init__(self, broker: Broker | None = None) -> None:
        self.broker = broker or Broker()
        self.presence = Presence(grace_seconds=5.0)
        self.ends: list[str] = []
        self.gate: anyio.Event | None = None

        @channel("room:*")
        async def room(socket: Socket, payload: Any) -> dict[str, int]:
            self.presence.track(socket, "somebody")
            return {"here": self.presence.count(socket)}

        @room.on("say")
        async def say(socket: Socket, payload: Any) -> Any:
            socket.broadcast("said", payload)
            return payload

        @room.terminate
        async def terminate(socket: Socket, reason: str) -> None:
            self.ends.append(reason)
            if self.gate is not None:
                await self.gate.wait()

        self.channels = Channels(
            [room],
            broker=self.broker,
            presence=self.presence,
            socket_id=lambda _: "everybody",
            expiry=Expiry(at=lambda _: 4e9),
            longpoll=True,
        )
        routes = [Route("/ready", self.channels.ready), Mount("/socket", app=self.channels)]
        self.app = Starlette(routes=routes, lifespan=self.channels.lifespan)

    async def talk(self) -> None:
        """Connect, join, and hear what is said."""
        before = self.channels.statistics().connections
        async with connect(self.app, "/socket") as client:
            room = await client.join("room:a")
            assert room.reply.payload == {"here": 1}
            assert (await room.push("say", {"n": 1})).status == "ok"
            assert await room.receive("said") == {"n": 1}
            self.channels.broadcast("room:a", "news", {"n": 2})
            assert await room.receive("news") == {"n": 2}
        assert self.channels.statistics().connections == before
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://testserver") as http:
            assert (await http.get("/ready")).status_code == 200
            assert (await http.get("/socket/longpoll", params={"vsn": "2.0.0"})).json()["status"] == 410

    async def talk_in_lifespan(self) -> None:
        async with self.app.router.lifespan_context(self.app):
            await self.talk()

    def talk_through(self, client: TestClient) -> None:
        """Do it with Starlette's client for tests, whose event loop is in a thread of its own."""
        with client.websocket_connect("/socket/websocket?vsn=2.0.0") as websocket:
            websocket.send_text('["1", "1", "room:a", "phx_join", {}]')
            assert json.loads(websocket.receive_text())[4] == {"status": "ok", "response": {"here": 1}}


def without(house: House) -> None:
    anyio.run(house.talk)


def in_lifespan(house: House) -> None:
    anyio.run(house.talk_in_lifespan)


def in_lifespan_on_trio(house: House) -> None:
    anyio.run(house.talk_in_lifespan, backend="trio")


def test_client_without(house: House) -> None:
    house.talk_through(TestClient(house.app))


def test_client_in_lifespan(house: House) -> None:
    with TestClient(house.app) as client:
        house.talk_through(client)
        house.talk_through(client)


def drained(house: House) -> None:
    """A server that is taken out of service by hand; its event loop ends, as that of a test does."""

    async def main() -> None:
        await house.channels.drain()
        with pytest.raises(HandshakeRefused) as refused:
            await house.talk()
        assert refused.value.status == 503

    anyio.run(main)


def failing(house: House) -> None:
    """An application that fails while its lifespan runs."""

    async def main() -> None:
        async with house.channels.lifespan():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        anyio.run(main)


def cut_off(house: House) -> None:
    """An event loop that ends in the middle of the lifespan."""
    loop = asyncio.new_event_loop()
    lifespan = house.channels.lifespan()
    loop.run_until_complete(lifespan.__aenter__())
    loop.close()
    unfinished.append(lifespan)  # else the garbage collector would end it


unfinished: list[Any] = []

for client in (test_client_without, test_client_in_lifespan):
    client.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] - pytest's way to say that it is no test

USES: list[Callable[[House], None]] = [
    without,
    in_lifespan,
    in_lifespan_on_trio,
    test_client_without,
    test_client_in_lifespan,
    drained,
    failing,
    cut_off,
]


@pytest.mark.parametrize("first", USES, ids=lambda use: use.__name__)
def test_an_application_is_used_again_in_any_order(first: Callable[[House], None]) -> None:
    for second in USES:
        house = House()
        for use in (first, second, without, in_lifespan, test_client_in_lifespan):
            use(house)
        assert set(house.channels.statistics().counts) <= {"connect_refused"}


@pytest.mark.anyio
async def test_the_same_event_loop_goes_on_without_the_lifespan_and_with_it() -> None:
    house = House()
    for _ in range(3):
        await house.talk()
        await house.talk_in_lifespan()
    await house.talk()


@pytest.mark.anyio
async def test_nobody_is_let_in_while_the_lifespan_ends_and_everybody_afterwards() -> None:
    house = House()
    house.gate = anyio.Event()
    async with connect(house.app, "/socket") as client, anyio.create_task_group() as tasks:
        lifespan = house.app.router.lifespan_context(house.app)
        await lifespan.__aenter__()
        await client.join("room:a")
        tasks.start_soon(lifespan.__aexit__, None, None, None)
        await until(lambda: house.ends == ["draining"])
        with pytest.raises(HandshakeRefused) as refused:
            await house.talk()
        assert refused.value.status == 503
        house.gate.set()
    await house.talk()


@pytest.mark.anyio
async def test_an_end_that_is_cancelled_leaves_the_application_open(virtual_clock: object) -> None:
    house = House()
    house.gate = anyio.Event()
    async with connect(house.app, "/socket") as client:
        lifespan = house.channels.lifespan()
        await lifespan.__aenter__()
        await client.join("room:a")
        with anyio.move_on_after(0.1):
            await lifespan.__aexit__(None, None, None)
        house.gate.set()
    async with connect(house.app, "/socket") as client:
        await client.join("room:b")


def test_of_several_lifespans_in_threads_each_ends_its_own_clients_only() -> None:
    house = House()
    with TestClient(house.app) as outer, outer.websocket_connect("/socket/websocket?vsn=2.0.0") as websocket:
        websocket.send_text('["1", "1", "room:a", "phx_join", {}]')
        assert json.loads(websocket.receive_text())[3] == "phx_reply"
        anyio.run(house_of_two, house)
        with TestClient(house.app) as inner:
            with inner.websocket_connect("/socket/websocket?vsn=2.0.0"):
                assert house.channels.statistics().connections == 2
            anyio.run(house_of_two, house)
        websocket.send_text('["1", "7", "room:a", "say", {"n": 1}]')
        while json.loads(frame := websocket.receive_text())[1] != "7":
            pass
        assert json.loads(frame)[4] == {"status": "ok", "response": {"n": 1}}
    assert house.channels.statistics().connections == 0
    without(house)


async def house_of_two(house: House) -> None:
    """Somebody beside the one who is connected already."""
    async with house.channels.lifespan(), connect(house.app, "/socket") as client:
        assert (await client.join("room:b")).reply.payload == {"here": 1}


@pytest.mark.anyio
async def test_a_lifespan_inside_another_one_ends_nothing() -> None:
    house = House()
    async with house.channels.lifespan(), connect(house.app, "/socket") as client:
        async with house.channels.lifespan():
            room = await client.join("room:a")
        assert (await room.push("say", {"n": 1})).status == "ok"
    assert house.ends == ["draining"] or house.ends == ["closed"]


@pytest.mark.anyio
async def test_a_broker_is_connected_again_for_those_who_come_after_the_lifespan(engine_server: EngineServer) -> None:
    """They only listen: nothing that they do would connect it."""

    @channel("plain")
    async def plain(socket: Socket, payload: Any) -> None: ...

    broker, other = Broker(engine_server.url), Broker(engine_server.url)
    channels = Channels([plain], broker=broker)
    async with channels.lifespan(), connect(channels) as client:
        await client.join("plain")
    async with connect(channels, timeout=0.1) as client:
        joined = await client.join("plain")
        for attempt in itertools.count():  # the processes find each other by and by
            other.broadcast("plain", "news", {"attempt": attempt})
            try:
                assert "attempt" in await joined.receive("news")
                break
            except AssertionError:
                assert attempt < 150
    await other.close()
    await broker.close()
