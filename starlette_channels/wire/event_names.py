"""Names of events: which ones clients take for the protocol's own, so that nobody else may send them.

A client acts on `phx_close`, `phx_error` and `phx_reply` whoever sent them: a broadcast of that name ends its channel,
or answers its push. phoenix.js hands replies to itself as events `chan_reply_<ref>`, so it takes a broadcast of that
name for a reply. `presence_state` and `presence_diff` change what its `Presence` knows.
"""

from starlette_channels.arguments import check_type

RESERVED_PREFIXES = ("phx_", "chan_reply_")
"""No event of an application or a client begins with one of these."""

PRESENCE_STATE = "presence_state"
PRESENCE_DIFF = "presence_diff"
PRESENCE_EVENTS = frozenset({PRESENCE_STATE, PRESENCE_DIFF})
"""Only `Presence` sends these."""

MOST_REMEMBERED = 1_000
LONGEST_REMEMBERED = 64

ORDINARY_EVENTS: set[str] = set()
"""Names that were found to be no reserved ones, some of them: to look here first costs next to nothing."""


def is_ordinary(event: str) -> bool:
    """Whether an event may be broadcast and pushed by anybody."""
    if event.startswith(RESERVED_PREFIXES) or event in PRESENCE_EVENTS:
        return False
    if len(event) <= LONGEST_REMEMBERED and len(ORDINARY_EVENTS) < MOST_REMEMBERED:
        ORDINARY_EVENTS.add(event)
    return True


def check_event(event: str) -> None:
    """Raise `ValueError` for a reserved name, with what to do instead, and `TypeError` for what is no name."""
    check_type(event, str, "event ", 'it takes the name of an event, as in "new_msg"', close="")
    if is_ordinary(event):
        return
    if event in PRESENCE_EVENTS:
        raise ValueError(
            f"event {event!r}: it is Presence's own; use presence.track and presence.push_state, or another name"
        )
    prefix = next(prefix for prefix in RESERVED_PREFIXES if event.startswith(prefix))
    raise ValueError(
        f"event {event[:100]!r}: names that begin with {prefix!r} are the protocol's own, "
        f"and clients act on them; choose another name"
    )
