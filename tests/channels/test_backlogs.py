"""What many clients sent while their handlers were slow is handled in turns: others are served in between."""

import tracemalloc
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from msgspec import Raw

from starlette_channels import Limits, Socket, channel
from starlette_channels.channels.backpressure import Place
from starlette_channels.connection.connection import Connection
from starlette_channels.connection.registry import Service
from starlette_channels.pubsub.broker import Broker
from starlette_channels.runtime.tasks import Tasks
from starlette_channels.runtime.turn_budget import MOST_AT_ONCE
from starlette_channels.wire.messages import Frame
from starlette_channels.wire.serializers import V2

pytestmark = pytest.mark.anyio
CLIENTS, EACH = 30, 200


class Memory:
    """A transport that keeps the refs of what it was to send."""

    outlet: None = None
    shelf: None = None
    heard = 0.0

    def __init__(self) -> None:
        self.tasks = Tasks()
        self.refs: list[str] = []
        self.writer = self.write

    def write(self, frame: Frame, place: Place | None = None) -> None:
        self.refs.append(msgspec.json.decode(frame)[1])

    def pause(self) -> None:
        """Nothing more comes anyhow."""

    def resume(self) -> None:
        """Nothing more comes anyhow."""


async def test_letters_that_waited_for_a_slow_join_are_handled_in_turns_and_in_order() -> None:
    slow = anyio.Event()

    @channel("room:*")
    async def room(socket: Socket, payload: dict[str, Any]) -> None:
        await slow.wait()

    @room.on("echo")
    async def echo(socket: Socket, payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    service = Service([room], Broker(), Limits())
    transports = [Memory() for _ in range(CLIENTS)]
    connections: list[Connection] = []
    for transport in transports:
        any_transport: Any = transport
        connection = Connection(service, any_transport, V2(), {})
        connections.append(connection)
        connection.receive('["1","join","room:a","phx_join",{}]')
        for ref in range(EACH):
            connection.receive(f'["1","{ref}","room:a","echo",{{}}]')
    await anyio.lowlevel.checkpoint()
    slow.set()
    answered, most = 0, 0
    while answered < CLIENTS * (EACH + 1):
        await anyio.lowlevel.checkpoint()
        now = sum(len(transport.refs) for transport in transports)
        answered, most = now, max(most, now - answered)
    assert most <= CLIENTS + 4 * MOST_AT_ONCE, "in one turn of the event loop"
    for transport in transports:
        assert transport.refs == ["join", *map(str, range(EACH))]
    for connection in connections:
        await connection.end()


@pytest.mark.parametrize("letter", ["x", "é", "語", "😀"])
async def test_what_waits_for_a_slow_handler_takes_as_much_memory_as_its_bytes_whatever_its_letters(
    letter: str,
) -> None:
    slow, frames, size = anyio.Event(), 4, 200_000

    @channel("room:*")
    async def room(socket: Socket, payload: dict[str, Any]) -> None: ...

    @room.on("draw")
    async def draw(socket: Socket, payload: Raw) -> None:
        await slow.wait()

    any_transport: Any = Memory()
    connection = Connection(Service([room], Broker(), Limits()), any_transport, V2(), {})
    connection.receive('["1","1","room:a","phx_join",{}]')
    await anyio.wait_all_tasks_blocked()
    tracemalloc.start()
    try:
        for number in range(frames):
            # A Python string takes up to four bytes for each character, if one of them is wide.
            connection.receive(f'["1","{number}","room:a","draw",{{"x":"{letter}{"x" * size}"}}]')
        await anyio.wait_all_tasks_blocked()
        assert tracemalloc.get_traced_memory()[0] <= frames * size + 50_000
    finally:
        tracemalloc.stop()
        slow.set()
        await connection.end()
