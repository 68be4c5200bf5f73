"""However a client's bytes are cut, and however many send at once: each message is answered once, in its order."""

import asyncio
import json
import random
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzzing.wire import CONTINUATION, PING, TEXT, Address, Wire, frame, opened, text
from tests.support.certificates import Authority
from tests.support.servers import FAST_LANE, UVICORN, Kind, serve

pytestmark = pytest.mark.anyio
CLIENTS = 40
MESSAGES = 150
LARGE = 80_000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["fast-lane", "fast-lane-tls", "uvicorn"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    kind: Kind = UVICORN if request.param == "uvicorn" else FAST_LANE
    context: ssl.SSLContext | None = None
    if request.param.endswith("tls"):
        authority = Authority(Path(tmp_path_factory.mktemp("order"), "authority"))
        certificate = authority.certificate()
        options = f"--ssl-certfile {certificate.chain} --ssl-keyfile {certificate.key}"
        kind = replace(kind, command=f"{kind.command} {options}")
        context = ssl.create_default_context(cafile=str(authority.file))
        context.check_hostname = False
    with serve("tests.support.order_app:app", kind) as server:
        yield Address(server.port, tls=context)


def message(chance: random.Random, ref: int) -> bytes:
    """One message, of any size, in one frame or in several with pings between them."""
    payload: dict[str, object] = {"n": ref}
    if chance.random() < 0.05:
        payload["wait"] = chance.choice([0, 0.001, 0.01])
    if chance.random() < 0.05:
        payload["x"] = "x" * chance.choice([60, 126, 5_000, LARGE])
    whole = text("1", str(ref), "room:order", "echo", payload)
    if chance.random() < 0.8:
        return frame(whole) + (frame(b"", PING) if chance.random() < 0.1 else b"")
    cuts = sorted(chance.randrange(len(whole) + 1) for _ in range(chance.randrange(1, 5)))
    parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    sent = b""
    for number, part in enumerate(parts):
        opcode = CONTINUATION if number else TEXT
        sent += frame(part, opcode, final=number == len(parts) - 1) + (frame(b"p", PING) if number % 2 else b"")
    return sent


async def send_in_pieces(wire: Wire, chance: random.Random) -> None:
    data = b"".join(message(chance, ref) for ref in range(MESSAGES))
    at = 0
    while at < len(data):
        size = chance.choice([1, 7, 40, 60, 61, 500, 5_000, 70_000, 300_000])
        wire.write(data[at : at + size])
        at += size
        if chance.random() < 0.5:
            await wire.drain()
            await asyncio.sleep(0)


async def answers(wire: Wire) -> list[str]:
    refs: list[str] = []
    while len(refs) < MESSAGES:
        answer = json.loads(await wire.receive())
        assert answer[4]["status"] == "ok", answer
        assert answer[4]["response"]["n"] == int(answer[1])
        refs.append(answer[1])
    return refs


@pytest.mark.parametrize("seed", range(2))
async def test_every_message_of_many_clients_is_answered_once_and_in_order_however_it_comes(
    address: Address, seed: int
) -> None:
    async def client(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        async with opened(address) as wire:
            await wire.join("room:order")
            sending = asyncio.create_task(send_in_pieces(wire, chance))
            assert await answers(wire) == [str(ref) for ref in range(MESSAGES)]
            await sending
            assert await wire.call("1", "end", "room:order", "echo") == {"status": "ok", "response": {}}, (
                "nothing twice"
            )

    async with asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            clients.create_task(client(number))
