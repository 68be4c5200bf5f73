"""A client that notes what becomes of it: what it is told on its topics, and how its connection ends."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed


class Client:
    """Somebody with a name, who joins topics and stays."""

    def __init__(self, url: str, user: str) -> None:
        self.user = user
        self.events: Counter[tuple[str, str]] = Counter()
        """How often it was told what, by topic and event."""
        self.lost: Counter[str] = Counter()
        self.code: int | None = None
        self._url = f"{url}/socket/websocket?vsn=2.0.0&user={user}"
        self._connection: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._joined: dict[str, asyncio.Event] = {}

    async def join(self, topics: Sequence[str]) -> "Client":
        """Connect, and join."""
        connection = self._connection = await connect(self._url)
        self._joined = {topic: asyncio.Event() for topic in topics}
        self._task = asyncio.create_task(self._listen(connection))
        for number, topic in enumerate(topics):
            await connection.send(json.dumps([str(number), str(number), topic, "phx_join", {}]))
        async with asyncio.timeout(20):
            for joined in self._joined.values():
                await joined.wait()
        return self

    async def leave(self) -> None:
        """Be gone."""
        if self._connection is not None and self._task is not None:
            self._connection.transport.abort()
            await self._connection.wait_closed()
            await asyncio.wait((self._task,))

    async def _listen(self, connection: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for frame in connection:
                self._take(*json.loads(frame))
        self.code = connection.close_code

    def _take(self, join_ref: str | None, ref: str | None, topic: str, event: str, payload: Any) -> None:
        if event == "phx_reply" and payload["status"] == "ok":
            self._joined[topic].set()
        self.events[topic, event] += 1
        if event == "gap":
            self.lost[topic] += payload["lost"]

    def accounts_for(self, topic: str) -> int:
        """How many were said on a topic that it has got, or was told that they are lost."""
        return self.events[topic, "said"] + self.lost[topic]
