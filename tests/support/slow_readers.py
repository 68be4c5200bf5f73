"""Channels that can flood a client, and an ASGI server in front of them whose client can stop reading."""

from typing import Any

import anyio
from starlette.types import Message, Receive, Scope, Send

from starlette_channels import Channels, Limits, Socket, channel


class Hall:
    """Channels with a handler that floods the client, and one that waits for a gate."""

    def __init__(self, *, pushes_at_the_end: bool = False, **limits: Any) -> None:
        self.gate = anyio.Event()
        self.sockets: list[Socket] = []
        self.handled: list[Any] = []
        self.ends: list[str] = []

        @channel("hall:*")
        async def hall(socket: Socket, payload: Any) -> None:
            self.sockets.append(socket)

        @hall.on("wait")
        async def wait(socket: Socket, payload: Any) -> dict[str, Any]:
            await self.gate.wait()
            self.handled.append(payload)
            return {}

        @hall.on("flood")
        async def flood(socket: Socket, payload: dict[str, int]) -> dict[str, Any]:
            for n in range(payload["frames"]):
                socket.push("flood", {"n": n, "text": "x" * payload["size"]})
            return {}

        @hall.info(object)
        async def info(socket: Socket, message: object) -> None:
            self.handled.append(message)

        @hall.terminate
        async def terminate(socket: Socket, reason: str) -> None:
            self.ends.append(reason)
            if pushes_at_the_end:
                socket.push("bye", {})

        self.channels = Channels([hall], limits=Limits(**limits))


class Server:
    """An ASGI server whose client can stop reading; it counts the messages that it takes and hands over."""

    def __init__(self, channels: Channels[Any], *, close_hangs: bool = False) -> None:
        self.channels = channels
        self.reading = anyio.Event()
        self.reading.set()
        self.taken = 0
        self.handed_over = 0
        self.close_hangs = close_hangs

    def stop_reading(self) -> None:
        """Let every send wait from now on."""
        self.reading = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def take() -> Message:
            message = await receive()
            self.taken += 1
            return message

        async def give(message: Message) -> None:
            if message["type"] == "websocket.send" or self.close_hangs:
                self.handed_over += 1
                await self.reading.wait()
            await send(message)

        await self.channels(scope, take, give)
