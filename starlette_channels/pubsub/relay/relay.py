"""A relay: carries what is broadcast in one process to all others, over an existing engine.

It lives from its first use to its close, and begins a new life, with a new id, when it is used again; so does the copy
of it in a process that was forked.
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
"""How long a process that ends tries to get rid of what it has to say."""

EXIT_SECONDS = 12.0
"""How long the exit of the interpreter waits for a library that hangs: Zenoh takes ten at most to close a session."""


class Relay:
    """Publishes, from any thread, and hears what the interests of its process ask for."""

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
        self._life: RelaySession | None = None
        self._follows_commands = self._keeps_commands = False
        _relays.add(self)

    @property
    def id(self) -> str:
        """What the others know this process by; it begins a life if there is none."""
        return self.start().id.hex()

    def start(self) -> RelaySession:
        """Begin a life if there is none, and return it. It connects by and by."""
        with self._lock:
            if self._life is None:
                address = self._address
                self._life = RelaySession(
                    address.make, address.options, self.interests, self._error_log, self._hand_on, self._has_room
                )
                if self._keeps_commands:
                    self._life.keep_commands()
                self._life.start()
            return self._life

    def publish(self, kind: Kind, channel: str, event: str, body: Body) -> None:
        """Send a message to the other processes, soon. It never waits."""
        (self._life or self.start()).publish(kind, channel, event, body)

    def keep_commands(self) -> None:
        """Keep what others command, and repeat it: there are clients in this process."""
        self._follow_commands()
        self._keeps_commands = True
        self.start().keep_commands()

    def command(self, socket_id: str, slot: str, body: bytes) -> "Said":
        """Tell the other processes what to do to the clients of an identity. It never waits.

        Of two commands to an identity with the same `slot`, the later one does for both.
        """
        self._follow_commands()
        life = self.start()
        return Said(life, life.command(socket_id, slot, body))

    def _follow_commands(self) -> None:
        with self._lock:
            follows, self._follows_commands = self._follows_commands, True
        if not follows:
            self.interests.add(COMMANDS)

    def flush(self, seconds: float) -> SessionOutcome:
        """Wait until everything is published, for at most so many seconds; it blocks its thread meanwhile.

        Return how many messages are left, and what is wrong with the engine.
        """
        life = self._life
        return SessionOutcome(0, None) if life is None else life.flush(seconds)

    def close(self, seconds: float = CLOSE_SECONDS) -> SessionOutcome:
        """Publish what waits, for at most so many seconds, and end this life; it blocks its thread meanwhile.

        Return how many messages are left, which nobody will get, and what was wrong with the engine.
        """
        with self._lock:
            life, self._life = self._life, None
        if life is None:
            return SessionOutcome(0, None)
        outcome = life.close(seconds)
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
        life = self._life
        if life is not None:
            life.wake()

    def start_anew(self) -> None:
        """Leave the life of the parent behind: its thread is not in this process."""
        self._lock = threading.Lock()
        self._life = None
        self._keeps_commands = False
        self.interests.start_anew()


class Said(NamedTuple):
    """A command that was said."""

    life: RelaySession
    number: int

    def wait_until_heard(self, seconds: float) -> tuple[bool, Exception | None]:
        """Wait until another process keeps it and will repeat it, for at most so long; it blocks its thread meanwhile.

        Return whether that is so, and what is wrong with the engine.
        """
        return self.life.wait_until_heard(self.number, seconds)

    def withdraw(self) -> None:
        """Say it no more."""
        self.life.withdraw(self.number)


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
