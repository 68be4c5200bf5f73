"""Errors.

ChannelsError
├── ConnectError      raise it in `connect` to refuse a client
│   └── InvalidToken      there is no token, or not one of ours (the client's fault)
│       └── ExpiredToken      it was one of ours
├── JoinError         raise it in a join handler to refuse a topic; its payload reaches the client
├── EventError        raise it in an event handler to answer with an error; its payload reaches the client
├── PresenceError     this presence cannot be tracked or updated
├── PublishError      a `Publisher` could not hand its broadcasts to the engine
├── ProtocolError     the client sent a frame that the protocol does not allow (its fault)
├── InvalidPayload    the client sent a payload that does not fit the handler's annotation (its fault)
└── SerializerError   this payload cannot be expressed on that wire (ours)

Mistakes in definitions are plain `TypeError` and `ValueError`, raised at import with the fix in the text.
"""

from typing import Any, Final

from starlette_channels.close_codes import check_close

_UNSET: Final[Any] = object()


class ChannelsError(Exception):
    """The base of what this package raises at run time."""


class ConnectError(ChannelsError):
    """Raise it in `connect` to refuse a client before the WebSocket opens.

    `status` is the HTTP status of the refusal (400 to 599); `reason` is its body, as plain text, and goes to the log.
    Servers without the ASGI extension `websocket.http.response` answer 403 whatever the status.

    Browsers hide status and body from the page: to it, a refusal looks like a dead network. With `close`, a code such
    as 4401, the WebSocket is accepted instead and closed at once with this code and the reason, which the page sees:
    `socket.onRefused` of `channels.js`, `socket.onClose` of phoenix.js, which tries again every few milliseconds
    unless that calls `socket.disconnect()`. A client that polls gets status 403, with `code` and `reason` in the JSON.
    The client is no connection in either case: it is counted as `connect_refused`, and no channel hears of it.

    Codes are 3000 to 4999, and those of the protocol that a server may send; `channels.js` takes the former for
    refusals. Raises `ValueError` for other codes and statuses, and for a reason of over 123 bytes in UTF-8 with a code.
    """

    def __init__(self, reason: str = "", status: int = 403, *, close: int | None = None) -> None:
        if not isinstance(reason, str) or not isinstance(status, int):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise TypeError(f"ConnectError({reason!r}, {status!r}): it takes a text and the number of an HTTP status")
        if not 400 <= status <= 599:
            raise ValueError(f"ConnectError: {status} is no status of a refusal: use 400 to 599")
        if close is not None:
            check_close(close, reason, code_name="ConnectError(close", reason_name="ConnectError(reason")
        super().__init__(reason)
        self.reason: str = reason
        self.status: int = status
        self.close: int | None = close


class InvalidToken(ConnectError):
    """A signed token is missing, not ours, or for something else.

    Let out of `connect`, it refuses the client with 401. The text says what is wrong, and never the token.
    """

    def __init__(self, reason: str = "invalid token") -> None:
        super().__init__(reason, 401)


class ExpiredToken(InvalidToken):
    """A signed token is too old: the client needs a new one."""


class JoinError(ChannelsError):
    """Raise it in a join handler to refuse the topic to this client.

    A string becomes `{"reason": string}`, anything else is the payload as it stands; `JoinError(payload="text")`
    sends a bare string. The client gets it with the status `error`; phoenix.js tries again later, as it does after
    every refusal. In an event handler it answers with the status `error`, as `EventError` does.
    """

    def __init__(self, reason: Any = "refused", *, payload: Any = _UNSET) -> None:
        super().__init__(reason if payload is _UNSET else payload)
        self.payload: Any = _told(reason) if payload is _UNSET else payload


class EventError(ChannelsError):
    """Raise it in an event handler to answer the message with an error; the channel goes on.

    A string becomes `{"reason": string}`, anything else is the payload as it stands; `EventError(payload="text")`
    sends a bare string. `status` is the status of the reply. A message without ref gets no reply; either is counted
    as `event_refused`. In a join handler it refuses the join, with the status `error`.
    """

    def __init__(self, reason: Any = "refused", *, payload: Any = _UNSET, status: str = "error") -> None:
        if not isinstance(status, str) or not status:  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise TypeError(f'EventError(status={status!r}): it is the status of a reply, as in status="error"')
        super().__init__(reason if payload is _UNSET else payload)
        self.payload: Any = _told(reason) if payload is _UNSET else payload
        self.status: str = status


class PresenceError(ChannelsError):
    """A presence cannot be tracked or updated; `reason` says why.

    It is `already_tracked` (this socket tracks the key on its topic), `nopresence` (it does not), or `unsafe_key` (the
    key is a name that every object of JavaScript has, or is no Unicode). With keys that users choose, catch it and
    refuse.
    """

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(text or reason)
        self.reason: str = reason


class PublishError(ChannelsError):
    """A `Publisher` could not hand broadcasts to the engine in time: it may have taken some of them, or none.

    Or no server process of the application has acknowledged a `disconnect` or a `kick`, of which `unheard` says how
    many. `left` says how many they are together. The cause is the last error of the connection, if there was one.
    """

    def __init__(self, left: int, cause: Exception | None = None, *, unheard: int = 0) -> None:
        reason = explain(cause) if cause is not None else "it took too long" if unheard else "the engine took too long"
        said: list[str] = []
        if left > unheard or not unheard:
            said.append(f"{left - unheard} broadcasts were not published")
        if unheard:
            said.append(f"no server process of the application has acknowledged {unheard} of disconnect and kick")
        super().__init__(f"{', and '.join(said)}: {reason}")
        self.left: int = left
        self.unheard: int = unheard
        self.__cause__: BaseException | None = cause


class ProtocolError(ChannelsError):
    """A client sent a frame that cannot be decoded: its connection is closed with 1011, as Phoenix does."""


class InvalidPayload(ChannelsError):
    """A payload does not fit the annotation of its handler; `str()` of it says where and why."""


class SerializerError(ChannelsError):
    """A message cannot be expressed on a wire: bytes in version 1, a list as a pushed payload, a name of over 255
    bytes.
    """


def _told(reason: Any) -> Any:
    return {"reason": reason} if isinstance(reason, str) else reason


def explain(error: BaseException) -> str:
    """Return the class of an error and what it says, on one line: redis-py has a `repr` that leaves out the latter."""
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
