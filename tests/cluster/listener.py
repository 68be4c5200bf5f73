"""A client of one node that sees to it that nothing is told twice, out of order, or not at all without a word."""

import asyncio
import contextlib
import json
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.cluster.app import HALL


def _holes(numbers: list[int]) -> list[tuple[int, int]]:
    return [(before + 1, after - 1) for before, after in pairwise(numbers) if after > before + 1]


class Listener:
    """Somebody in the hall; what is wrong with what is told is kept in `wrong`."""

    def __init__(self, url: str, user: str = "") -> None:
        self.user = user
        self.wrong: list[str] = []
        self.numbers: defaultdict[str, list[int]] = defaultdict(list)
        self.lost: Counter[str] = Counter()
        self.gaps: defaultdict[str, list[int]] = defaultdict(list)
        self.there: dict[str, str] | None = None
        self._before: Counter[str] = Counter()
        self._url = f"{url}/socket/websocket?vsn=2.0.0&user={user}"
        self._connection: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        self._finished = asyncio.Event()

    async def join(self) -> None:
        """Be in the hall, and listen from now on."""
        self._connection = await connect(self._url)
        await self._send("phx_join")
        self._task = asyncio.create_task(self._listen(self._connection))
        await asyncio.wait_for(self._joined.wait(), 10)

    async def say(self) -> None:
        """Let the node say its next number."""
        await self._send("say")

    async def finish(self) -> None:
        """Wait until the node has said all that it was to say, if there is still a way to it."""
        self._finished.clear()
        with contextlib.suppress(ConnectionClosed):
            await self._send("done")
            await asyncio.wait_for(self._finished.wait(), 10)

    async def leave(self) -> None:
        """Be gone, whatever has become of the node."""
        if self._connection is not None and self._task is not None:
            self._connection.transport.abort()
            await asyncio.wait((self._task,))

    def who(self) -> list[str]:
        """Who is there, by what this client has been told."""
        return sorted((self.there or {}).values())

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended."""
        return self._task is None or self._task.done()

    def sums(self) -> dict[str, str]:
        """What has come of each node, what is missing in between, and what was said to be lost."""
        return {
            life: f"{numbers[0]}-{numbers[-1]} but for {_holes(numbers)}, said to be lost: {self.gaps[life]}"
            for life, numbers in self.numbers.items()
        }

    def accounted_for(self, life: str) -> int:
        """How many numbers of a node have come, or are known to be lost."""
        return len(self.numbers[life]) + self.lost[life] + self._before[life]

    def begin(self) -> None:
        """Expect from now on that whatever a node says comes, or is said to be lost, the first word of a node that
        starts later included; what has not come so far was said before this client came.
        """
        for life, numbers in self.numbers.items():
            self._before[life] += numbers[-1] - self.accounted_for(life)

    async def _send(self, event: str) -> None:
        assert self._connection is not None
        await self._connection.send(json.dumps(["1", event, HALL, event, {}]))

    async def _listen(self, connection: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for frame in connection:
                self._take(json.loads(frame))
        self._finished.set()

    def _take(self, frame: list[Any]) -> None:
        _, ref, _, event, payload = frame
        match event:
            case "said":
                self._hear(payload["life"], payload["number"])
            case "gap":
                self.lost[payload["life"]] += payload["lost"]
                self.gaps[payload["life"]].append(payload["lost"])
            case "presence_state":
                self.there = dict(self._refs(payload))
                self._joined.set()
            case "presence_diff":
                self._change(self._refs(payload["joins"]), self._refs(payload["leaves"]))
            case _:
                assert event == "phx_reply", frame
                if ref == "done":
                    self._finished.set()

    def _hear(self, life: str, number: int) -> None:
        numbers = self.numbers[life]
        if numbers and number <= numbers[-1]:
            self.wrong.append(f"{number} of {life} came after {numbers[-1]}")
        numbers.append(number)

    def _refs(self, presences: dict[str, Any]) -> dict[str, str]:
        return {meta["phx_ref"]: key for key, one in presences.items() for meta in one["metas"]}

    def _change(self, joins: dict[str, str], leaves: dict[str, str]) -> None:
        if self.there is None:  # before the state, of which it is a part
            return
        self.there.update(joins)
        for ref, key in leaves.items():
            if self.there.pop(ref, None) is None:
                self.wrong.append(f"{key} left, and was not there")
