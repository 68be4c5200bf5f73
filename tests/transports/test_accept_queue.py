"""Handshakes of a crowd: one in each turn of the event loop, in order, and without anybody forgotten."""

import asyncio
from collections.abc import Callable

import pytest

from starlette_channels.transports.uvicorn_lane.accept_queue import HandshakeQueue, handshake_queue_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_of_a_crowd_one_is_let_in_in_each_turn() -> None:
    let_in: list[int] = []
    queue = handshake_queue_of(asyncio.get_running_loop())
    for number in range(5):
        queue.enter(lambda number=number: let_in.append(number))
    for turn in range(5):
        assert let_in == list(range(turn))
        await asyncio.sleep(0)
    queue.enter(lambda: let_in.append(5))
    await asyncio.sleep(0)
    assert let_in == [0, 1, 2, 3, 4, 5], "when the crowd is in, nobody waits for longer than a turn"


async def test_who_comes_while_others_wait_comes_after_them() -> None:
    let_in: list[str] = []
    queue = HandshakeQueue(asyncio.get_running_loop())

    def bring(friend: str) -> Callable[[], None]:
        return lambda: queue.enter(lambda: let_in.append(friend))

    queue.enter(bring("friend"))
    queue.enter(lambda: let_in.append("second"))
    queue.enter(bring("another"))
    for _ in range(6):
        await asyncio.sleep(0)
    assert let_in == ["second", "friend", "another"]


async def test_a_handshake_that_raises_takes_nobody_elses_turn() -> None:
    let_in: list[int] = []
    reported: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    queue = HandshakeQueue(loop)

    def fail() -> None:
        raise IndexError

    queue.enter(fail)
    queue.enter(lambda: let_in.append(1))
    for _ in range(3):
        await asyncio.sleep(0)
    assert let_in == [1]
    assert [type(error) for error in reported] == [IndexError]
