"""The refusal of a handshake: an HTTP status, or a close code after an accept."""

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from starlette.types import Scope, Send

from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.wire.messages import shown

logger: logging.Logger = logging.getLogger("starlette_channels.connection")

Refuse: TypeAlias = Callable[[int, str], bool]
"""The fast lane's function in the ASGI scope that closes an accepted WebSocket with a code and a reason."""


class Refused(Exception):
    """Ends a handshake with an HTTP status and a body.

    `reason` and `advice` are for the log, `code` is for the counters. The reason may quote the client, the advice may
    not. `retry_after` is the value of that header, in seconds. With `close`, a WebSocket is accepted, and closed with
    that code and the body as the reason.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        body: str = "",
        code: str = "connect_refused",
        advice: str = "",
        retry_after: int | None = None,
        close: int | None = None,
    ) -> None:
        super().__init__(status, reason)
        self.advice: str = advice
        self.status: int = status
        self.reason: str = reason
        self.body: str = body
        self.code: str = code
        self.close: int | None = close
        self.subprotocol: str | None = None
        """The subprotocol of the accept, for a WebSocket that is accepted and closed."""
        self.headers: dict[str, str] = {} if retry_after is None else {"retry-after": str(retry_after)}


def log_refusal(refusal: Refused, error_log: ErrorLog) -> None:
    """Count and log a refusal."""
    reason = shown(refusal.reason) + (refusal.advice and f": {refusal.advice}")
    error_log.note(
        refusal.code,
        logger,
        "Connection refused with %d: %s",
        refusal.close or refusal.status,
        reason,
        cause=refusal.__cause__,
    )


async def refuse_websocket(scope: Scope, send: Send, refusal: Refused) -> None:
    """Refuse a WebSocket handshake with an HTTP status, or with a close code if the refusal has one.

    A server without the ASGI extension for HTTP statuses answers 403.
    """
    extensions: dict[str, Any] = scope.get("extensions") or {}
    if refusal.close is not None:
        await send({"type": "websocket.accept", "subprotocol": refusal.subprotocol})
        refuse: Refuse | None = extensions.get("starlette_channels", {}).get("refuse")
        if refuse is None or not refuse(refusal.close, refusal.body):
            await send({"type": "websocket.close", "code": refusal.close, "reason": refusal.body})
        return
    if "websocket.http.response" not in extensions:
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": refusal.body.encode()})
