"""Channels: the handlers of topics that match a pattern, and the decorators that register them."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, Protocol, TypeAlias, TypeVar

from starlette_channels.arguments import close_called
from starlette_channels.channels.backpressure import WhenSlow, check_policy
from starlette_channels.channels.handlers import Handler, make_handler
from starlette_channels.channels.socket import EndReason, Socket
from starlette_channels.observability.log_options import Level, level_of
from starlette_channels.runtime.callables import check_function
from starlette_channels.wire.event_names import RESERVED_PREFIXES, is_ordinary
from starlette_channels.wire.messages import Gap, HandlerAnswer
from starlette_channels.wire.pydantic_adapters import Misfit
from starlette_channels.wire.topics import Match, Pattern

logger: logging.Logger = logging.getLogger("starlette_channels.channel")

A = TypeVar("A")
P = TypeVar("P")
R = TypeVar("R", bound=HandlerAnswer)
T = TypeVar("T")


JoinHandler: TypeAlias = Callable[Concatenate[Socket[A], P, ...], Coroutine[Any, Any, HandlerAnswer]]
EventHandler: TypeAlias = Callable[[Socket[A], P], Coroutine[Any, Any, R]]


class _Register(Protocol[A]):
    def __call__(self, handler: EventHandler[A, P, R], /) -> EventHandler[A, P, R]: ...


class _RegisterSilent(Protocol[A]):
    def __call__(self, handler: EventHandler[A, P, None], /) -> EventHandler[A, P, None]: ...


class _RegisterChannel(Protocol):
    def __call__(self, join: JoinHandler[A, P], /) -> "Channel[A]": ...


def _pusher_of_gaps(event: str) -> Callable[[Socket[Any], Gap], Coroutine[Any, Any, None]]:
    """Return a handler of `Gap` that pushes the number of lost broadcasts, without publisher and topic."""

    async def push_resync(socket: Socket[Any], gap: Gap) -> None:
        socket.push(event, {"lost": gap.lost})

    return push_resync


def _check_resync(event: object) -> None:
    """Raise `TypeError` unless `resync` is `None` or the name of an event that is not reserved."""
    if event is not None and (not isinstance(event, str) or not event or not is_ordinary(event)):
        raise TypeError('channel(resync=...): it must be the name of an event of yours, as in resync="resync"')


def _called(name: object, decorator: str, example: str, kind: type = str) -> None:
    """Raise `TypeError` if a decorator was written without its argument, so that it got the handler instead."""
    if not isinstance(name, kind):
        close_called(name)
        raise TypeError(f"{decorator}: say for what, as in @{decorator}({example})")


class Channel(Generic[A]):
    """The handlers of topics that match a pattern, created by the decorator `channel`.

    List it in `Channels([...])`, in several ones if you like. It holds no state of clients.
    """

    def __init__(
        self,
        join: JoinHandler[A, Any],
        *patterns: str,
        when_slow: WhenSlow = "disconnect",
        resync: str | None = None,
        log_levels: tuple[int | None, int | None] = (logging.INFO, logging.DEBUG),
    ) -> None:
        if not patterns:
            raise TypeError('channel(): name the topics, as in @channel("room:*")')
        self.patterns: tuple[Pattern, ...] = tuple(Pattern(text) for text in patterns)
        self.name: str = getattr(join, "__name__", "channel")
        self.join: Handler = make_handler(
            join, self._label("channel", *patterns), ("socket", "payload"), self._segments()
        )
        self.events: dict[str, Handler] = {}
        self.any_event: Handler | None = None
        self.intercepts: dict[str, Handler] = {}
        self.intercepted: frozenset[str] = frozenset()
        self.when_slow: WhenSlow = when_slow
        self.may_drop: bool = when_slow != "disconnect"
        self.log_join: int | None = log_levels[0]
        self.log_handle_in: int | None = log_levels[1]
        self.infos: dict[type, Callable[[Socket[A], Any], Coroutine[Any, Any, None]]] = {}
        if resync is not None:
            self.infos[Gap] = _pusher_of_gaps(resync)
        self.refreshed: Callable[[Socket[A], A], Coroutine[Any, Any, None]] | None = None
        self.terminator: Callable[[Socket[A], EndReason], Coroutine[Any, Any, None]] | None = None

    def match(self, pattern: Pattern, topic: str) -> Match | None:
        """Return the match of a topic with a pattern, its segments decoded for the join handler, or `None`."""
        match = pattern.match(topic)
        if match is None or not self.join.segments:
            return match
        try:
            decoded = {name: decode(match.params[name]) for name, decode in self.join.segments.items()}
        except Misfit:
            return None
        return match._replace(decoded={**match.params, **decoded})

    def on(self, event: str) -> _Register[A]:
        """Register the handler of a client's event: `async def new_msg(socket, payload)`.

        The payload is decoded to the annotation of its parameter; an invalid one gets the reply `invalid payload`
        instead. A returned payload is the reply `ok`; return a `Reply` for another status, `None` for no reply. To
        reply with an error, raise `EventError`. Another exception ends the channel with `phx_error`; the connection and
        its other channels continue.

        Raises `TypeError` for a handler that is not async or has the wrong parameters, and `ValueError` for a reserved
        event, or one that has a handler.
        """
        _called(event, f"{self.name}.on", '"new_msg"')
        label = self._label("on", event)
        if event in ("phx_join", "phx_leave"):
            raise ValueError(
                f"{label}: it never comes; handle the join with @channel, the end with @{self.name}.terminate"
            )

        is_reserved = event.startswith(RESERVED_PREFIXES)
        if is_reserved:
            logger.warning("%s: it never comes: names of events that begin so are the protocol's own", label)

        def register(handler: EventHandler[A, P, R], /) -> EventHandler[A, P, R]:
            made = make_handler(handler, label, ("socket", "payload"))
            if not is_reserved:
                self._put(self.events, event, made, label)
            return handler

        return register

    def on_any(
        self, handler: Callable[[Socket[A], str, P], Coroutine[Any, Any, R]], /
    ) -> Callable[[Socket[A], str, P], Coroutine[Any, Any, R]]:
        """Register the handler of all events without a handler: `async def anything(socket, event, payload)`.

        Without one, unknown events get the reply `unmatched event`. Reserved events, which begin with `phx_` or
        `chan_reply_`, always do: passed on, they would end channels of other clients, or resolve their pushes. An event
        that is not a string is passed as its JSON text; known clients send none.
        """
        label = self._label("on_any")
        if self.any_event is not None:
            raise ValueError(f"{label}: there is one already")
        self.any_event = make_handler(handler, label, ("socket", "event", "payload"))
        return handler

    def intercept(self, event: str) -> _RegisterSilent[A]:
        """Register a handler that replaces a broadcast for each client: `async def seen(socket, payload)`.

        The client gets only the pushes of the handler. Each broadcast is decoded and encoded again for each client.
        """
        _called(event, f"{self.name}.intercept", '"new_msg"')
        label = self._label("intercept", event)

        def register(handler: EventHandler[A, P, None], /) -> EventHandler[A, P, None]:
            self._put(self.intercepts, event, make_handler(handler, label, ("socket", "payload")), label)
            self.intercepted = frozenset(self.intercepts)
            return handler

        return register

    def info(self, kind: type[T]) -> Callable[[EventHandler[A, T, None]], EventHandler[A, T, None]]:
        """Register the handler of messages of a class, and its subclasses: `async def price(socket, message)`.

        Messages come from `socket.send_info`; `Broadcast`s from topics of `socket.subscribe`; `Gap`s from the broker,
        when broadcasts of other processes were lost.
        """
        _called(kind, f"{self.name}.info", "Tick", type)
        label = self._label("info", kind.__name__)

        def register(handler: EventHandler[A, T, None], /) -> EventHandler[A, T, None]:
            check_function(handler, label, ("socket", "message"))
            self._put(self.infos, kind, handler, label)
            return handler

        return register

    def on_refresh(
        self, handler: Callable[[Socket[A], A], Coroutine[Any, Any, None]], /
    ) -> Callable[[Socket[A], A], Coroutine[Any, Any, None]]:
        """Register a handler that runs when a client's identity is renewed: `async def refreshed(socket, assigns)`.

        `assigns` is a copy of the value that `Expiry(refresh=...)` returned. `socket.assigns` does not change unless
        the handler changes it. Call `socket.stop()` if the client may no longer be on the topic.
        """
        label = self._label("on_refresh")
        if self.refreshed is not None:
            raise ValueError(f"{label}: there is one already")
        check_function(handler, label, ("socket", "assigns"))
        self.refreshed = handler
        return handler

    def terminate(
        self, handler: Callable[[Socket[A], EndReason], Coroutine[Any, Any, None]], /
    ) -> Callable[[Socket[A], EndReason], Coroutine[Any, Any, None]]:
        """Register a handler that runs once at the end of a joined channel: `async def left(socket, reason)`.

        `reason` is an `EndReason`. Pushes of the handler follow `phx_close`; after a lost connection or a second join
        they are dropped. Its time limit is `Limits.shutdown_seconds`.
        """
        label = self._label("terminate")
        if self.terminator is not None:
            raise ValueError(f"{label}: there is one already")
        check_function(handler, label, ("socket", "reason"))
        self.terminator = handler
        return handler

    def info_handler(self, message: object) -> Callable[[Socket[A], Any], Coroutine[Any, Any, None]] | None:
        """Return the handler of a message: that of its class, or of the nearest base class."""
        return next((self.infos[kind] for kind in type(message).__mro__ if kind in self.infos), None)

    def _segments(self) -> tuple[str, ...]:
        names = self.patterns[0].names
        if any(set(pattern.names) != set(names) for pattern in self.patterns):
            raise ValueError(
                f"{self._label('channel', *(p.text for p in self.patterns))}: all patterns need the same segments"
            )
        return names

    def _label(self, decorator: str, *names: str) -> str:
        owner = "" if decorator == "channel" else f"{self.name}."
        return f"{owner}{decorator}({', '.join(map(repr, names))})"

    def _put(self, table: dict[Any, Any], key: object, handler: object, label: str) -> None:
        if key in table:
            raise ValueError(f"{label}: there is a handler for it already")
        table[key] = handler

    def __repr__(self) -> str:
        return f"<Channel {self.name}: {', '.join(pattern.text for pattern in self.patterns)}>"


def channel(
    *patterns: str,
    when_slow: WhenSlow = "disconnect",
    resync: str | None = None,
    log_join: Level = "info",
    log_handle_in: Level = "debug",
) -> _RegisterChannel:
    """Decorate a join handler to create a `Channel`: `@channel("room:*") async def room(socket, payload)`.

    The join handler runs when a client joins a matching topic. It returns the payload of the reply `ok`, or `None` for
    an empty one, and raises `JoinError` to refuse.

    Args:
        *patterns: Topics: exact (`"lobby"`), by prefix (`"room:*"`), or with named segments (`"room:{room_id}"`), which
            the handler takes as parameters: `async def room(socket, payload, room_id: int)`. A topic whose segment
            cannot be decoded to the annotation does not match.
        when_slow: The policy for broadcasts and pushes to a client that reads slowly: `"disconnect"` closes the
            connection at `Limits.outbox_bytes`, `"drop_oldest"` and `latest_by_key(...)` drop messages.
        resync: The event to push when broadcasts of other processes were lost, with the payload `{"lost": 3}`, or 0 if
            the number is unknown. `None` pushes nothing. See `Gap`.
        log_join: The log level of joins: `"debug"`, `"info"`, `"warning"`, `"error"`, or `None` for no logging.
        log_handle_in: The log level of events of clients.

    Raises:
        TypeError: The handler is not async, has the wrong parameters, or an annotation that cannot be decoded.
        ValueError: A pattern is malformed, or a log level is unknown.
    """
    check_policy(when_slow)
    _check_resync(resync)
    levels = level_of(log_join, "channel(log_join"), level_of(log_handle_in, "channel(log_handle_in")

    for pattern in patterns:
        _called(pattern, "channel", '"room:*"')

    def register(join: JoinHandler[A, P], /) -> Channel[A]:
        return Channel(join, *patterns, when_slow=when_slow, resync=resync, log_levels=levels)

    return register
