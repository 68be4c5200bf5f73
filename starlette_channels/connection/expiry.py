"""Identities that expire while their clients are connected: telling, refreshing, closing.

A client is told some time before, on the topic `phoenix`, where its heartbeats go, and may answer with something new to
be known by. Only those whose identity expires cost anything: an entry in a table, and one task for all of them.
"""

import contextvars
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from time import time
from typing import Any, Generic, Protocol, TypeVar

import anyio
from msgspec import Struct

from starlette_channels.arguments import check_fields
from starlette_channels.channels.handlers import Handler, make_handler
from starlette_channels.channels.rejections import rejection
from starlette_channels.exceptions import ConnectError, InvalidPayload, SerializerError
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.hub import Hub
from starlette_channels.runtime.callables import check_function, name_of
from starlette_channels.runtime.cancellation import is_crash
from starlette_channels.runtime.deadlines import Deadlines
from starlette_channels.runtime.tasks import Tasks
from starlette_channels.wire.messages import Message

logger: logging.Logger = logging.getLogger("starlette_channels.connection")

A = TypeVar("A")

EXPIRED = 4001
"""The close code: the application's own range, so clients come back, as after any code but 1000."""


class Expiry(Struct, Generic[A], frozen=True, kw_only=True):
    """When an identity ends, and how it goes on: `Channels(expiry=Expiry(at=lambda user: user.expires_at))`.

    A client whose identity expires is closed with 4001 `expired`, and comes back through `connect` with whatever is new
    then. With `refresh` it need not: `async def refresh(user: User, payload: Renewal) -> User` gets what the client
    sends, decoded to its annotation, and returns the identity that holds from then on. It must have the same
    `socket_id`. `raise ConnectError(reason)` refuses; the client may try again until its time is over.
    """

    at: Callable[[A], float | datetime | None]
    """When the identity that `connect` returned expires: seconds since 1970, as in a JWT's `exp`, or an aware
    `datetime`; `None`, never. It is asked after `connect` and after each refresh, and not obeyed earlier than that
    second, or later than the next."""

    refresh: Callable[[A, Any], Coroutine[Any, Any, A]] | None = None
    """Takes the client's event `refresh`."""

    notice_seconds: float = 60.0
    """How long before the end the client gets the event `expiring`, `{"seconds": 60}`. A client that has less from the
    beginning gets it at once."""

    def __post_init__(self) -> None:
        """Refuse what is no function, and no time."""
        check_fields(self)
        check_function(self.at, "Expiry(at=...)", ("assigns",), to_await=False, by_name=False)
        if self.refresh is not None:
            check_function(self.refresh, "Expiry(refresh=...)", ("assigns", "payload"))


class Mortal(Protocol):
    """A connection whose identity expires."""

    assigns: Any

    @property
    def hub(self) -> Hub:
        """The subscriptions of its event loop."""
        ...

    @property
    def socket_id(self) -> str | None:
        """What `disconnect` knows it by."""
        ...

    @property
    def tasks(self) -> Tasks:
        """Where what is done for this client runs."""
        ...

    def tell(self, event: str, payload: object) -> None:
        """Send an event in the name of the connection."""
        ...

    def reply(self, message: Message, status: str, payload: object) -> None:
        """Answer a message in the name of the connection."""
        ...

    def refresh(self, assigns: Any) -> None:
        """Take the identity that holds from now on."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Close the connection; its channels end as they do when the client goes."""
        ...


