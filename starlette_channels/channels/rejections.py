"""Rejections: the errors that handlers raise to refuse, and the reply to each.

They are the errors of this package, and those of Starlette, because an application's dependencies raise them for HTTP
routes as well. HTTP headers and status codes are left out of the reply; a `detail` that is not a string is the payload.
"""

from typing import Any

from starlette.exceptions import HTTPException, WebSocketException

from starlette_channels.exceptions import ConnectError, EventError, JoinError
from starlette_channels.runtime.cancellation import alone
from starlette_channels.wire.messages import Reply
from starlette_channels.wire.payloads import invalid_payload


def payload_misfit(error: Exception) -> dict[str, str]:
    """Return the answer to an invalid payload, for one of the errors `UNDECODABLE`."""
    return {"reason": "invalid payload", "detail": str(invalid_payload(error))}


def rejection(error: BaseException) -> Reply | None:
    """Return the reply to an error; `None` if it is not a refusal.

    `HTTPException(403, "not a member")` is `{"reason": "not a member"}`, like `JoinError("not a member")`. An exception
    group that contains only this error is treated alike, as in Starlette: task groups raise their errors in a group.
    """
    error = alone(error)
    match error:
        case EventError():
            return Reply(error.status, error.payload)
        case JoinError():
            return Reply("error", error.payload)
        case ConnectError() | WebSocketException():
            return Reply("error", {"reason": error.reason or "refused"})
        case HTTPException():
            detail: Any = error.detail  # FastAPI allows any JSON value
            return Reply("error", {"reason": detail} if isinstance(detail, str) else detail)
        case _:
            return None
