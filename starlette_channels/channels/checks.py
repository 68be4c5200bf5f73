"""Checks of the arguments of `Channels`, once, when it is made; error messages contain the fix."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, cast

from starlette_channels.arguments import shown_argument
from starlette_channels.channels.definition import Channel
from starlette_channels.wire.topics import Pattern

logger: logging.Logger = logging.getLogger("starlette_channels.channel")

SOMETHING = "\ue000"
"""Placeholder for any segment or rest of a topic: a private-use character that no pattern contains."""


def check_channels(channels: object) -> Sequence[Channel[Any]]:
    """Return the channels of a list. Raises `TypeError` for anything else, with the fix in the text."""
    if isinstance(channels, Channel):
        name = cast("Channel[Any]", channels).name
        raise TypeError(f"Channels({name}): it takes a list of channels, as in Channels([{name}])")
    if isinstance(channels, str | bytes) or not isinstance(channels, Iterable):
        raise TypeError(f"Channels({shown_argument(channels)}): it takes a list of channels, as in Channels([room])")
    listed = tuple(cast("Iterable[object]", channels))
    for one in listed:
        if not isinstance(one, Channel):
            raise TypeError(f"Channels([{shown_argument(one)}]): {_fix(one)}")
    return cast("tuple[Channel[Any], ...]", listed)


def _fix(one: object) -> str:
    if isinstance(one, str):
        return "list the functions that are decorated with @channel(...), not their topics"
    if callable(one):
        return 'it is a function that handles no topic yet; write @channel("room:*") above its definition'
    return f"it is {type(one).__name__}; list the functions that are decorated with @channel(...)"


def check_list(values: object, kind: type, where: str, example: str) -> None:
    """Raise `TypeError` unless it is a list of this type, as the example shows."""
    is_list = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    items = tuple(cast("Iterable[object]", values)) if is_list else None
    if items is None or not all(isinstance(item, kind) and not isinstance(item, type) for item in items):
        raise TypeError(f"{where}={shown_argument(cast('object', values))}): give a list, as in {example}")


def warn_of_hidden_patterns(routes: Sequence[tuple[Pattern, Channel[Any]]]) -> None:
    """Log the patterns that can never match, because an earlier pattern matches all of their topics."""
    for number, (pattern, channel) in enumerate(routes):
        for former, owner in routes[:number]:
            # A pattern with decoded segments does not match all topics: values of another type go to later patterns.
            if not owner.join.segments and covers(former, pattern):
                logger.warning(
                    "The pattern %r of %s never matches: %r of %s comes before it and takes all of its topics;"
                    " list the special ones first",
                    *(pattern.text, channel.name, former.text, owner.name),
                )
                break


def covers(former: Pattern, pattern: Pattern) -> bool:
    """Whether `former` matches all topics of `pattern`: it does if it matches sample topics that stand for all."""
    sample = pattern.text.removesuffix("*")
    for name in pattern.names:
        sample = sample.replace(f"{{{name}}}", SOMETHING)
    is_wild = pattern.text.endswith("*")
    samples = (sample, f"{sample}:{SOMETHING}:") if is_wild else (sample,)
    return all(former.match(one) is not None for one in samples)
