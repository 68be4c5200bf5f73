"""Reserved event names, which applications and clients may not broadcast or push.

Clients act on `phx_close`, `phx_error` and `phx_reply` without knowing the sender: a broadcast of that name would end a
channel or resolve a push. phoenix.js dispatches replies internally as events `chan_reply_<ref>`, so a broadcast of that
name would be taken for a reply. `presence_state` and `presence_diff` change the client's `Presence`.
"""

from starlette_channels.arguments import check_type

RESERVED_PREFIXES = ("phx_", "chan_reply_")
"""Prefixes of events that belong to the protocol."""

PRESENCE_STATE = "presence_state"
PRESENCE_DIFF = "presence_diff"
PRESENCE_EVENTS = frozenset({PRESENCE_STATE, PRESENCE_DIFF})
"""Events that only `Presence` sends."""

MOST_REMEMBERED = 1_000
LONGEST_REMEMBERED = 64

ORDINARY_EVENTS: set[str] = set()
"""Cache of names that are not reserved, for a fast check; it does not have all of them."""


def is_ordinary(event: str) -> bool:
    """Whether an event is not reserved."""
    if event.startswith(RESERVED_PREFIXES) or event in PRESENCE_EVENTS:
        return False
    if len(event) <= LONGEST_REMEMBERED and len(ORDINARY_EVENTS) < MOST_REMEMBERED:
        ORDINARY_EVENTS.add(event)
    return True


def check_event(event: str) -> None:
    """Raise `ValueError` for a reserved event name, with advice, and `TypeError` unless it is a string."""
    check_type(event, str, "event ", 'it takes the name of an event, as in "new_msg"', close="")
    if is_ordinary(event):
        return
    if event in PRESENCE_EVENTS:
        raise ValueError(
            f"event {event!r}: reserved for Presence; use presence.track and presence.push_state, or another name"
        )
    prefix = next(prefix for prefix in RESERVED_PREFIXES if event.startswith(prefix))
    raise ValueError(
        f"event {event[:100]!r}: names that begin with {prefix!r} are reserved for the protocol, "
        f"and clients act on them; choose another name"
    )
