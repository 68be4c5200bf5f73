"""Clients on their way in: whether there is room for one more."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio

from starlette_channels.connection.registry import Service
from starlette_channels.handshake.handshake import Refused
from starlette_channels.runtime.uptime import uptime

if TYPE_CHECKING:
    from starlette_channels.connection.identities import Identity

RETRY_SECONDS = 10
"""What refused clients are told to wait, as nobody knows when somebody will go."""


class PendingHandshake:
    """A client that has its place, in all and among those of its identity, until its connection takes it over.

    That is at the end of the `with` block, without waiting in between, or never.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._has_place = False
        self.since: float = uptime()
        """When it came, by the clock `uptime`: a `disconnect` that was said before does not mean it."""
        self._identity: Identity | None = None

    def __enter__(self) -> Self:
        return self

    def take_place(self) -> None:
        """Take a place among all. Raises `Refused` if there is none."""
        service = self._service
        most = service.limits.connections
        if len(service.connections) + service.arriving >= most:
            raise Refused(503, f"{most} connections are open", code="too_many_connections", retry_after=RETRY_SECONDS)
        service.arriving += 1
        self._has_place = True

    def identify(self, socket_id: str | None) -> None:
        """Take a place among the connections of an identity. Raises `Refused` if there is none."""
        if socket_id is None:
            return
        identities, most = self._service.identities, self._service.limits.identity_connections
        if identities.connections(socket_id) >= most:
            reason = f"{most} connections of this socket_id are open"
            raise Refused(429, reason, code="too_many_identity_connections", retry_after=RETRY_SECONDS)
        self._identity = identities.enter(socket_id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._has_place:
            self._service.arriving -= 1
        if self._identity is not None:
            self._service.identities.leave(self._identity, anyio.current_time())
