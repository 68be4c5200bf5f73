# pyright: basic, reportMissingImports=false
"""Litestar's ChannelsPlugin with its backend in memory. Just enough of Phoenix's wire: the first message is a join."""

from typing import Any

from litestar import Litestar, WebSocket, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.exceptions import WebSocketDisconnect


@websocket("/socket/websocket")
async def socket(socket: WebSocket, channels: ChannelsPlugin) -> None:
    """Serve one client."""
    await socket.accept()
    join_ref, ref, topic, _, _ = await socket.receive_json()
    async with channels.start_subscription([topic]) as subscriber, subscriber.run_in_background(socket.send_text):
        await reply(socket, join_ref, ref, topic, {})
        try:
            while True:
                join_ref, ref, topic, event, payload = await socket.receive_json()
                if event == "echo":
                    await reply(socket, join_ref, ref, topic, payload)
                else:
                    channels.publish([None, None, topic, event, payload], topic)
        except WebSocketDisconnect:
            return


async def reply(socket: WebSocket, join_ref: str, ref: str, topic: str, response: Any) -> None:
    """Answer one message."""
    await socket.send_json([join_ref, ref, topic, "phx_reply", {"status": "ok", "response": response}])


app = Litestar([socket], plugins=[ChannelsPlugin(backend=MemoryChannelsBackend(), arbitrary_channels_allowed=True)])
