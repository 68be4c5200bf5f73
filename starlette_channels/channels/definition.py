"""A channel: the handlers of the topics that fit its patterns."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, Protocol, TypeAlias, TypeVar

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
    """Tell the client how much it has missed, but neither whose broadcasts nor of which topic."""

    async def push_resync(socket: Socket[Any], gap: Gap) -> None:
        socket.push(event, {"lost": gap.lost})

    return push_resync


def _check_resync(event: object) -> None:
    """Refuse what is no name for an event that clients hear."""
    if event is not None and (not isinstance(event, str) or not event or not is_ordinary(event)):
        raise TypeError('channel(resync=...): it must be the name of an event of yours, as in resync="resync"')


def _called(name: object, decorator: str, example: str, kind: type = str) -> None:
    """Refuse a decorator that was written without its parentheses, and would swallow its handler."""
    if not isinstance(name, kind):
        raise TypeError(f"{decorator}: say for what, as in @{decorator}({example})")


class Channel(Generic[A]):
    """The handlers of the topics that fit its patterns; `channel()` makes one.

    It is a value: list it in `Channels([...])`, mount it twice, test it alone.
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
        """Return how a topic fits one of the patterns: its text, and what the join handler's annotations say of it."""
        match = pattern.match(topic)
        if match is None or not self.join.segments:
            return match
        try:
            decoded = {name: decode(match.params[name]) for name, decode in self.join.segments.items()}
        except Misfit:
            return None
        return match._replace(decoded={**match.params, **decoded})

    def on(self, event: str) -> _Register[A]:
        """Handle an event of the client: `async def new_msg(socket, payload)`.

        The payload is decoded to its annotation; what does not fit is answered `invalid payload` and never reaches
        the handler. A returned payload is the reply `ok`, a `Reply` any other, `None` none. A handler that raises
        ends the channel with `phx_error`; the connection and its other channels go on.
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
        """Handle every event that has no handler of its own: `async def anything(socket, event, payload)`.

        An event that is not a string, which no client of ours sends, comes as its JSON text. Without such a handler,
        unknown events are answered `unmatched event`; so are those that begin with `phx_` or `chan_reply_` in any case,
        which are the protocol's own: to pass them on would end the channels of other clients, or answer their pushes.
        """
        label = self._label("on_any")
        if self.any_event is not None:
            raise ValueError(f"{label}: there is one already")
        self.any_event = make_handler(handler, label, ("socket", "event", "payload"))
        return handler

    def intercept(self, event: str) -> _RegisterSilent[A]:
        """Handle a broadcast of this topic on its way to this client: `async def seen(socket, payload)`.

        Nothing reaches the client but what the handler pushes. It costs one decoding and one encoding for each client.
        """
        _called(event, f"{self.name}.intercept", '"new_msg"')
        label = self._label("intercept", event)

        def register(handler: EventHandler[A, P, None], /) -> EventHandler[A, P, None]:
            self._put(self.intercepts, event, make_handler(handler, label, ("socket", "payload")), label)
            self.intercepted = frozenset(self.intercepts)
            return handler

        return register

    def info(self, kind: type[T]) -> Callable[[EventHandler[A, T, None]], EventHandler[A, T, None]]:
        """Handle the messages of a class (and its subclasses) that `socket.send_info` sent, or `Broadcast`s of other
        topics.
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
        """Handle that the client has a new identity: `async def refreshed(socket, assigns)`.

        `assigns` is a copy of what `Expiry(refresh=...)` has returned; `socket.assigns` stays as it is unless the
        handler changes it. `socket.stop()` ends the channel for who may not be here any more.
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
        """Handle the end of a joined channel: `async def left(socket, reason)`, exactly once, whatever the reason.

        What it pushes follows `phx_close`; after a lost connection and after a second join it goes nowhere.
        """
        label = self._label("terminate")
        if self.terminator is not None:
            raise ValueError(f"{label}: there is one already")
        check_function(handler, label, ("socket", "reason"))
        self.terminator = handler
        return handler

    def info_handler(self, message: object) -> Callable[[Socket[A], Any], Coroutine[Any, Any, None]] | None:
        """Return the handler for a message, that of its own class before those of its bases."""
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
    """Make a channel of a join handler: `@channel("room:*") async def room(socket, payload)`.

    The handler decides who may join: `raise JoinError(...)` refuses, a returned payload is the join reply. Patterns
    are exact topics, `prefix*`, and named segments, which the handler takes by name: `@channel("room:{room_id}")`,
    `room(socket, payload, room_id)`. A segment is text, unless its parameter is annotated otherwise: with
    `room_id: int` the handler gets an `int`, and `room:abc` does not fit the pattern; then the next one is tried.
    `when_slow` says what becomes of broadcasts and pushes while a client is behind
    with reading: `"disconnect"` it, `"drop_oldest"`, or keep the `latest_by_key(...)`.
    `resync` names an event that is pushed to the client when broadcasts of other processes are lost, with how many:
    `resync="resync"` pushes `{"lost": 3}`, or 0 if nobody can say how many, see `Gap`.
    `log_join` and `log_handle_in` are the levels at which its joins and the events of clients are logged, `None` not
    at all.
    """
    check_policy(when_slow)
    _check_resync(resync)
    levels = level_of(log_join, "channel(log_join"), level_of(log_handle_in, "channel(log_handle_in")

    for pattern in patterns:
        _called(pattern, "channel", '"room:*"')

    def register(join: JoinHandler[A, P], /) -> Channel[A]:
        return Channel(join, *patterns, when_slow=when_slow, resync=resync, log_levels=levels)

    return register
