"""What runs the work of actors."""

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.runtime.tasks import Cancel, Tasks


class Spawner(Protocol):
    """What runs an actor's work."""

    @property
    def tasks(self) -> Tasks:
        """Where handlers run."""
        ...

    @property
    def limits(self) -> Bounds:
        """What bounds the mailbox and the time to end."""
        ...

    @property
    def counts(self) -> Counter[str]:
        """Where error_log are counted."""
        ...

    @property
    def error_log(self) -> ErrorLog:
        """What counts and logs error_log."""
        ...

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Cancel:
        """Run an async function beside the others; return what cancels it."""
        ...
