"""Clients that go at the same moment, with all their channels, hold up nobody: ends share the time of each turn."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from starlette_channels import Channels, Handshake, Limits, Socket, channel
from starlette_channels.connection.connection import Connection
from starlette_channels.connection.registry import Service
from starlette_channels.pubsub.broker import Broker
from starlette_channels.runtime.turn_budget import LONGEST_TURN_SECONDS, MOST_AT_ONCE, TURN_SECONDS
from starlette_channels.transports.asgi_websocket import serve_websocket
from starlette_channels.transports.uvicorn_lane.idle_sweep import IdleSweep
from starlette_channels.wire.serializers import V2
from tests.fuzzing.wire import frame
from tests.support.lanes import Client, Pipe
from tests.support.polling import Poller

CLIENTS = 40
TOPICS = 100
MOST_IN_A_TURN = int(MOST_AT_ONCE * LONGEST_TURN_SECONDS / TURN_SECONDS)
"""However little an end costs, and however long all else takes: less than a half of the ends."""

NO_RATES = Limits(join_rate=None, message_rate=None, identity_connections=None, identity_join_rate=None)
HEARTBEAT = '[null,"1","phoenix","heartbeat",{}]'


class House:
    """A room for everybody, and a note of how many channels have ended."""

    def __init__(self) -> None:
        self.joined = self.ended = 0

        @channel("room:*")
        async def room(socket: Socket, payload: Any) -> None:
            self.joined += 1

        @room.terminate
        async def terminate(socket: Socket, reason: str) -> None:
            self.ended += 1

        self.room = room
        self.service = Service([room], Broker(), NO_RATES)

    async def wait_for_joins(self, wanted: int = CLIENTS * TOPICS) -> None:
        while self.joined < wanted:
            await anyio.lowlevel.checkpoint()

    async def most_ends_in_a_turn(self, wanted: int) -> int:
        """Wait until so many have ended."""
        most = 0
        while self.ended < wanted:
            before = self.ended
            await anyio.lowlevel.checkpoint()
            most = max(most, self.ended - before)
        return most


def join(number: int) -> str:
    return f'["{number}","{number}","room:{number}","phx_join",{{}}]'


Crowd = Callable[[House], AbstractAsyncContextManager[Callable[[], Awaitable[object]]]]
"""Joins with many clients, and yields what makes all of them go."""


@asynccontextmanager
async def on_the_fast_lane(house: House) -> AsyncGenerator[Callable[[], Awaitable[object]]]:
    loop: Any = asyncio.get_running_loop()
    pulse = IdleSweep(loop)
    clients = [Client(loop, pulse, house.service) for _ in range(CLIENTS)]
    for client in clients:
        for number in range(TOPICS):
            client.connection.receive(join(number))

    async def go() -> None:
        for client in clients:
            client.lane.connection_lost(None)

    yield go


@asynccontextmanager
async def on_the_portable_transport(house: House) -> AsyncGenerator[Callable[[], Awaitable[object]]]:
    gone = anyio.Event()

    async def serve() -> None:
        store = [{"type": "websocket.receive", "text": join(number)} for number in range(TOPICS)]

        async def receive() -> Any:
            if store:
                return store.pop(0)
            await gone.wait()
            return {"type": "websocket.disconnect"}

        async def send(message: Any) -> None: ...

        serializer = V2()
        await serve_websocket(
            receive,
            send,
            lambda transport: Connection(house.service, transport, serializer, {}),
            house.service.limits,
            house.service.error_log,
        )

    async def go() -> None:
        gone.set()

    async with anyio.create_task_group() as tasks:
        for _ in range(CLIENTS):
            tasks.start_soon(serve)
        yield go


@asynccontextmanager
async def by_long_polling(house: House) -> AsyncGenerator[Callable[[], Awaitable[object]]]:
    async def enter(conn: Handshake) -> dict[str, Any]:
        return {}

    def everybody(_: dict[str, Any]) -> str:
        return "everybody"

    app = Channels([house.room], connect=enter, socket_id=everybody, longpoll=True, limits=NO_RATES)
    for _ in range(CLIENTS):
        poller = await Poller(app).open()
        joins = "\n".join(map(join, range(TOPICS))).encode()
        await poller.request("POST", joins, content_type="application/x-ndjson")()

    async def go() -> None:
        app.disconnect("everybody")

    yield go


async def check(house: House, crowd: Crowd) -> None:
    async with crowd(house) as go:
        await house.wait_for_joins()
        await go()
        assert await house.most_ends_in_a_turn(CLIENTS * TOPICS) <= MOST_IN_A_TURN


@pytest.mark.anyio
@pytest.mark.parametrize("crowd", [on_the_portable_transport, by_long_polling])
async def test_channels_of_clients_that_go_at_once_end_in_turns(crowd: Crowd) -> None:
    await check(House(), crowd)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_so_they_do_on_the_fast_lane() -> None:
    await check(House(), on_the_fast_lane)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_who_stays_is_answered_before_the_channels_of_those_who_go_have_ended() -> None:
    house = House()
    loop: Any = asyncio.get_running_loop()
    pulse = IdleSweep(loop)
    honest = Client(loop, pulse, house.service)
    async with on_the_fast_lane(house) as go:
        await house.wait_for_joins()
        await go()
        answers = 0
        while house.ended < CLIENTS * TOPICS:
            honest.lane.data_received(frame(HEARTBEAT))
            for _ in range(4):
                await asyncio.sleep(0)
            answers += 1
            assert b"".join(honest.pipe.written).count(b"phx_reply") == answers
            await asyncio.sleep(0.01)  # it sends seldom
        assert answers > 2


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_who_has_gone_or_is_told_to_gets_no_broadcasts_while_the_channels_wait_to_end() -> None:
    house = House()
    loop: Any = asyncio.get_running_loop()
    pulse, serializer = IdleSweep(loop), V2()
    clients = [Client(loop, pulse, house.service, serializer) for _ in range(5)]
    for client in clients:
        client.connection.receive(join(1))
    await house.wait_for_joins(len(clients))
    stays, goes, closes, *others = clients
    goes.lane.connection_lost(None)
    closes.lane.close(1001, "bye")
    for _ in range(3):
        house.service.broker.publish("room:1", "news", {"n": 1})
        house.service.broker.publish("room:1", "news", {"n": 2})
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def news(pipe: Pipe) -> int:
        return b"".join(pipe.written).count(b'"news"')

    assert [news(client.pipe) for client in (stays, *others)] == [6, 6, 6]
    assert [news(client.pipe) for client in (goes, closes)] == [0, 0]
    assert b"".join(closes.pipe.written).endswith(b"\x03\xe9bye")
