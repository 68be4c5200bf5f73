"""Expiry of identities: notice before the end, refresh by the client, close at the end.

A client gets a notice before its identity expires, on the topic `phoenix`, where its heartbeats go, and may send a
`refresh` in return. Only clients whose identity expires have a cost: an entry in a table, and one task for each event
loop.
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
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.hub import Hub
from starlette_channels.runtime.callables import check_function, name_of
from starlette_channels.runtime.cancellation import is_crash
from starlette_channels.runtime.deadlines import Deadlines
from starlette_channels.runtime.tasks import OutOfTime, Tasks, within
from starlette_channels.wire.messages import Message

logger: logging.Logger = logging.getLogger("starlette_channels.connection")

A = TypeVar("A")

EXPIRED = 4001
"""The close code, from the application's range: clients connect again, as after any code but 1000."""


class Expiry(Struct, Generic[A], frozen=True, kw_only=True):
    """Expiry of identities, and their refresh: `Channels(expiry=Expiry(at=lambda user: user.expires_at))`.

    A client whose identity expires is closed with 4001 `expired`, and connects again through `connect`. With `refresh`
    it can keep its connection: `async def refresh(user: User, payload: Renewal) -> User` gets the payload that the
    client sends, decoded to its annotation, and returns the new identity. The new identity must have the same
    `socket_id`. `raise ConnectError(reason)` refuses; the client may try again until its identity expires. A `refresh`
    that takes more than `Limits.connect_seconds` or `Limits.handler_seconds` is cancelled, and answered `refresh timed
    out`.
    """

    at: Callable[[A], float | datetime | None]
    """Function of the identity that returns its expiry: seconds since 1970, as in a JWT's `exp`, or an aware
    `datetime`; `None` for never. Called after `connect` and after each refresh. The connection is closed within one
    second after that time."""

    refresh: Callable[[A, Any], Coroutine[Any, Any, A]] | None = None
    """Handler of the client's event `refresh`."""

    notice_seconds: float = 60.0
    """Time before the expiry at which the client gets the event `expiring`, `{"seconds": 60}`. A client with less time
    left from the beginning gets it at once."""

    def __post_init__(self) -> None:
        """Check the fields: the parameters of the functions, and the duration."""
        check_fields(self)
        check_function(self.at, "Expiry(at=...)", ("assigns",), to_await=False, by_name=False)
        if self.refresh is not None:
            check_function(self.refresh, "Expiry(refresh=...)", ("assigns", "payload"))


class ExpiringClient(Protocol):
    """A connection with an identity that expires."""

    assigns: Any

    @property
    def hub(self) -> Hub:
        """The subscriptions of its event loop."""
        ...

    @property
    def limits(self) -> Bounds:
        """The limits of its endpoint."""
        ...

    @property
    def socket_id(self) -> str | None:
        """Its name for `disconnect`."""
        ...

    @property
    def tasks(self) -> Tasks:
        """The tasks of this client."""
        ...

    def tell(self, event: str, payload: object) -> None:
        """Push an event of the connection."""
        ...

    def reply(self, message: Message, status: str, payload: object) -> None:
        """Reply to a message of the connection."""
        ...

    def refresh(self, assigns: Any) -> None:
        """Replace the identity."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Close the connection; its channels end as after a disconnect of the client."""
        ...


