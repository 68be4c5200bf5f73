"""What handlers raise to refuse: the reply that each error stands for.

Our own errors, and Starlette's, which dependencies of an application raise for its routes as well. Headers and status
codes of HTTP have no place in a reply; a detail that is no string may carry what the client needs to know.
"""

from typing import Any

from starlette.exceptions import HTTPException, WebSocketException

from starlette_channels.exceptions import ConnectError, EventError, JoinError
from starlette_channels.runtime.cancellation import alone
from starlette_channels.wire.messages import Reply
from starlette_channels.wire.payloads import invalid_payload


def payload_misfit(error: Exception) -> dict[str, str]:
    """Return the answer to a payload that does not fit, for one of the errors `UNDECODABLE`."""
    return {"reason": "invalid payload", "detail": str(invalid_payload(error))}


def rejection(error: BaseException) -> Reply | None:
    """Return the reply that an error asks for; `None` if it is no refusal.

    `HTTPException(403, "not a member")` is `{"reason": "not a member"}`, as `JoinError("not a member")` is. So is a
    group of it alone, as in Starlette: what is raised inside of a task group comes out in one.
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
            detail: Any = error.detail  # any JSON with FastAPI's
            return Reply("error", {"reason": detail} if isinstance(detail, str) else detail)
        case _:
            return None
