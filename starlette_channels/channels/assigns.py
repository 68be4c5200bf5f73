"""Copies of the return value of `connect`: a shallow copy for each join, so changes stay within one channel."""

import copy
from typing import TypeVar

A = TypeVar("A")


def copy_assigns(assigns: A) -> A:
    """Return a shallow copy, or the object itself if it cannot be copied.

    Objects such as locks, generators and database sessions cannot be copied in a useful way: all channels of a
    connection share them. Any error of the copy is ignored.
    """
    try:
        return copy.copy(assigns)
    except Exception:  # noqa: BLE001 - `copy.Error`, `TypeError` of pickle, and errors of `__copy__`
        return assigns
