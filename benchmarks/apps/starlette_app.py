"""Starlette by itself: a set of WebSockets for each topic, and a loop over it. Just enough of Phoenix's wire."""

import json
from collections import defaultdict
from typing import Any

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

members: defaultdict[str, set[WebSocket]] = defaultdict(set)


async def socket(websocket: WebSocket) -> None:
    """Serve one client."""
    await websocket.accept()
    topics: set[str] = set()
    try:
        async for text in websocket.iter_text():
            join_ref, ref, topic, event, payload = json.loads(text)
            match event:
                case "phx_join":
                    topics.add(topic)
                    members[topic].add(websocket)
                    await reply(websocket, join_ref, ref, topic, {})
                case "echo":
                    await reply(websocket, join_ref, ref, topic, payload)
                case _:
                    await broadcast(topic, event, payload)
    finally:
        for topic in topics:
            members[topic].discard(websocket)


async def reply(websocket: WebSocket, join_ref: str, ref: str, topic: str, response: Any) -> None:
    """Answer one message."""
    answer = {"status": "ok", "response": response}
    await websocket.send_text(json.dumps([join_ref, ref, topic, "phx_reply", answer]))


async def broadcast(topic: str, event: str, payload: Any) -> None:
    """Send to everybody on the topic; the text is made once."""
    text = json.dumps([None, None, topic, event, payload])
    for member in list(members[topic]):
        await member.send_text(text)


app = Starlette(routes=[WebSocketRoute("/socket/websocket", socket)])
