"""A client as one that sends: how many messages and joins it may, and what it has been refused."""

import logging
from collections.abc import Mapping
from typing import Any

from starlette_channels.channels.link import Write
from starlette_channels.connection.identities import Excess, Identity
from starlette_channels.connection.refusals import Refusals
from starlette_channels.connection.registry import Service
from starlette_channels.observability.redaction import ParameterFilter
from starlette_channels.rates import FULL
from starlette_channels.runtime.timers import waker_of_this_loop
from starlette_channels.wire.messages import Frame

logger: logging.Logger = logging.getLogger("starlette_channels.connection")

HEAVY = 16_384
"""Characters or bytes: a message counts as one more for each time that it has so many."""


class Sender:
    """One client, as far as it sends. One that sends nothing, or seldom, costs a few slots."""

    __slots__ = ("_drawn", "_identity", "_joins", "_messages", "_number", "_refusals", "_service", "write")

    def __init__(self, service: Service, write: Write, socket_id: str | None) -> None:
        self.write: Write = write
        self._service = service
        self._identity: Identity | None = None if socket_id is None else service.identities.enter(socket_id)
        self._messages = FULL
        self._drawn = 0
        self._joins = FULL
        self._refusals: Refusals | None = None
        self._number = 0

    @property
    def socket_id(self) -> str | None:
        """What `disconnect` knows it by."""
        return None if self._identity is None else self._identity.name

    @property
    def number(self) -> int:
        """What logs call the connection."""
        self._number = self._number or next(self._service.numbers)
        return self._number

    @property
    def parameters(self) -> ParameterFilter:
        """How logs show what the client sends."""
        return self._service.parameters

    def log_open(self, params: Mapping[str, Any]) -> None:
        """Log that the client has connected, with its parameters, if that is wanted."""
        level = self._service.log_connect
        if level is not None and logger.isEnabledFor(level):
            logger.log(level, "Connected: number %d, parameters %s", self.number, self.parameters.show_value(params))

    def _log_end(self) -> None:
        level = self._service.log_connect
        if level is not None and logger.isEnabledFor(level):
            logger.log(level, "Disconnected: number %d", self.number)

    def _draw(self, size: int, now: float, *, is_join: bool) -> Excess | None:
        """Count a message of so many characters or bytes; return what it is beyond, if it is."""
        excess = self._draw_join(now) if is_join else None
        if excess is None and size >= HEAVY:
            excess = self._draw_messages(min(size // HEAVY + (not is_join), self._service.quotas.heaviest), now)
        elif not is_join:
            excess = self._draw_message(now)
        return excess

    def _draw_message(self, now: float) -> Excess | None:
        handful = self._service.quotas.handful
        if self._drawn:
            self._drawn -= 1
        elif handful > 1 and self._draw_messages(handful, now) is None:
            self._drawn = handful - 1
        else:
            return self._draw_messages(1, now)
        return None

    def _draw_messages(self, number: int, now: float) -> Excess | None:
        meter = self._service.quotas.messages
        bucket = meter.draw(self._messages, now, number)
        if bucket is None:
            return Excess("too_many_messages", meter.wait(self._messages, now, number))
        excess = None if self._identity is None else self._identity.draw_messages(number, now)
        if excess is None:
            self._messages = bucket
        return excess

    def _draw_bytes(self, before: int, after: int, now: float) -> Excess | None:
        """Count what a body has grown by, from so many bytes to so many; return what it is beyond, if it is."""
        heaviest = self._service.quotas.heaviest
        number = min(after // HEAVY, heaviest) - min(before // HEAVY, heaviest)
        return self._draw_messages(number, now) if number else None

    def _draw_join(self, now: float) -> Excess | None:
        meter = self._service.quotas.joins
        bucket = meter.draw(self._joins, now)
        if bucket is None:
            return Excess("too_many_joins", meter.wait(self._joins, now))
        self._joins = bucket
        return None if self._identity is None else self._identity.draw_join(now)

    def _draw_refusal(self, number: int, now: float) -> bool:
        """Count messages beyond the rates; return whether there may be so many."""
        self._refusals = self._refusals or Refusals()
        quotas = self._service.quotas
        return self._refusals.draw(quotas.refusals, now, min(number, quotas.most_refused))

    def refuse(self, frame: Frame) -> None:
        """Send the answer to a refused join, when `refusal_seconds` are over."""
        seconds = self._service.limits.refusal_seconds
        if not seconds or (self._refusals is not None and self._refusals.is_full):
            self.write(frame)
            return
        refusals = self._refusals = self._refusals or Refusals()
        waker = waker_of_this_loop()
        if refusals.next_at is None:
            waker.wake(seconds, self._tell_refusals)
        refusals.hold(frame, waker.now() + seconds)

    def _tell_refusals(self, now: float) -> float | None:
        refusals = self._refusals
        if refusals is None:
            return None
        for frame in refusals.due(now):
            self.write(frame)
        return refusals.next_at

    def _leave(self, now: float) -> None:
        """Be counted no longer, and be told nothing more."""
        self._log_end()
        self._refusals = None
        if self._identity is not None:
            self._service.identities.leave(self._identity, now)
