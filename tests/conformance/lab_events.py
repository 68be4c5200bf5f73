"""What the channel Lab of channels.md does on the events of its client."""

import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from msgspec import Struct

from starlette_channels import Reply
from tests.conformance.session import (
    Client,
    Crash,
    after,
    an_object,
    binary,
    broadcast,
    outlive,
    text,
    wait,
    whole,
)

Handler: TypeAlias = Callable[[Client, Any], Coroutine[Any, Any, Reply | None]]

EVENTS: dict[str, Handler] = {}


class EndLater(Struct):
    """The timer of `stop_later` has run out."""

    payload: Any


def event(*names: str) -> Callable[[Handler], Handler]:
    """Enter a handler for events of these names."""

    def enter(handler: Handler) -> Handler:
        EVENTS.update(dict.fromkeys(names, handler))
        return handler

    return enter


@event("whoami")
async def whoami(socket: Client, payload: Any) -> Reply:
    me = socket.assigns
    known = {"user_id": me.user_id, "params": me.params, "headers": me.headers, "auth_token": me.auth_token}
    return Reply("ok", {**known, "color": me.color, "topic": socket.topic})


@event("created")
async def created(socket: Client, payload: Any) -> Reply:
    return Reply("created", payload)


@event("twice")
async def twice(socket: Client, payload: Any) -> Reply:
    second = {**an_object(payload), "n": 2}
    socket.reply_later()(Reply("ok", {"n": 1}))
    return Reply("error", second)


@event("order")
async def order(socket: Client, payload: Any) -> Reply:
    socket.push("p1", {})
    socket.broadcast("b1", {})
    socket.broadcast("spy", {"n": 1})
    socket.push("p2", {})
    return Reply("ok", {"done": True})


@event("slow")
async def slow(socket: Client, payload: Any) -> Reply:
    await wait(an_object(payload, "ms")["ms"])
    return Reply("ok", payload)


@event("exit", "bad_return", "stop_error")
async def crash(socket: Client, payload: Any) -> None:
    raise Crash("asked for")


@event("stop_error_reply")
async def stop_error_reply(socket: Client, payload: Any) -> Reply:
    try:
        answer = socket.reply_later()
    except RuntimeError:  # a message with ref null can be answered all the same, but only by what is returned
        socket.send_info(EndLater({"crash": True}))
        return Reply("error", payload)
    answer(Reply("error", payload))
    raise Crash("asked for")


@event("stop_tuple")
async def stop_tuple(socket: Client, payload: Any) -> None:
    socket.stop()


@event("stop_bare")
async def stop_bare(socket: Client, payload: Any) -> Reply:
    socket.stop()
    return Reply("ok")


@event("stop_later")
async def stop_later(socket: Client, payload: Any) -> Reply:
    after(socket, 20, EndLater(payload))
    return Reply("ok")


@event("reply_after_stop")
async def reply_after_stop(socket: Client, payload: Any) -> None:
    answer = socket.reply_later()
    outlive(socket, 100, lambda: answer(Reply("ok", payload)))
    socket.stop()


@event("push_list")
async def push_list(socket: Client, payload: Any) -> None:
    socket.push("listed", payload)


@event("broadcast_list")
async def broadcast_list(socket: Client, payload: Any) -> None:
    socket.broadcast("listed", payload)


@event("push_named")
async def push_named(socket: Client, payload: Any) -> None:
    wanted = an_object(payload, "event", "size")
    socket.push(text(wanted["event"]), b"\x07" * whole(wanted["size"]))


@event("many")
async def many(socket: Client, payload: Any) -> Reply:
    n = whole(an_object(payload, "n")["n"])
    for i in range(1, n + 1):
        socket.push("item", {"i": i})
    return Reply("ok", {"n": n})


@event("fan")
async def fan(socket: Client, payload: Any) -> Reply:
    n = whole(an_object(payload, "n")["n"])
    for i in range(1, n + 1):
        socket.broadcast("item", {"i": i})
    return Reply("ok", {"n": n})


@event("bin_size")
async def bin_size(socket: Client, payload: Any) -> Reply:
    return Reply("ok", {"size": len(binary(payload))})


@event("bin_error")
async def bin_error(socket: Client, payload: Any) -> Reply:
    return Reply("error", binary(payload))


@event("to_binary")
async def to_binary(socket: Client, payload: Any) -> Reply:
    digits = text(an_object(payload, "hex")["hex"])
    if not re.fullmatch("([0-9a-f]{2})*", digits):
        raise Crash("no lower-case hexadecimal digits")
    return Reply("ok", bytes.fromhex(digits))


@event("kind")
async def kind(socket: Client, payload: Any) -> Reply:
    return Reply("ok", {"kind": "binary" if isinstance(payload, bytes) else "json"})


@event("watch")
async def watch(socket: Client, payload: Any) -> Reply:
    socket.subscribe(text(an_object(payload, "topic")["topic"]))
    return Reply("ok")


@event("unwatch")
async def unwatch(socket: Client, payload: Any) -> Reply:
    socket.unsubscribe(text(an_object(payload, "topic")["topic"]))
    return Reply("ok")


@event("to")
async def to(socket: Client, payload: Any) -> Reply:
    wanted = an_object(payload, "topic", "event", "payload")
    broadcast(socket, text(wanted["topic"]), text(wanted["event"]), wanted["payload"])
    return Reply("ok")


@event("spy_all")
async def spy_all(socket: Client, payload: Any) -> None:
    socket.broadcast("spy", payload)


@event("spy_others")
async def spy_others(socket: Client, payload: Any) -> None:
    socket.broadcast_from("spy", payload)
