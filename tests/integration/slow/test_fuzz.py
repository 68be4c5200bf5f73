"""A hundred thousand mutated messages, thrown at a live server that must stay healthy.

A run that fails names its seed; `FUZZ_SEED=... pytest -k fuzz` throws each client's messages again.
`FUZZ_MESSAGES=...` throws more of them.
"""

import asyncio
import json
import os
import random
from collections import Counter

import pytest

from tests.fuzzing.honest import Figures, Pair, figures, figures_when, honest_pair, nothing_left
from tests.fuzzing.mutate import TOPICS, broken_stream, mutated, version_1
from tests.fuzzing.watch import LANES
from tests.fuzzing.wire import Address, Closed, Frame, Wire, frame, strict, text
from tests.support.servers import Kind, Server, serve

MESSAGES = int(os.environ.get("FUZZ_MESSAGES") or 100_000)
ON = {str(LANES[0]): MESSAGES // 5, str(LANES[1]): MESSAGES}
"""What both have in common gets most of it on the lane whose frames are ours."""

ATTACKERS = 8
BATCH = 50
CODES = {1002, 1007, 1008, 1009, 1011}
COUNTED = {
    *("malformed_message", "unmatched_topic", "unmatched_event", "invalid_payload", "stale_message", "join_refused"),
    *("join_crashed", "channel_crashed", "inexpressible_broadcast", "pushed_after_end", "broken_frame"),
}
SEED = int(os.environ.get("FUZZ_SEED") or random.randrange(1 << 32))

V2_PATH = "/socket/websocket?vsn=2.0.0"
V1_PATH = "/socket/websocket?vsn=1.0.0"
END = "the end of a batch"
JOINS = [text("1", "1", topic, "phx_join", {"body": "x"}) for topic in TOPICS]
JOINS_V1 = [
    json.dumps({"topic": topic, "event": "phx_join", "payload": {}, "ref": "1", "join_ref": "1"}) for topic in TOPICS
]
END_V2 = text(None, END, "phoenix", "heartbeat")
END_V1 = json.dumps({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": END})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Attack:
    """Clients that send batches of mutated messages, reconnect when they are closed, and read what they are sent."""

    def __init__(self, address: Address, seed: int) -> None:
        self.codes: Counter[int] = Counter()
        self.received = 0
        self.enough = False
        self._address = address
        self._randoms = [random.Random(f"{seed} {number}") for number in range(ATTACKERS)]

    async def go_on(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for rnd in self._randoms:
                tasks.create_task(self._attack(rnd))

    async def _attack(self, rnd: random.Random) -> None:
        while not self.enough:
            old = rnd.random() < 0.1
            wire = await Wire.open(self._address, V1_PATH if old else V2_PATH)
            try:
                if rnd.random() < 0.1:
                    await self._break_stream(wire, rnd)
                else:
                    await self._throw_batches(wire, rnd, old)
            finally:
                await wire.discard()

    async def _throw_batches(self, wire: Wire, rnd: random.Random, old: bool) -> None:
        wire.send(*(JOINS_V1 if old else JOINS))
        while not self.enough:
            # What comes behind a fatal message is not looked at, so only the last one may be that.
            batch = [version_1(rnd) if old else mutated(rnd, fatal=0.0) for _ in range(BATCH)]
            wire.send(*batch, *self._fatal(rnd, old), END_V1 if old else END_V2)
            closed = await self._read_until_end(wire, old)
            if closed is not None:
                self.codes[closed.code] += 1
                assert closed.code in CODES, closed
                assert closed.reason in COUNTED, closed
                return

    async def _read_until_end(self, wire: Wire, old: bool) -> Closed | None:
        try:
            while END not in self._checked(await wire.receive(), old):
                pass
        except Closed as closed:
            return closed
        return None

    def _fatal(self, rnd: random.Random, old: bool) -> list[Frame]:
        return [mutated(rnd, fatal=1.0)] if rnd.random() < 0.7 and not old else []

    async def _break_stream(self, wire: Wire, rnd: random.Random) -> None:
        """Send frames of which some are broken, and hang up: the server may wait for the rest of one."""
        stream = b"".join(frame(one) for one in (*JOINS, *(mutated(rnd, fatal=0.0) for _ in range(10))))
        wire.write(broken_stream(rnd, stream))
        wire.hang_up()
        closed = await wire.closed()
        self.codes[closed.code] += 1

    def _checked(self, message: Frame, old: bool) -> str:
        """The text of a message, which must be JSON of the right shape, and tell nothing of the server's insides."""
        self.received += 1
        if isinstance(message, bytes):
            assert message[0] < 3
            return ""
        assert not any(word in message for word in ("Traceback", "Error", "Exception")), message
        found = strict(message)
        assert found is None or len(found) == (4 if old else 5), message
        return message


async def throw(server: Server, attack: Attack, pair: Pair, messages: int) -> Figures:
    """Attack until the server has taken so many mutated messages in all; return its figures once only the honest pair
    is left.
    """
    attack.enough = False
    rounds = pair.rounds
    going_on = asyncio.create_task(attack.go_on())
    try:
        while not going_on.done() and (await figures(server.http))["messages"] - pair.sent < messages:
            await asyncio.wait([going_on], timeout=0.1)
        attack.enough = True
        await going_on
    finally:
        going_on.cancel()
    assert pair.rounds > rounds
    return await figures_when(lambda found: found["connections"] == found["channels"] == 2, server.http, collect=True)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", LANES, ids=str)
async def test_mutated_messages_by_the_thousand_leave_the_server_healthy_and_others_unharmed(kind: Kind) -> None:
    enough = ON[str(kind)]
    try:
        with serve("tests.fuzzing.app:app", kind) as server:
            address = Address(server.port)
            attack = Attack(address, SEED)
            async with honest_pair(address) as pair:
                first = await throw(server, attack, pair, enough // 4)
                last = await throw(server, attack, pair, enough)
            assert last["messages"] - pair.sent >= enough
            assert last["rss"] < first["rss"] + (32 << 20), (first, last)
            after = await figures_when(nothing_left, server.http, collect=True)
            assert not after["failures"]
            assert set(after["counts"]) <= COUNTED
            assert {"malformed_message", "unmatched_topic", "invalid_payload", "channel_crashed"} <= set(
                after["counts"]
            )
            log = server.log.read_text()  # uvicorn tells of broken text frames with a traceback of its own
            assert log.count("Traceback") == log.count("Invalid UTF-8 sequence received from client"), log
            assert {1011, 1002} <= set(attack.codes)
    except BaseException as error:
        error.add_note(f"FUZZ_SEED={SEED}")
        raise
