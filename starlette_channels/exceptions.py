"""Errors.

ChannelsError
├── ConnectError      raise it in `connect` to refuse a client
│   └── InvalidToken      a signed token is missing or invalid (the client's fault)
│       └── ExpiredToken      a signed token has expired
├── JoinError         raise it in a join handler to refuse a topic; the client gets its payload
├── EventError        raise it in an event handler to reply with an error; the client gets its payload
├── PresenceError     a presence cannot be tracked or updated
├── PublishError      a `Publisher` could not hand its broadcasts to the engine
├── ProtocolError     a client sent a malformed frame (the client's fault)
├── InvalidPayload    a client's payload does not match the handler's annotation (the client's fault)
└── SerializerError   a message cannot be encoded in the client's version of the protocol (the server's fault)

Mistakes in definitions are plain `TypeError` and `ValueError`, raised at import with the fix in the text.
"""

from typing import Any, Final

from starlette_channels.close_codes import check_close

_UNSET: Final[Any] = object()


class ChannelsError(Exception):
    """Base class of the errors that this package raises at run time."""


class ConnectError(ChannelsError):
    """Refuse a client: raise it in `connect`, before the WebSocket opens.

    Browsers hide the HTTP status and body from the page, so a refusal looks like a network failure to it. With `close`,
    the WebSocket is accepted and closed at once with that code and the reason, which the page gets in
    `socket.onRefused` of `channels.js`, or `socket.onClose` of phoenix.js. The latter reconnects within milliseconds
    unless that function calls `socket.disconnect()`. A long-polling client gets status 403, with `code` and `reason` in
    the JSON. A refused client is not counted as a connection, but as `connect_refused`.

    Args:
        reason: The body of the answer as plain text, also logged. With `close`, at most 123 bytes in UTF-8.
        status: The HTTP status of the answer, 400 to 599. Servers without the ASGI extension
            `websocket.http.response` answer 403 instead.
        close: A close code to send instead of the status: 3000 to 4999, or one that RFC 6455 lets a server send.
            `channels.js` takes only the former for refusals.

    Raises:
        ValueError: The status or the code is out of range, or the reason is too long.
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
    """A signed token is missing, forged, malformed, or was made for another purpose.

    As a `ConnectError`, it refuses the client with 401 unless `connect` catches it. The message never contains the
    token.
    """

    def __init__(self, reason: str = "invalid token") -> None:
        super().__init__(reason, 401)


class ExpiredToken(InvalidToken):
    """A signed token has expired: the client needs a new one."""


class JoinError(ChannelsError):
    """Refuse a join: raise it in a join handler.

    The client gets the reply `error` with the payload; phoenix.js tries to join again later. In an event handler it
    replies `error`, as `EventError` does. Counted as `join_refused`.

    Args:
        reason: A string for the payload `{"reason": reason}`; any other JSON value is the payload itself.
        payload: The payload as it is, also if it is a string.
    """

    def __init__(self, reason: Any = "refused", *, payload: Any = _UNSET) -> None:
        super().__init__(reason if payload is _UNSET else payload)
        self.payload: Any = _told(reason) if payload is _UNSET else payload


class EventError(ChannelsError):
    """Reply to an event with an error: raise it in an event handler. The channel goes on.

    A message without a ref gets no reply. Counted as `event_refused`. In a join handler it refuses the join, as
    `JoinError` does.

    Args:
        reason: A string for the payload `{"reason": reason}`; any other JSON value is the payload itself.
        payload: The payload as it is, also if it is a string.
        status: The status of the reply.
    """

    def __init__(self, reason: Any = "refused", *, payload: Any = _UNSET, status: str = "error") -> None:
        if not isinstance(status, str) or not status:  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise TypeError(f'EventError(status={status!r}): it is the status of a reply, as in status="error"')
        super().__init__(reason if payload is _UNSET else payload)
        self.payload: Any = _told(reason) if payload is _UNSET else payload
        self.status: str = status


class PresenceError(ChannelsError):
    """A presence cannot be tracked or updated.

    `reason` is `already_tracked` (the socket tracks this key on its topic already), `nopresence` (it does not), or
    `unsafe_key` (the key is a property of every JavaScript object, such as `constructor`, or contains lone surrogates).
    If users choose the keys, catch this error and refuse them.
    """

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(text or reason)
        self.reason: str = reason


class PublishError(ChannelsError):
    """A `Publisher` could not hand its broadcasts to the engine in time, or no process acknowledged a command.

    The engine may have taken some of the broadcasts. `left` is the number of broadcasts and commands without
    confirmation, `unheard` the number of `disconnect` and `kick` commands among them. `__cause__` is the last error of
    the engine's connection, if any.
    """

    def __init__(self, left: int, cause: Exception | None = None, *, unheard: int = 0) -> None:
        reason = explain(cause) if cause is not None else "it took too long" if unheard else "the engine took too long"
        said: list[str] = []
        if left > unheard or not unheard:
            said.append(f"{left - unheard} broadcasts were not published")
        if unheard:
            said.append(f"no server process of the application has acknowledged {unheard} commands (disconnect, kick)")
        super().__init__(f"{', and '.join(said)}: {reason}")
        self.left: int = left
        self.unheard: int = unheard
        self.__cause__: BaseException | None = cause


class ProtocolError(ChannelsError):
    """A client sent a frame that cannot be decoded. Its connection is closed with code 1011, as in Phoenix."""


class InvalidPayload(ChannelsError):
    """A client's payload does not match the annotation of its handler; the message says where and why."""


class SerializerError(ChannelsError):
    """A message cannot be encoded in a version of the protocol.

    For example: bytes in version 1, a list as the payload of a push, a name of more than 255 bytes beside bytes.
    """


def _told(reason: Any) -> Any:
    return {"reason": reason} if isinstance(reason, str) else reason


def explain(error: BaseException) -> str:
    """Return the class and message of an error on one line; the `repr` of redis-py's errors lacks the message."""
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
