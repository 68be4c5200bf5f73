"""How clients are sent away before a server stops: how many at a time, and when they are asked to come back.

Source: the drainer of `Phoenix.Socket`. That clients are told when to come back is ours.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct

from starlette_channels.arguments import check_fields


class Drain(Struct, frozen=True, kw_only=True):
    """How clients are sent away before the server stops: `Channels(drain=Drain(batch_size=500))`.

    `batch_size` and `interval_seconds` are the pace at which clients leave, and so the pace at which they come back,
    here or to another server. Raises `ValueError` for a pace that is none.
    """

    batch_size: int = 1_000
    """Connections that are closed at a time; more, if else they would not all be closed within `timeout_seconds`."""

    interval_seconds: float = 1.0
    """Time from one batch to the next. The clients of a batch are asked to come back spread over as long."""

    timeout_seconds: float = 15.0
    """Time for all batches. Handlers and `terminate` have `Limits.shutdown_seconds` each beyond it."""

    restart_seconds: float | None = None
    """How long it takes until this server is back, if there is no other one for its clients.

    Then all are closed at once, and asked to come back after that time, at the same pace.
    """

    def __post_init__(self) -> None:
        """Refuse what is no pace."""
        check_fields(self, above_zero=("batch_size", "interval_seconds"))


class Batch(NamedTuple):
    """Clients that are closed at a time: so many seconds after the beginning, and how long each is to stay away."""

    at: float
    waits: Sequence[float]


def batches(clients: int, drain: Drain, *, at_once: bool = False) -> Iterator[Batch]:
    """Divide so many clients into batches; `at_once`, into one."""
    pause = drain.interval_seconds / drain.batch_size
    if at_once or drain.restart_seconds is not None:
        absence = drain.restart_seconds or 0.0
        yield Batch(0.0, [absence + number * pause for number in range(clients)])
        return
    most = max(1, int(drain.timeout_seconds / drain.interval_seconds))
    size = max(drain.batch_size, math.ceil(clients / most))
    for number, first in enumerate(range(0, clients, size)):
        waits = [position * drain.interval_seconds / size for position in range(min(size, clients - first))]
        yield Batch(number * drain.interval_seconds, waits)