class Lifetimes:
    """The expiry of all identities of one `Channels`."""

    def __init__(self, expiry: Expiry[Any], identify: Callable[[Any], str | None], error_log: ErrorLog) -> None:
        self._at = expiry.at
        self._refresh: Handler | None = None
        if expiry.refresh is not None:
            self._refresh = make_handler(expiry.refresh, "Expiry(refresh=...)", ("assigns", "payload"))
        self._notice_seconds = expiry.notice_seconds
        self._identify = identify
        self._error_log = error_log
        self._timers: dict[Hub, ExpiryTimers] = {}
        self._refreshing: set[ExpiringClient] = set()

    def seconds_left(self, assigns: Any) -> float | None:
        """Return the time until an identity expires, `None` for never.

        Raises `TypeError` if `Expiry(at=...)` returned a value that is not a time.
        """
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

    def watch(self, client: ExpiringClient, seconds: float | None) -> None:
        """Set or replace the timer of a client; `None` removes it."""
        timers = self._timers.get(client.hub)
        if timers is None:
            if seconds is None:
                return
            timers = self._timers[client.hub] = ExpiryTimers(self._error_log)
        timers.put(client, seconds, self._notice_seconds)
        if not timers:
            del self._timers[client.hub]

    def forget(self, client: ExpiringClient) -> None:
        """Remove a client that is closed, its refresh included."""
        self._refreshing.discard(client)
        self.watch(client, None)

    def refresh(self, client: ExpiringClient, message: Message) -> bool:
        """Start a refresh; return False if the application has no `refresh`."""
        if self._refresh is None:
            return False
        if client in self._refreshing:
            self._refuse(client, message, {"reason": "refresh in progress"})
        else:
            self._refreshing.add(client)
            client.tasks.spawn(self._run_refresh, client, message, self._refresh)
        return True

    async def _run_refresh(self, client: ExpiringClient, message: Message, handler: Handler) -> None:
        limits = client.limits
        seconds = min(limits.connect_seconds, limits.handler_seconds)
        try:
            coroutine = handler.call(client.assigns, handler.decode(message.payload))
            assigns = await within(seconds, self._error_log.counts, coroutine)
            if client in self._refreshing:  # the connection was not closed meanwhile
                self._renew(client, message, assigns)
        except InvalidPayload as error:
            self._refuse(client, message, {"reason": "invalid payload", "detail": str(error)})
        except OutOfTime:
            text, name = "A refresh took more than %g seconds: %s", name_of(handler.call)
            self._error_log.note("refresh_timeout", logger, text, seconds, name, level=logging.ERROR)
            client.reply(message, "error", {"reason": "refresh timed out"})
        except BaseException as error:
            refusal = rejection(error)
            if refusal is not None:
                self._refuse(client, message, refusal.payload)
            elif is_crash(error):
                name = name_of(handler.call)
                self._error_log.note("refresh_crashed", logger, "A refresh crashed: %s raised", name, cause=error)
                client.reply(message, "error", {"reason": "refresh crashed"})
            else:
                raise
        finally:
            self._refreshing.discard(client)

    def _renew(self, client: ExpiringClient, message: Message, assigns: Any) -> None:
        if self._identify(assigns) != client.socket_id:
            raise ConnectError("another identity")
        seconds = self.seconds_left(assigns)
        if seconds is not None and seconds <= 0:
            raise ConnectError("expired")
        client.refresh(assigns)
        self.watch(client, seconds)
        client.reply(message, "ok", {"seconds": None if seconds is None else round(seconds)})

    def _refuse(self, client: ExpiringClient, message: Message, payload: Any) -> None:
        self._error_log.note("refresh_refused", logger, "A refresh was refused", level=logging.INFO)
        try:
            client.reply(message, "error", payload)
        except (TypeError, SerializerError) as error:
            text = "The reason for refusing a refresh cannot be sent"
            self._error_log.note("refresh_refused", logger, text, cause=error, number=0)
            client.reply(message, "error", {"reason": "refused"})


class ExpiryTimers:
    """The timers of the expiring identities on one event loop. Its task exists while there are any."""

    __slots__ = ("_changed", "_deadlines", "_ends", "_error_log", "_running")

    def __init__(self, error_log: ErrorLog) -> None:
        self._error_log = error_log
        self._deadlines: Deadlines[ExpiringClient] = Deadlines()
        self._ends: dict[ExpiringClient, float] = {}
        self._changed: anyio.Event | None = None
        self._running: object = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def put(self, client: ExpiringClient, seconds: float | None, notice_seconds: float) -> None:
        """Set the timers of a client: the notice, and the close after `seconds`; `None` removes both."""
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
            tasks: Tasks = contextvars.Context().run(Tasks)  # an empty context, not the one of the first client
            self._running = tasks.spawn(self._run)

    async def _run(self) -> None:
        try:
            while (when := self._deadlines.next) is not None:
                self._changed = anyio.Event()
                with anyio.move_on_after(when - anyio.current_time()):
                    await self._changed.wait()
                for client in self._deadlines.take_due(anyio.current_time()):
                    self._call(client)
        finally:
            self._changed = self._running = None

    def _call(self, client: ExpiringClient) -> None:
        """Send the notice, or close the connection if its identity has expired."""
        left = self._ends[client] - anyio.current_time()
        if left > 0:
            self._deadlines.put(client, self._ends[client])
            client.tell("expiring", {"seconds": round(left)})
        else:
            del self._ends[client]
            self._error_log.note("expired", logger, "Connection closed: its identity has expired", level=logging.INFO)
            client.close(EXPIRED, "expired")
