"""What is logged of connections, joins and events, and how much of what clients send with them."""

import logging
from typing import Literal, TypeAlias

from msgspec import Struct

from starlette_channels.arguments import check_fields
from starlette_channels.observability.redaction import SECRETS

Level: TypeAlias = Literal["debug", "info", "warning", "error"] | None
"""A level of `logging`; `None`, not at all."""


class LogOptions(Struct, frozen=True, kw_only=True):
    """What is logged: `Channels(log=LogOptions(connect="debug"))`; each channel says for itself of joins and events."""

    connect: Level = "info"
    """When a client has connected, with its parameters, and when it has gone."""

    filter_parameters: tuple[str, ...] = SECRETS
    """Parts of names, in any case, whose values are shown as `[FILTERED]`, wherever in parameters and payloads."""

    keep_parameters: tuple[str, ...] | None = None
    """If given, names whose values are shown, and no others."""

    def __post_init__(self) -> None:
        """Refuse what is no option."""
        check_fields(self)


def level_of(level: Level, what: str) -> int | None:
    """Return the number of a level. Raises `ValueError` if there is no such level."""
    if level is None:
        return None
    number = logging.getLevelNamesMapping().get(str(level).upper())
    if number is None:
        raise ValueError(f"{what}={level!r}): there is no such level: use 'debug', 'info', 'warning', 'error' or None")
    return number
