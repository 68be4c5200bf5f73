"""Phoenix Channels for Starlette and FastAPI: topics, replies and broadcasts over one WebSocket."""

from starlette_channels.channels.backpressure import WhenSlow, latest_by_key
from starlette_channels.channels.definition import Channel, channel
from starlette_channels.channels.socket import EndReason, LaterReply, Socket
from starlette_channels.connection.expiry import Expiry
from starlette_channels.endpoint import Channels
from starlette_channels.exceptions import (
    ChannelsError,
    ConnectError,
    EventError,
    ExpiredToken,
    InvalidPayload,
    InvalidToken,
    JoinError,
    PresenceError,
    ProtocolError,
    PublishError,
    SerializerError,
)
from starlette_channels.handshake.handshake import Handshake
from starlette_channels.limits import Limits
from starlette_channels.observability.log_context import LogContext
from starlette_channels.observability.log_options import LogOptions
from starlette_channels.observability.statistics import Statistics
from starlette_channels.presence.diffs import PresenceDiff
from starlette_channels.presence.presence import Presence
from starlette_channels.presence.timing import PresenceTiming
from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.publisher import Publisher
from starlette_channels.rates import Rate
from starlette_channels.server.drain import Drain
from starlette_channels.transports.longpoll.transport import LongPoll
from starlette_channels.wire.messages import Broadcast, Gap, Payload, Reply
from starlette_channels.wire.serializers import V1, V2, Serializer

__version__ = "0.1.0"

__all__ = [
    "V1",
    "V2",
    "Broadcast",
    "Broker",
    "Channel",
    "Channels",
    "ChannelsError",
    "ConnectError",
    "Drain",
    "EndReason",
    "EventError",
    "ExpiredToken",
    "Expiry",
    "Gap",
    "Handshake",
    "InvalidPayload",
    "InvalidToken",
    "JoinError",
    "LaterReply",
    "Limits",
    "LogContext",
    "LogOptions",
    "LongPoll",
    "Payload",
    "Presence",
    "PresenceDiff",
    "PresenceError",
    "PresenceTiming",
    "ProtocolError",
    "PublishError",
    "Publisher",
    "Rate",
    "Reply",
    "Serializer",
    "SerializerError",
    "Socket",
    "Statistics",
    "WhenSlow",
    "channel",
    "latest_by_key",
]
