"""The long-poll sessions of one `Channels` in this process, and the tokens by which their clients find them again."""

import re
import secrets
import time
from typing import Generic, TypeVar

S = TypeVar("S")

TOKEN = re.compile(r"lp1\.(?P<process>[0-9a-f]{16})\.(?P<opened>[0-9]{1,15})\.[\w-]{43}", re.ASCII)


class Sessions(Generic[S]):
    """Finds a session by its token: `lp1.<process>.<time of opening>.<secret>`.

    Whoever knows the secret has the session, so it cannot be guessed; the rest tells sessions of other processes apart.
    """

    def __init__(self) -> None:
        self._process: str | None = None
        self._since = _milliseconds()
        self._sessions: dict[str, S] = {}

    def issue(self) -> str:
        """Return a new token; it is valid once a session has been added for it."""
        if self._process is None:  # not sooner: a process may be forked after the application was imported
            self._process = secrets.token_hex(8)
        return f"lp1.{self._process}.{_milliseconds()}.{secrets.token_urlsafe(32)}"

    def add(self, token: str, session: S) -> None:
        """Let a session be found."""
        self._sessions[token] = session

    def remove(self, token: str) -> None:
        """Let a session not be found any more."""
        self._sessions.pop(token, None)

    def find(self, token: object) -> S | None:
        """Return the session of a token, whatever the client sent for one."""
        return self._sessions.get(token) if isinstance(token, str) else None

    def is_foreign(self, token: object) -> bool:
        """Whether a token is that of a process that serves the same application beside this one.

        Tokens older than this process are no sign of that: they are those of the server that ran before it.
        """
        match = TOKEN.fullmatch(token) if isinstance(token, str) else None
        return match is not None and match["process"] != self._process and int(match["opened"]) >= self._since


def _milliseconds() -> int:
    return int(time.time() * 1000)
