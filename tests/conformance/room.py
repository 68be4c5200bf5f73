"""The channel Room of channels.md."""

from typing import Any

from msgspec import Struct

from starlette_channels import JoinError, Reply, channel
from tests.conformance.session import Client, Crash, after, an_object, binary, outlive


class Tick(Struct):
    """A timer has run out."""

    payload: Any


@channel("room:*")
async def room(socket: Client, payload: Any) -> Reply | None:
    if socket.topic.startswith("room:private"):
        raise JoinError("unauthorized")
    if isinstance(payload, dict) and payload.get("crash") is True:  # pyright: ignore[reportUnknownMemberType] - any JSON
        raise Crash("asked for")
    if isinstance(payload, dict) and payload.get("reply") is True:  # pyright: ignore[reportUnknownMemberType] - any JSON
        return Reply("ok", {"welcome": socket.topic})
    return None


@room.on("new_msg")
async def new_msg(socket: Client, payload: Any) -> None:
    message = an_object(payload, "body", "user")
    socket.broadcast("new_msg", {"body": message["body"], "user": message["user"]})


@room.on("bench")
async def bench(socket: Client, payload: Any) -> None:
    socket.broadcast("bench", payload)


@room.on("shout")
async def shout(socket: Client, payload: Any) -> None:
    socket.broadcast_from("shout", payload)


@room.on("echo")
async def echo(socket: Client, payload: Any) -> Reply:
    return Reply("ok", payload)


@room.on("fail")
async def fail(socket: Client, payload: Any) -> Reply:
    return Reply("error", {"reason": "failed"})


@room.on("ok_bare")
async def ok_bare(socket: Client, payload: Any) -> Reply:
    return Reply("ok")


@room.on("error_bare")
async def error_bare(socket: Client, payload: Any) -> Reply:
    return Reply("error")


@room.on("push_me")
async def push_me(socket: Client, payload: Any) -> None:
    socket.push("pushed", payload)


@room.on("bin_echo")
async def bin_echo(socket: Client, payload: Any) -> bytes:
    return binary(payload)


@room.on("bin_shout")
async def bin_shout(socket: Client, payload: Any) -> None:
    socket.broadcast("bin_shout", binary(payload))


@room.on("bin_push")
async def bin_push(socket: Client, payload: Any) -> None:
    socket.push("bin_push", binary(payload))


@room.on("async_reply")
async def async_reply(socket: Client, payload: Any) -> None:
    answer = socket.reply_later()
    outlive(socket, 20, lambda: answer(Reply("ok", payload)))


@room.on("crash")
async def crash(socket: Client, payload: Any) -> None:
    raise Crash("asked for")


@room.on("stop")
async def stop(socket: Client, payload: Any) -> None:
    socket.stop()


@room.on("stop_shutdown")
async def stop_shutdown(socket: Client, payload: Any) -> None:
    socket.stop()


@room.on("stop_reply")
async def stop_reply(socket: Client, payload: Any) -> Reply:
    socket.stop()
    return Reply("ok", {"bye": True})


@room.on("later")
async def later(socket: Client, payload: Any) -> None:
    after(socket, 20, Tick(payload))


@room.info(Tick)
async def tick(socket: Client, message: Tick) -> None:
    socket.push("tick", message.payload)


@room.on("send_secret")
async def send_secret(socket: Client, payload: Any) -> None:
    socket.broadcast("secret", payload)


@room.on("assign_count")
async def assign_count(socket: Client, payload: Any) -> Reply:
    socket.assigns.count += 1
    return Reply("ok", {"count": socket.assigns.count})


@room.on_any
async def unmatched(socket: Client, event: Any, payload: Any) -> None:
    raise Crash(f"no entry for the event {event!r}")


@room.intercept("secret")
async def secret(socket: Client, payload: Any) -> None:
    if socket.assigns.user_id is not None:
        socket.push("secret", {**an_object(payload), "seen_by": socket.assigns.user_id})
