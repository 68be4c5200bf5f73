"""From other threads and other event loops: broadcasts, and every method of a socket."""

import asyncio
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from starlette_channels import Broadcast, Channels, Reply, SerializerError, Socket, channel
from starlette_channels.testing import connect
from tests.conftest import OK, frames, until

with warnings.catch_warnings(action="ignore"):  # it prefers httpx2 to httpx, and says so
    from starlette.testclient import TestClient, WebSocketTestSession

in_thread = anyio.to_thread.run_sync


class House:
    """Channels that keep their sockets."""

    def __init__(self) -> None:
        self.sockets: list[Socket] = []
        self.threads: set[int] = set()
        self.ends: list[str] = []

        @channel("room:*")
        async def room(socket: Socket, payload: Any) -> None:
            self.sockets.append(socket)

        @room.on("say")
        async def say(socket: Socket, payload: Any) -> dict[str, Any]:
            socket.broadcast("said", payload)
            return {}

        @room.on("work")
        async def work(socket: Socket, payload: Any) -> None:
            answer = socket.reply_later()

            def blocking() -> None:
                socket.push("progress", {"percent": 50})
                socket.broadcast("done", {})
                socket.broadcast_from("done for others", {})
                answer({"finished": True})

            await in_thread(blocking)

        @room.info(object)
        async def info(socket: Socket, message: object) -> None:
            self.threads.add(threading.get_ident())
            name = f"{message.event} on {message.topic}" if isinstance(message, Broadcast) else str(message)
            socket.push("info", {"message": name})

        @room.terminate
        async def terminate(socket: Socket, reason: str) -> None:
            self.threads.add(threading.get_ident())
            self.ends.append(reason)

        self.channels = Channels([room])
        self.app = Starlette(routes=[Mount("/socket", app=self.channels)], lifespan=self.channels.lifespan)


@pytest.mark.anyio
async def test_the_application_can_broadcast_from_a_thread_in_order() -> None:
    house = House()

    def announce() -> None:
        for n in range(100):
            house.channels.broadcast("room:a", "news", {"n": n})

    async with connect(house.channels) as client:
        await client.join("room:a")
        await in_thread(announce)
        assert [one.payload["n"] for one in await frames(client, 100)] == list(range(100))


@pytest.mark.anyio
async def test_blocking_work_can_push_broadcast_and_answer_from_its_thread_in_order() -> None:
    house = House()
    async with connect(house.channels) as client, connect(house.channels) as other:
        room, there = await client.join("room:a"), await other.join("room:a")
        ref = room.send("work")
        assert [one.event for one in await frames(client, 3)] == ["progress", "done", "phx_reply"]
        assert await there.receive("done") == {}
        assert await there.receive("done for others") == {}
        assert await client.received_nothing(lambda one: one.ref == ref)


@pytest.mark.anyio
async def test_every_method_of_a_socket_can_be_called_from_a_thread() -> None:
    house = House()
    here = threading.get_ident()

    def announce() -> None:
        house.channels.broadcast("elsewhere", "news", {})

    async def child(socket: Socket) -> None:
        house.threads.add(threading.get_ident())
        socket.push("child", {})

    async with connect(house.channels) as client:
        room = await client.join("room:a")
        (socket,) = house.sockets
        await in_thread(socket.send_info, "hello")
        assert await room.receive("info") == {"message": "hello"}
        await in_thread(socket.subscribe, "elsewhere")
        await in_thread(announce)
        assert await room.receive("info") == {"message": "news on elsewhere"}
        await in_thread(socket.unsubscribe, "elsewhere")
        await in_thread(announce)
        await in_thread(socket.start_soon, child, socket)
        assert await room.receive("child") == {}
        assert await room.received_nothing()
        assert house.channels.statistics() == await in_thread(house.channels.statistics)
        await in_thread(socket.stop)
        await room.receive("phx_close")
    assert house.threads == {here}
    assert house.ends == ["stopped"]


@pytest.mark.anyio
async def test_a_payload_that_cannot_be_encoded_raises_in_the_thread_that_gave_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    async with connect(house.channels) as client:
        await client.join("room:a")
        (socket,) = house.sockets
        a_list: Any = [1]
        unknown: dict[str, Any] = {"a": object()}
        for send in (socket.push, socket.broadcast):
            with pytest.raises(TypeError):
                await in_thread(send, "news", unknown)
        with pytest.raises(SerializerError):
            await in_thread(socket.push, "news", a_list)
        # Which wires there are, only the loop's own thread knows: the broadcaster has gone on.
        await in_thread(house.channels.broadcast, "room:a", "news", a_list)
        assert await client.heartbeat() == Reply("ok", {})
        await until(lambda: "must be an object" in caplog.text)
        assert house.channels.statistics().counts["inexpressible_broadcast"] == 1


