"""Channels in which everything can go wrong: what is counted, logged and throttled is tried in them."""

from typing import Any

import anyio

from starlette_channels import (
    V2,
    Channels,
    ConnectError,
    Expiry,
    Handshake,
    JoinError,
    Limits,
    LongPoll,
    Presence,
    Rate,
    SerializerError,
    Socket,
    channel,
)
from starlette_channels.wire.messages import Gap
from starlette_channels.wire.messages import Message as ClientMessage


class Fragile(V2):
    """Version 2 with bugs in both directions."""

    def decode(self, frame: str | bytes) -> ClientMessage:
        if frame == "bug":
            raise ZeroDivisionError("in the serializer")
        return super().decode(frame)

    def broadcast(self, topic: str, event: str, body: Any) -> str | bytes:
        if event == "bug":
            raise ZeroDivisionError("in the serializer")
        return super().broadcast(topic, event, body)


class Lab:
    """Channels in which a client can cause every mishap."""

    def __init__(
        self, window_seconds: float = 10.0, mailbox: int = 10, join_rate: Rate | None = None, **limits: Any
    ) -> None:
        self.sockets: list[Socket[Any]] = []

        async def enter(conn: Handshake) -> dict[str, Any]:
            match conn.params.get("user"):
                case "refused":
                    raise ConnectError("no")
                case "crash":
                    raise ZeroDivisionError("in connect")
                case _:
                    return dict(conn.params)

        @channel("lab:*")
        async def lab(socket: Socket[Any], payload: dict[str, Any]) -> None:
            self.sockets.append(socket)
            match payload:
                case {"refuse": True}:
                    raise JoinError("no")
                case {"refuse": _}:
                    raise JoinError(payload={"no": object()})
                case {"crash": _}:
                    raise ZeroDivisionError("in the join")
                case {"wait": _}:
                    await anyio.sleep_forever()
                case {"cleanup": _}:
                    socket.on_close(self.cleanup)
                case _:
                    pass

        @lab.on("crash")
        async def crash(socket: Socket[Any], payload: dict[str, Any]) -> None:
            raise ZeroDivisionError("in a handler")

        @lab.on("crash_too")
        async def crash_too(socket: Socket[Any], payload: Any) -> None:
            raise ZeroDivisionError("in another handler")

        @lab.on("child")
        async def child(socket: Socket[Any], payload: Any) -> None:
            socket.start_soon(self.child)

        @lab.on("wait")
        async def wait(socket: Socket[Any], payload: Any) -> None:
            await anyio.sleep_forever()

        @lab.on("overflow")
        async def overflow(socket: Socket[Any], payload: Any) -> None:
            for _ in range(20):
                socket.send_info("x")

        @lab.on("info")
        async def info(socket: Socket[Any], payload: Any) -> None:
            socket.send_info(5)

        @lab.on("relay")
        async def relay(socket: Socket[Any], payload: dict[str, Any]) -> None:
            try:
                socket.broadcast(payload["event"], payload["payload"])
            except SerializerError:
                return

        @lab.on("track")
        async def track(socket: Socket[Any], payload: dict[str, str]) -> None:
            self.presence.track(socket, payload["key"], {})

        @lab.intercept("intercepted")
        async def intercepted(socket: Socket[Any], payload: dict[str, int]) -> None:
            pass

        @lab.info(str)
        async def text(socket: Socket[Any], message: str) -> None:
            pass

        @lab.info(Gap)
        async def gap(socket: Socket[Any], message: Gap) -> None:
            raise ZeroDivisionError("in the handler of a gap")

        @lab.terminate
        async def terminate(socket: Socket[Any], reason: str) -> None:
            if "trap" in socket.topic:
                raise ZeroDivisionError("in terminate")

        async def refresh(assigns: dict[str, Any], payload: dict[str, str]) -> dict[str, Any]:
            if payload["how"] == "crash":
                raise ZeroDivisionError("in refresh")
            raise ConnectError("no")

        async def fetch(topic: str, presences: Any) -> Any:
            raise ZeroDivisionError("in fetch")

        self.presence = Presence(fetch=fetch)

        @self.presence.on_diff
        async def on_diff(topic: str, diff: object) -> None:
            raise ZeroDivisionError("in the observer")

        self.channels = Channels(
            [lab],
            connect=enter,
            expiry=Expiry[dict[str, Any]](at=lambda assigns: None, refresh=refresh),
            serializers=[Fragile()],
            presence=self.presence,
            longpoll=LongPoll(window_seconds=window_seconds, batch_lines=3),
            limits=Limits(mailbox=mailbox, join_rate=join_rate, shutdown_seconds=0.01, **limits),
        )

    async def cleanup(self) -> None:
        raise ZeroDivisionError("in a cleanup")

    async def child(self) -> None:
        raise ZeroDivisionError("in a child")

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.channels.statistics().counts)
