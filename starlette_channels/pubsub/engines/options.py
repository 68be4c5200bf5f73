"""How a relay is used, whatever its engine."""

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the query of a broker's address may say: `redis://localhost/0?prefix=chat&buffer_seconds=30`."""

    prefix: Annotated[str, Meta(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")] = "channels"
    """What the names of this application begin with, on an engine that others use as well."""

    buffer_seconds: Annotated[float, Meta(ge=0)] = 10.0
    """How long broadcasts are kept for an engine that is away; then they are dropped, and reported as lost."""

    queue: Annotated[int, Meta(ge=1)] = 10_000
    """How many broadcasts may wait for the engine; beyond it the oldest are dropped, and reported as lost."""

    queue_bytes: Annotated[int, Meta(ge=1)] = 64_000_000
    """How many bytes they may be, on their way out, and again for those that have come."""


NAMES: frozenset[str] = frozenset(field.name for field in msgspec.structs.fields(Options))


def check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ValueError` for options of an address that its engine does not know, with those that it does."""
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(
            f"a broker's address has an option that is unknown: {', '.join(sorted(unknown))};"
            f" it may have {', '.join(sorted(NAMES | set(known)))}"
        )
