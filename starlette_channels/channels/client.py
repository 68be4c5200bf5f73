"""The connection of a joined channel, as the channel sees it."""

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from starlette_channels.channels.backpressure import Place
from starlette_channels.limits import Bounds
from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.observability.redaction import ParameterFilter
from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.hub import Hub, ShortCut
from starlette_channels.runtime.handler_deadlines import Watch
from starlette_channels.runtime.tasks import Cancel, Tasks
from starlette_channels.wire.messages import Message, OutgoingFrame
from starlette_channels.wire.protocol import Answer
from starlette_channels.wire.serializers import Serializer

if TYPE_CHECKING:
    from weakref import WeakSet


class Write(Protocol):
    """Queues a frame for a client; a frame with a place may be dropped if the client reads slowly."""

    def __call__(self, frame: OutgoingFrame, place: Place | None = None) -> None:
        """Return at once."""
        ...


class ChannelClient(Protocol):
    """A client of joined channels: its identity and its wire, and the objects that all clients share."""

    promises: "WeakSet[Any] | None"
    """The promised replies that are still to come."""

    @property
    def app(self) -> Any:
        """The application around the `Channels`, or `None`."""
        ...

    @property
    def assigns(self) -> Any:
        """The return value of `connect`."""
        ...

    @property
    def socket_id(self) -> str | None:
        """The name of the client for `disconnect` and `kick`."""
        ...

    @property
    def number(self) -> int:
        """The number of the connection in logs."""
        ...

    @property
    def serializer(self) -> Serializer:
        """The client's wire format."""
        ...

    @property
    def broker(self) -> Broker:
        """The broker of its broadcasts."""
        ...

    @property
    def hub(self) -> Hub:
        """The subscriptions of this event loop."""
        ...

    @property
    def tasks(self) -> Tasks:
        """The tasks of its handlers."""
        ...

    @property
    def handler_watch(self) -> Watch | None:
        """The watch over the time limit of handlers; `None` if there is no limit."""
        ...

    @property
    def limits(self) -> Bounds:
        """The limits of the mailbox, of handlers and of the close."""
        ...

    @property
    def counts(self) -> Counter[str]:
        """The counters of errors."""
        ...

    @property
    def error_log(self) -> ErrorLog:
        """The throttled log of errors, with their counters."""
        ...

    @property
    def parameters(self) -> ParameterFilter:
        """The filter of payloads in logs."""
        ...

    @property
    def write(self) -> Write:
        """The function that queues a frame for the client."""
        ...

    def short_cut(self, *, may_drop: bool) -> ShortCut | None:
        """Return the short cut for broadcasts to the client, or `None`.

        A client that reads slowly has no short cut for broadcasts that may be dropped.
        """
        ...

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Cancel:
        """Run an async function beside the handlers; return a function that cancels it."""
        ...

    def refuse(self, frame: OutgoingFrame) -> None:
        """Send the answer to a refused join, after a pause."""
        ...

    def answer(self, message: Message, answer: Answer) -> None:
        """Answer a message in the name of the connection."""
        ...

    def blame(self, message: Message, code: str) -> None:
        """Count and log a mistake of the client."""
        ...

    def free(self, topic: str, joined: Any) -> None:
        """Free a topic, unless another join has taken it; the channel itself closes later."""
        ...

    def forget(self, joined: Any) -> None:
        """Remove a channel that has closed, its cleanups included."""
        ...

    def add_backlog(self, message: Message) -> None:
        """Add a message of the client to the backlog: it is queued, or its handler is suspended."""
        ...

    def remove_backlog(self, message: Message) -> None:
        """Remove a message of the client from the backlog: it has been handled or dropped."""
        ...
