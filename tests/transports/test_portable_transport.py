"""The portable transport's frames, from `write` to the server's `send`."""

import weakref
from collections import Counter
from collections.abc import MutableMapping
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked

from starlette_channels.channels.backpressure import Place
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.runtime.tasks import Tasks
from starlette_channels.transports.asgi_websocket import WebSocketTransport
from starlette_channels.transports.asgi_writer import MANY_ENTRIES, SENDS_AT_ONCE

pytestmark = pytest.mark.anyio


class Server:
    """Sends one frame whenever it is let."""

    def __init__(self, gates: int = 0) -> None:
        self.sent: list[Any] = []
        self.gate = anyio.Semaphore(gates)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await self.gate.acquire()
        self.sent.append(message.get("text", message.get("bytes", message.get("code"))))

    def let(self, frames: int) -> None:
        for _ in range(frames):
            self.gate.release()


def transport_to(server: Server) -> WebSocketTransport:
    return WebSocketTransport(server.send, Tasks(), Bounds(), ErrorLog(Counter()))


async def test_frames_keep_their_order_whether_the_client_keeps_up_or_not() -> None:
    server = Server()
    transport = transport_to(server)
    transport.write("1")
    await wait_all_tasks_blocked()
    for frame in ("2", b"3", "4"):
        transport.write(frame)
    server.let(2)
    await wait_all_tasks_blocked()
    assert server.sent == ["1", "2"]
    transport.write("5")
    server.let(5)
    await wait_all_tasks_blocked()
    transport.write("6")
    transport.write("7")
    transport.close(1001)
    server.let(2)
    await wait_all_tasks_blocked()
    assert server.sent == ["1", "2", b"3", "4", "5", "6", "7", 1001]


async def test_a_frame_that_has_not_begun_to_leave_is_not_sent_to_a_client_that_is_gone() -> None:
    server = Server(gates=9)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.disconnect"}

    transport = transport_to(server)
    transport.write("too late")
    connection: Any = None
    await transport.read(receive, connection)
    await wait_all_tasks_blocked()
    assert server.sent == []


async def test_a_key_that_is_none_is_refused_and_the_frames_around_it_arrive() -> None:
    server = Server()
    transport = transport_to(server)
    transport.write("1")
    await wait_all_tasks_blocked()
    with pytest.raises(TypeError):
        transport.write("?", Place(transport, []))  # pyright: ignore[reportArgumentType]
    server.let(4)
    await wait_all_tasks_blocked()
    transport.write("2")
    await wait_all_tasks_blocked()
    transport.write("3")
    await wait_all_tasks_blocked()
    assert server.sent == ["1", "2", "3"]


async def test_broadcasts_and_pushes_of_one_turn_keep_their_order_for_clients_that_read_and_for_those_that_do_not() -> (
    None
):
    reading, hanging = Server(gates=99), Server(gates=1)
    quick, slow = transport_to(reading), transport_to(hanging)
    writers = (slow.writer, quick.writer)
    slow.outlet.spread(writers, "1")
    slow.write("2")
    quick.write("2")
    slow.outlet.spread(writers, "3")
    await anyio.lowlevel.checkpoint()
    slow.write("4")
    slow.outlet.spread(writers, "5")
    slow.close(1001)
    slow.outlet.spread(writers, "6")
    await wait_all_tasks_blocked()
    assert reading.sent == ["1", "2", "3", "5", "6"], "a client that does not read holds up nobody"
    hanging.let(9)
    await wait_all_tasks_blocked()
    assert hanging.sent == ["1", "2", "3", "4", "5", 1001], "what is sent after a close goes nowhere"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nobody_keeps_a_client_that_is_gone(anyio_backend: str) -> None:
    server = Server()
    transport = transport_to(server)
    transport.outlet.spread((transport.writer,), "1")
    await wait_all_tasks_blocked()
    server.let(1)
    await wait_all_tasks_blocked()
    assert server.sent == ["1"]
    gone = weakref.ref(transport)
    del transport
    assert gone() is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_broadcast_to_many_takes_several_turns_of_the_event_loop_and_a_flood_of_them_as_few_as_it_can(
    anyio_backend: str,
) -> None:
    clients = 3 * SENDS_AT_ONCE + 1
    sent: list[str] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message["text"])

    crowd = [WebSocketTransport(send, Tasks(), Bounds(), ErrorLog(Counter())) for _ in range(clients)]
    writers = tuple(transport.writer for transport in crowd)

    async def turns_of(broadcasts: int) -> list[int]:
        """Broadcast, and return how many frames had been sent after each turn of the event loop."""
        sent.clear()
        for number in range(broadcasts):
            crowd[0].outlet.spread(writers, str(number))
        progress = list[int]()
        while len(sent) < broadcasts * clients:
            await anyio.lowlevel.checkpoint()
            progress.append(len(sent))
        assert sent == [str(number) for number in range(broadcasts) for _ in range(clients)]
        return progress

    assert await turns_of(1) == [SENDS_AT_ONCE, 2 * SENDS_AT_ONCE, 3 * SENDS_AT_ONCE, clients]
    assert (await turns_of(2 * MANY_ENTRIES))[0] > MANY_ENTRIES * clients
