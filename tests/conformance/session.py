"""What the channels of the conformance app share: who the client is, what payloads must be like, work for later."""

import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, cast

import anyio
from msgspec import Struct

from starlette_channels import ConnectError, Handshake, Socket

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

log = logging.getLogger(__name__)

SLOWNESS = float(os.environ.get("SLOWNESS", "1"))  # how many times as long everything takes as the scenarios say


class Session(Struct):
    """The assigns; every channel has its own copy."""

    user_id: Any
    params: dict[str, Any]
    headers: dict[str, str]
    auth_token: str | None = None
    color: str | None = None
    bye: Any = None
    count: int = 0


Client = Socket[Session]


class Crash(Exception):
    """A handler that is asked to crash, or that was given something that fits none of its entries."""


def connector(refusals: Mapping[str, ConnectError]) -> Callable[[Handshake], Coroutine[Any, Any, Session]]:
    """A `connect` that refuses by the table: from the param `token` to the error of this mount."""

    async def connect(conn: Handshake) -> Session:
        token = conn.params.get("token")
        if token == "raise":
            raise Crash("asked for")
        if isinstance(token, str) and token in refusals:
            raise refusals[token]
        headers = {name: value for name, value in conn.headers.items() if name.startswith("x-test-")}
        return Session(conn.params.get("user_id"), dict(conn.params), headers, conn.auth_token)

    return connect


def socket_id(session: Session) -> str | None:
    """The id by which `POST /disconnect/...` finds a connection; a number, which is not allowed, for "numeric"."""
    if session.user_id is None:
        return None
    if session.user_id == "numeric":
        return cast("str", 42)
    user_id: str = session.user_id
    return "users_socket:" + user_id  # which fails, as it did there, for a param that is an object


def an_object(payload: Any, *keys: str) -> dict[str, Any]:
    """The payload, which must be an object with these keys."""
    if not isinstance(payload, dict):
        raise Crash("the payload is no object")
    found = cast("dict[str, Any]", payload)
    if missing := [key for key in keys if key not in found]:
        raise Crash(f"the payload lacks {missing}")
    return found


def binary(payload: Any) -> bytes:
    """The payload, which must have come in a binary frame."""
    if not isinstance(payload, bytes):
        raise Crash("the payload is not binary")
    return payload


def text(value: Any) -> str:
    """The value, which must be a string: there, no topic or event may be anything else."""
    if not isinstance(value, str):
        raise Crash(f"{value!r} is no string")
    return value


def json(payload: Any) -> Any:
    """The payload, which must not be binary: put inside an object it could not be told from text."""
    if isinstance(payload, bytes):
        raise Crash("the payload is binary")
    return payload


def whole(value: Any) -> int:
    """The value, which must be a whole number; `True` is none."""
    if type(value) is not int:
        raise Crash(f"{value!r} is no whole number")
    return value


async def wait(milliseconds: Any) -> None:
    """Be busy for so long."""
    if whole(milliseconds) < 0:
        raise Crash("no time runs backwards")
    await anyio.sleep(milliseconds / 1000 * SLOWNESS)


def broadcast(client: Client, topic: str, event: str, payload: Any) -> None:
    """Broadcast by way of the server, not of this client's channel: nobody is left out."""
    client.app.state.broadcast(topic, event, payload)


def outlive(client: Client, milliseconds: int, work: Callable[[], object]) -> None:
    """Do something later, whether the channel still lives then or not."""

    async def task() -> None:
        await wait(milliseconds)
        try:
            work()
        except Exception:
            log.exception("a task that outlives its channel failed")

    tasks: TaskGroup = client.app.state.tasks
    tasks.start_soon(task)


def after(client: Client, milliseconds: int, message: object) -> None:
    """A timer: put a message into the channel's own mailbox later; it dies with the channel."""

    async def timer() -> None:
        await wait(milliseconds)
        client.send_info(message)

    client.start_soon(timer)
