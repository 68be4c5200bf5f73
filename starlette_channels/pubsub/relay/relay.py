"""Relay: publishes the broadcasts of a process to all others over an engine, and receives theirs.

It has a session from its first use to its close. When it is used again, or in a forked process, a new session with a
new id begins.
"""

import atexit
import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

from starlette_channels.exceptions import explain
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.engines.url import Address
from starlette_channels.pubsub.engines.zenoh_thread import start_anew as forget_workers
from starlette_channels.pubsub.engines.zenoh_thread import wait_for_workers
from starlette_channels.pubsub.relay.channel_names import COMMANDS
from starlette_channels.pubsub.relay.envelope import Kind
from starlette_channels.pubsub.relay.session import HandOn, RelaySession, SessionOutcome
from starlette_channels.pubsub.relay.subscriptions import Interests
from starlette_channels.runtime.uptime import uptime
from starlette_channels.wire.messages import Body

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

CLOSE_SECONDS = 3.0
"""Time limit of the close of a process for publishing its queue, in seconds."""

EXIT_SECONDS = 12.0
"""Maximal delay of the exit of the interpreter by a library that hangs: Zenoh closes a session within ten seconds."""


class Relay:
    """Publishes to channels, from any thread, and receives the channels in its `interests`."""

    def __init__(
        self,
        address: Address,
        counts: Counter[str],
        hand_on: HandOn,
        has_room: Callable[[], bool],
        confirmed: Callable[[Collection[str]], None],
    ) -> None:
        self.interests: Interests = Interests(self._wake, confirmed, uptime)
        self._address = address
        self._error_log = ErrorLog(counts)
        self._hand_on, self._has_room = hand_on, has_room
        self._lock = threading.Lock()
        self._session: RelaySession | None = None
        self._follows_commands = self._keeps_commands = False
        _relays.add(self)

    @property
    def id(self) -> str:
        """Id of this process among the others; starts a session if there is none."""
        return self.start().id.hex()

    def start(self) -> RelaySession:
        """Return the session, started if there is none; it connects in the background."""
        with self._lock:
            if self._session is None:
                address = self._address
                self._session = RelaySession(
                    address.make, address.options, self.interests, self._error_log, self._hand_on, self._has_room
                )
                if self._keeps_commands:
                    self._session.keep_commands()
                self._session.start()
            return self._session

    def publish(self, kind: Kind, channel: str, event: str, body: Body) -> None:
        """Queue a message for the other processes. Never blocks."""
        (self._session or self.start()).publish(kind, channel, event, body)

    def keep_commands(self) -> None:
        """Keep and repeat the commands of other processes, because this one has clients."""
        self._follow_commands()
        self._keeps_commands = True
        self.start().keep_commands()

    def command(self, socket_id: str, slot: str, body: bytes) -> "SentCommand":
        """Queue a command for the clients with a `socket_id` in other processes. Never blocks.

        Of two commands to a `socket_id` with the same `slot`, only the later one is kept.
        """
        self._follow_commands()
        session = self.start()
        return SentCommand(session, session.command(socket_id, slot, body))

    def _follow_commands(self) -> None:
        with self._lock:
            follows, self._follows_commands = self._follows_commands, True
        if not follows:
            self.interests.add(COMMANDS)

    def flush(self, seconds: float) -> SessionOutcome:
        """Block until everything is published, `seconds` at most."""
        session = self._session
        return SessionOutcome(0, None) if session is None else session.flush(seconds)

    def close(self, seconds: float = CLOSE_SECONDS) -> SessionOutcome:
        """Publish the queue and close the session; blocks `seconds` at most. Unpublished messages are lost."""
        with self._lock:
            session, self._session = self._session, None
        if session is None:
            return SessionOutcome(0, None)
        outcome = session.close(seconds)
        left, error, unheard = outcome
        reason = "the engine took too long" if error is None else explain(error)
        if left:
            self._error_log.note(
                "relay_dropped", logger, "%d broadcasts are left at the end: %s", left, reason, number=left
            )
        if unheard:
            text = "%d commands to clients are left at the end, nobody will repeat them: %s"
            self._error_log.note("commands_unheard", logger, text, unheard, reason, number=unheard)
        return outcome

    def _wake(self) -> None:
        session = self._session
        if session is not None:
            session.wake()

    def start_anew(self) -> None:
        """Forget the session of the parent after a fork: its thread is not in this process."""
        self._lock = threading.Lock()
        self._session = None
        self._keeps_commands = False
        self.interests.start_anew()


class SentCommand(NamedTuple):
    """A queued command."""

    session: RelaySession
    number: int

    def wait_until_heard(self, seconds: float) -> tuple[bool, Exception | None]:
        """Block until another process has acknowledged the command, `seconds` at most.

        Returns whether it has, and the last error of the engine.
        """
        return self.session.wait_until_heard(self.number, seconds)

    def withdraw(self) -> None:
        """Withdraw the command."""
        self.session.withdraw(self.number)


_relays: weakref.WeakSet[Relay] = weakref.WeakSet()


def _close_all() -> None:
    for relay in tuple(_relays):
        relay.close()
    wait_for_workers(EXIT_SECONDS)


def _start_all_anew() -> None:
    forget_workers()
    for relay in tuple(_relays):
        relay.start_anew()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_anew)
