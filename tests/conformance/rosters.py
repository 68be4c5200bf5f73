"""The channels Presence and Roster of channels.md: who is there, and what is known of them besides."""

from typing import Any

from msgspec import Struct

from starlette_channels import Presence, PresenceError, Reply, channel
from tests.conformance.session import Client, Crash, an_object, json, text


class AfterJoin(Struct):
    """Left for after the join, whose payload it has."""

    payload: Any


def value(payload: Any, name: str) -> Any:
    """A field of the payload, which must be an object or null; null and false count as missing."""
    found = None if payload is None else an_object(payload).get(name)
    return None if found is False else found


# Presence.

main = Presence()


@channel("presence:*")
async def presence(socket: Client, payload: Any) -> None:
    if socket.assigns.user_id is None:
        socket.assigns.user_id = value(payload, "user_id")
    if socket.assigns.user_id is None:
        socket.assigns.user_id = "anon"
    socket.send_info(AfterJoin(payload))


@presence.info(AfterJoin)
async def present(socket: Client, message: AfterJoin) -> None:
    status = value(message.payload, "status")
    main.track(socket, socket.assigns.user_id, {"online_at": "x", "status": "online" if status is None else status})
    main.push_state(socket)


@presence.on("update")
async def update(socket: Client, payload: Any) -> Reply:
    news = dict(an_object(payload))
    if news.get("status", "") in (None, False):
        del news["status"]
    main.update(socket, socket.assigns.user_id, lambda meta: {**meta, **news})
    return Reply("ok")


@presence.on("untrack")
async def untrack(socket: Client, payload: Any) -> Reply:
    main.untrack(socket, socket.assigns.user_id)
    return Reply("ok")


@presence.on("track")
async def track(socket: Client, payload: Any) -> Reply:
    wanted = an_object(payload, "key", "meta")
    try:
        main.track(socket, text(wanted["key"]), an_object(wanted["meta"]))
    except PresenceError as error:
        return Reply("error", {"reason": error.reason})
    return Reply("ok")


@presence.on("replace")
async def replace(socket: Client, payload: Any) -> Reply:
    wanted = an_object(payload, "key", "meta")
    try:
        main.update(socket, text(wanted["key"]), an_object(wanted["meta"]))
    except PresenceError as error:
        return Reply("error", {"reason": error.reason})
    return Reply("ok")


@presence.on("untrack_key")
async def untrack_key(socket: Client, payload: Any) -> Reply:
    main.untrack(socket, text(an_object(payload, "key")["key"]))
    return Reply("ok")


@presence.on("list")
async def everybody(socket: Client, payload: Any) -> Reply:
    return Reply("ok", await main.list(socket))


@presence.on("get")
async def get(socket: Client, payload: Any) -> Reply:
    found = await main.get_by_key(socket, text(an_object(payload, "key")["key"]))
    return Reply("ok", [] if found is None else found)


@presence.on_any
async def unmatched(socket: Client, event: Any, payload: Any) -> None:
    raise Crash(f"no entry for the event {event!r}")


# Roster.


async def profiles(topic: str, presences: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What every entry has beside its metas."""
    return {key: {"profile": {"name": key.upper()}} for key in presences}


profiled = Presence(fetch=profiles)


@channel("roster:*")
async def roster(socket: Client, payload: Any) -> None:
    socket.send_info(AfterJoin(an_object(payload, "key")["key"]))


@roster.info(AfterJoin)
async def listed(socket: Client, message: AfterJoin) -> None:
    profiled.track(socket, text(json(message.payload)))
    profiled.push_state(socket)


roster.on_any(unmatched)