class Lifetimes:
    """How long the clients of one `Channels` have."""

    def __init__(self, expiry: Expiry[Any], identify: Callable[[Any], str | None], error_log: ErrorLog) -> None:
        self._at = expiry.at
        self._refresh: Handler | None = None
        if expiry.refresh is not None:
            self._refresh = make_handler(expiry.refresh, "Expiry(refresh=...)", ("assigns", "payload"))
        self._notice_seconds = expiry.notice_seconds
        self._identify = identify
        self._error_log = error_log
        self._reminders: dict[Hub, Reminders] = {}
        self._refreshing: set[Mortal] = set()

    def seconds_left(self, assigns: Any) -> float | None:
        """How long an identity has, or `None` for ever. Raises `TypeError` for what is no time."""
        end: Any = self._at(assigns)
        if end is None:
            return None
        if isinstance(end, datetime):
            if end.tzinfo is None:
                raise TypeError("Expiry(at=...): it returned a datetime without a time zone")
            end = end.timestamp()
        if isinstance(end, int | float) and not isinstance(end, bool):
            return end - time()
        raise TypeError(f"Expiry(at=...): it returned {type(end).__name__}: it must be seconds, a datetime or None")

    def watch(self, client: Mortal, seconds: float | None) -> None:
        """Look after a client that has so many seconds left from now on; `None` lets it go."""
        watch = self._reminders.get(client.hub)
        if watch is None:
            if seconds is None:
                return
            watch = self._reminders[client.hub] = Reminders(self._error_log)
        watch.set_end(client, seconds, self._notice_seconds)
        if not watch:
            del self._reminders[client.hub]

    def forget(self, client: Mortal) -> None:
        """Let a client go, whatever it has asked for."""
        self._refreshing.discard(client)
        self.watch(client, None)

    def refresh(self, client: Mortal, message: Message) -> bool:
        """Take a client's wish to go on; false if there is no way to."""
        if self._refresh is None:
            return False
        if client in self._refreshing:
            self._refuse(client, message, {"reason": "refresh in progress"})
        else:
            self._refreshing.add(client)
            client.tasks.spawn(self._run_refresh, client, message)
        return True

    async def _run_refresh(self, client: Mortal, message: Message) -> None:
        try:
            await self._try_refresh(client, message)
        except InvalidPayload as error:
            self._refuse(client, message, {"reason": "invalid payload", "detail": str(error)})
        except BaseException as error:
            refusal = rejection(error)
            if refusal is not None:
                self._refuse(client, message, refusal.payload)
            elif is_crash(error):
                name = self._refresh and name_of(self._refresh.call)
                self._error_log.note("refresh_crashed", logger, "A refresh crashed: %s raised", name, cause=error)
                client.reply(message, "error", {"reason": "refresh crashed"})
            else:
                raise
        finally:
            self._refreshing.discard(client)

    async def _try_refresh(self, client: Mortal, message: Message) -> None:
        assert self._refresh is not None
        assigns = await self._refresh.call(client.assigns, self._refresh.decode(message.payload))
        if client not in self._refreshing:  # it has gone meanwhile
            return
        if self._identify(assigns) != client.socket_id:
            raise ConnectError("another identity")
        seconds = self.seconds_left(assigns)
        if seconds is not None and seconds <= 0:
            raise ConnectError("expired")
        client.refresh(assigns)
        self.watch(client, seconds)
        client.reply(message, "ok", {"seconds": None if seconds is None else round(seconds)})

    def _refuse(self, client: Mortal, message: Message, payload: Any) -> None:
        self._error_log.note("refresh_refused", logger, "A refresh was refused", level=logging.INFO)
        try:
            client.reply(message, "error", payload)
        except (TypeError, SerializerError) as error:
            text = "The reason for refusing a refresh cannot be sent"
            self._error_log.note("refresh_refused", logger, text, cause=error, number=0)
            client.reply(message, "error", {"reason": "refused"})


class Reminders:
    """Those on one event loop whose identities expire. Its task exists while there are any."""

    __slots__ = ("_changed", "_deadlines", "_ends", "_error_log", "_running")

    def __init__(self, error_log: ErrorLog) -> None:
        self._error_log = error_log
        self._deadlines: Deadlines[Mortal] = Deadlines()
        self._ends: dict[Mortal, float] = {}
        self._changed: anyio.Event | None = None
        self._running: object = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def set_end(self, client: Mortal, seconds: float | None, notice_seconds: float) -> None:
        """Tell a client `notice_seconds` before its end, and then close it; `None` lets it go."""
        before = self._deadlines.next
        if seconds is None:
            self._ends.pop(client, None)
            self._deadlines.remove(client)
        else:
            now = anyio.current_time()
            self._ends[client] = now + seconds
            self._deadlines.put(client, now + min(seconds, max(seconds - notice_seconds, 0.0)))
        if self._deadlines.next != before:
            self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
        elif self._deadlines:
            self._changed = anyio.Event()
            tasks: Tasks = contextvars.Context().run(Tasks)  # not in that of a client which happens to be the first
            self._running = tasks.spawn(self._run)

    async def _run(self) -> None:
        try:
            while (when := self._deadlines.next) is not None:
                self._changed = anyio.Event()
                with anyio.move_on_after(when - anyio.current_time()):
                    await self._changed.wait()
                for client in self._deadlines.take_due(anyio.current_time()):
                    self._remind(client)
        finally:
            self._changed = self._running = None

    def _remind(self, client: Mortal) -> None:
        """Tell a client that its end is near, or that it has come."""
        left = self._ends[client] - anyio.current_time()
        if left > 0:
            self._deadlines.put(client, self._ends[client])
            client.tell("expiring", {"seconds": round(left)})
        else:
            del self._ends[client]
            self._error_log.note("expired", logger, "Connection closed: its identity has expired", level=logging.INFO)
            client.close(EXPIRED, "expired")
