"""What becomes of the broadcasts and pushes of a channel while a client is behind with reading."""

from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from msgspec import Struct

from starlette_channels.wire.messages import Body
from starlette_channels.wire.payloads import decode_anything

KeyOf: TypeAlias = Callable[[str, Any], Hashable]
"""Says which messages stand for the same thing, from the event and its decoded payload; `None` is like nothing else."""


class LatestByKey(Struct, frozen=True, gc=False):
    """A policy for clients that are behind with reading; `latest_by_key` makes it."""

    key_of: KeyOf


WhenSlow: TypeAlias = Literal["disconnect", "drop_oldest"] | LatestByKey
"""A policy for clients that are behind with reading: `@channel("ticker:*", when_slow="drop_oldest")`.

It is about the broadcasts and pushes of the channel; replies and its end are never dropped.

- `"disconnect"` keeps everything; a client for which more than `Limits.outbox_bytes` wait is closed with 1008.
- `"drop_oldest"` drops the oldest of what the channel has sent when that much waits, and the client stays connected:
  for what ages, such as positions and frames of a picture. What is dropped is counted as `dropped_oldest`.
- `latest_by_key(...)` keeps the newest for each key.
"""


def latest_by_key(key: str | KeyOf) -> LatestByKey:
    """Keep only the newest message for each key, of those that wait: for prices, positions, states.

    `key` is the name of a member of the payload, or a function of the event and the payload; messages without it are
    all kept. Messages of different events never replace each other. Keys are compared as dict keys are. What is
    replaced is counted as `dropped_stale`. A client for which more than `Limits.outbox_bytes` wait even so is closed.
    """
    if isinstance(key, str):
        return LatestByKey(_member(key))
    if not callable(key):  # pyright: ignore[reportUnnecessaryComparison] - callers without types
        raise TypeError('latest_by_key(): name a member of the payload, as in latest_by_key("symbol"), or a function')
    return LatestByKey(key)


def check_policy(policy: object) -> None:
    """Raise `TypeError` for what is no policy, with those that there are."""
    if policy not in ("disconnect", "drop_oldest") and not isinstance(policy, LatestByKey):
        raise TypeError('channel(when_slow=...): it must be "disconnect", "drop_oldest" or latest_by_key(...)')


class Place(NamedTuple):
    """Whose a waiting message is, and what it stands for: the next of the same key takes its place."""

    owner: object
    key: Hashable


def _member(name: str) -> KeyOf:
    def key_of(_: str, payload: Any) -> Hashable:
        value: Any = cast("dict[str, Any]", payload).get(name) if isinstance(payload, dict) else None
        return value if isinstance(value, Hashable) else None

    return key_of


def place_of(policy: WhenSlow, owner: object, event: str, body: Body) -> Place | None:
    """Return the place of a message under a policy that drops; `None` if the message is like nothing else."""
    if not isinstance(policy, LatestByKey):
        return Place(owner, None)
    key = policy.key_of(event, decode_anything(body))
    return None if key is None else Place(owner, (event, key))
