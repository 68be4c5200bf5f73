"""What `connect` returned, for each join: a shallow copy, so that channels do not see each other's changes."""

import copy
from typing import TypeVar

A = TypeVar("A")


def copy_assigns(assigns: A) -> A:
    """Return a shallow copy; or the very same object if it says that it cannot be copied.

    Locks, generators, sessions of databases and the like are shared by all channels of a connection: whoever returns
    them wants to use that one, and a copy of it would be none. What its `__copy__` raises does not matter.
    """
    try:
        return copy.copy(assigns)
    except Exception:  # noqa: BLE001 - `copy.Error`, `TypeError` of pickle, and what a class raises to forbid it
        return assigns
