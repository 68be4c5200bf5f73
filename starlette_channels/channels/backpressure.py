"""Backpressure: policies for the broadcasts and pushes of a channel to clients that read slowly."""

from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from msgspec import Struct

from starlette_channels.wire.messages import Body
from starlette_channels.wire.payloads import decode_anything

KeyOf: TypeAlias = Callable[[str, Any], Hashable]
"""Function of the event and its decoded payload that returns the key of a message; `None` for a message without key."""


class LatestByKey(Struct, frozen=True, gc=False):
    """A policy for clients that read slowly, made by `latest_by_key`."""

    key_of: KeyOf


WhenSlow: TypeAlias = Literal["disconnect", "drop_oldest"] | LatestByKey
"""A policy for clients that read slowly: `@channel("ticker:*", when_slow="drop_oldest")`.

It applies to the broadcasts and pushes of the channel; replies and the end of the channel are never dropped.

- `"disconnect"` drops nothing: a client with more than `Limits.outbox_bytes` of unsent data is closed with 1008.
- `"drop_oldest"` drops the oldest unsent messages of the channel at that limit, and the client stays connected: for
  data that ages, such as positions and video frames. Dropped messages are counted as `dropped_oldest`.
- `latest_by_key(...)` keeps the newest message of each key.
"""


def latest_by_key(key: str | KeyOf) -> LatestByKey:
    """Keep only the newest unsent message of each key: for prices, positions, states.

    `key` is the name of a member of the payload, or a function of the event and the payload; messages without key are
    all kept. Messages of different events never replace each other. Keys are compared like dict keys. Replaced messages
    are counted as `dropped_stale`. A client that still has more than `Limits.outbox_bytes` of unsent data is closed.
    """
    if isinstance(key, str):
        return LatestByKey(_member(key))
    if not callable(key):  # pyright: ignore[reportUnnecessaryComparison] - callers without types
        raise TypeError('latest_by_key(): name a member of the payload, as in latest_by_key("symbol"), or a function')
    return LatestByKey(key)


def check_policy(policy: object) -> None:
    """Raise `TypeError` unless `policy` is a valid `when_slow` value."""
    if policy not in ("disconnect", "drop_oldest") and not isinstance(policy, LatestByKey):
        raise TypeError('channel(when_slow=...): it must be "disconnect", "drop_oldest" or latest_by_key(...)')


class Place(NamedTuple):
    """The owner and the key of an unsent message: a later message of the same key takes its place."""

    owner: object
    key: Hashable


def _member(name: str) -> KeyOf:
    def key_of(_: str, payload: Any) -> Hashable:
        value: Any = cast("dict[str, Any]", payload).get(name) if isinstance(payload, dict) else None
        return value if isinstance(value, Hashable) else None

    return key_of


def place_of(policy: WhenSlow, owner: object, event: str, body: Body) -> Place | None:
    """Return the place of a message under a policy that drops; `None` for a message without key."""
    if not isinstance(policy, LatestByKey):
        return Place(owner, None)
    key = policy.key_of(event, decode_anything(body))
    return None if key is None else Place(owner, (event, key))