@pytest.mark.anyio
async def test_many_threads_at_once_lose_nothing() -> None:
    house = House()

    def announce(thread: int) -> None:
        for n in range(100):
            house.channels.broadcast("room:a", "news", {"thread": thread, "n": n})

    async with connect(house.channels) as client:
        await client.join("room:a")
        async with anyio.create_task_group() as tasks:
            for thread in range(5):
                tasks.start_soon(in_thread, announce, thread)
        came = [one.payload for one in await frames(client, 500)]
    for thread in range(5):
        assert [one["n"] for one in came if one["thread"] == thread] == list(range(100))


def test_a_thread_that_knows_nothing_of_async_can_wake_a_channel_of_a_plain_event_loop() -> None:
    house = House()

    async def main() -> None:
        async with connect(house.channels) as client:
            room = await client.join("room:a")
            (socket,) = house.sockets
            for function, args in [(socket.send_info, ("hello",)), (socket.push, ("info", {"message": "hello"}))]:
                thread = threading.Thread(target=function, args=args)
                thread.start()
                assert await room.receive("info") == {"message": "hello"}
                thread.join()

    asyncio.run(main())


@pytest.fixture(params=["asyncio", "trio"])
def house(request: pytest.FixtureRequest) -> Iterator[tuple[House, Callable[[], WebSocketTestSession]]]:
    """Channels, and what connects to them through Starlette's test client: each connection has a loop of its own."""
    one = House()
    client = TestClient(one.app, backend=request.param)
    with ExitStack() as stack:

        def enter() -> WebSocketTestSession:
            return stack.enter_context(client.websocket_connect("/socket/websocket?vsn=2.0.0"))

        yield one, enter


def join(session: WebSocketTestSession) -> None:
    session.send_json(["1", "1", "room:a", "phx_join", {}])
    assert session.receive_json() == ["1", "1", "room:a", "phx_reply", OK]


def test_clients_of_different_event_loops_can_chat(house: tuple[House, Callable[[], WebSocketTestSession]]) -> None:
    here, enter = house
    ann, bob = enter(), enter()
    join(ann)
    join(bob)
    for speaker, other in ((ann, bob), (bob, ann)):
        speaker.send_json(["1", "2", "room:a", "say", {"text": "hi"}])
        said = [None, None, "room:a", "said", {"text": "hi"}]
        assert speaker.receive_json() == other.receive_json() == said
        assert speaker.receive_json() == ["1", "2", "room:a", "phx_reply", OK]
    here.channels.broadcast("room:a", "news", {})  # from a thread without any event loop
    for session in (ann, bob):
        assert session.receive_json() == [None, None, "room:a", "news", {}]
    assert here.channels.statistics().connections == 2


def test_an_event_loop_that_has_ended_is_forgotten(house: tuple[House, Callable[[], WebSocketTestSession]]) -> None:
    here, enter = house
    ann = enter()
    join(ann)
    with TestClient(here.app).websocket_connect("/socket/websocket?vsn=2.0.0") as short:
        join(short)
    assert here.ends == ["closed"]
    for n in range(2):
        here.channels.broadcast("room:a", "news", {"n": n})
        assert ann.receive_json() == [None, None, "room:a", "news", {"n": n}]
    gone = here.sockets[1]
    gone.push("late", {})
    gone.send_info("late")
    gone.stop()
    gone.subscribe("late")
    gone.broadcast("still", {"works": True})
    assert ann.receive_json() == [None, None, "room:a", "still", {"works": True}]
    assert here.channels.statistics().topics == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_clients_of_one_event_loop_can_chat_as_well(backend: Any) -> None:
    here = House()
    path = "/socket/websocket?vsn=2.0.0"
    with (
        TestClient(here.app, backend=backend) as client,
        client.websocket_connect(path) as ann,
        client.websocket_connect(path) as bob,
    ):
        join(ann)
        join(bob)
        ann.send_json(["1", "2", "room:a", "say", {"text": "hi"}])
        assert ann.receive_json() == bob.receive_json() == [None, None, "room:a", "said", {"text": "hi"}]
    assert here.ends == ["closed", "closed"]
    assert here.channels.statistics().connections == 0
