"""The long-poll sessions of one `Channels` in this process, and their tokens."""

import re
import secrets
import time
from typing import Generic, TypeVar

S = TypeVar("S")

TOKEN = re.compile(r"lp1\.(?P<process>[0-9a-f]{16})\.(?P<opened>[0-9]{1,15})\.[\w-]{43}", re.ASCII)


class Sessions(Generic[S]):
    """Sessions by token: `lp1.<process>.<time of opening>.<secret>`.

    The token alone gives access to a session, so the secret must not be guessable. The rest identifies the process
    that opened it, and the time.
    """

    def __init__(self) -> None:
        self._process: str | None = None
        self._since = _milliseconds()
        self._sessions: dict[str, S] = {}

    def issue(self) -> str:
        """Return a new token, to be valid as soon as its session is added."""
        if self._process is None:  # not at import: processes may be forked later
            self._process = secrets.token_hex(8)
        return f"lp1.{self._process}.{_milliseconds()}.{secrets.token_urlsafe(32)}"

    def add(self, token: str, session: S) -> None:
        """Add a session."""
        self._sessions[token] = session

    def remove(self, token: str) -> None:
        """Remove a session; an unknown token is ignored."""
        self._sessions.pop(token, None)

    def find(self, token: object) -> S | None:
        """Return the session of a token; `None` for anything else that the client sent."""
        return self._sessions.get(token) if isinstance(token, str) else None

    def is_foreign(self, token: object) -> bool:
        """Whether another process has issued a token since this one started: several processes serve the application.

        Older tokens may come from the previous run of the server.
        """
        match = TOKEN.fullmatch(token) if isinstance(token, str) else None
        return match is not None and match["process"] != self._process and int(match["opened"]) >= self._since


def _milliseconds() -> int:
    return int(time.time() * 1000)
