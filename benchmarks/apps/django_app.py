# pyright: basic, reportMissingImports=false, reportArgumentType=false
"""Django Channels with its in-memory layer: a consumer, and a group for each topic. Just enough of Phoenix's wire."""

import json
from typing import Any

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

settings.configure(CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}})
django.setup()


class Consumer(AsyncWebsocketConsumer):
    """One client."""

    groups: list[str]

    async def connect(self) -> None:
        """Accept every client."""
        self.groups = []
        await self.accept()

    async def receive(self, text_data: str = "", bytes_data: bytes = b"") -> None:
        """Join, reply or broadcast."""
        join_ref, ref, topic, event, payload = json.loads(text_data)
        group = topic.replace(":", ".")  # names of groups have no colon
        match event:
            case "phx_join":
                self.groups.append(group)  # left when the client has gone
                await self.channel_layer.group_add(group, self.channel_name)
                await self.reply(join_ref, ref, topic, {})
            case "echo":
                await self.reply(join_ref, ref, topic, payload)
            case _:
                text = json.dumps([None, None, topic, event, payload])
                await self.channel_layer.group_send(group, {"type": "broadcast", "text": text})

    async def reply(self, join_ref: str, ref: str, topic: str, response: Any) -> None:
        """Answer one message."""
        answer = {"status": "ok", "response": response}
        await self.send(json.dumps([join_ref, ref, topic, "phx_reply", answer]))

    async def broadcast(self, event: dict[str, Any]) -> None:
        """Pass a message of the group on."""
        await self.send(event["text"])


app = ProtocolTypeRouter({"websocket": URLRouter([path("socket/websocket", Consumer.as_asgi())])})
