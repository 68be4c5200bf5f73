"""Log options: levels for connections, joins and events, and which parameters are shown."""

import logging
from typing import Literal, TypeAlias

from msgspec import Struct

from starlette_channels.arguments import check_fields
from starlette_channels.observability.redaction import SECRETS

Level: TypeAlias = Literal["debug", "info", "warning", "error"] | None
"""A level of `logging`; `None` logs nothing."""


class LogOptions(Struct, frozen=True, kw_only=True):
    """Log options of an application, as in `Channels(log=LogOptions(connect="debug"))`.

    The levels for joins and events are options of each channel.
    """

    connect: Level = "info"
    """Level of the lines for connects, with parameters, and for disconnects."""

    filter_parameters: tuple[str, ...] = SECRETS
    """Substrings of names, in any case, whose values are shown as `[FILTERED]` in parameters and payloads."""

    keep_parameters: tuple[str, ...] | None = None
    """If given, only the values of these names are shown."""

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for an invalid option."""
        check_fields(self)


def level_of(level: Level, what: str) -> int | None:
    """Return the number of a log level. Raises `ValueError` if it does not exist."""
    if level is None:
        return None
    number = logging.getLevelNamesMapping().get(str(level).upper())
    if number is None:
        raise ValueError(f"{what}={level!r}): there is no such level: use 'debug', 'info', 'warning', 'error' or None")
    return number
