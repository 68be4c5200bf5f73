"""Log lines of joins and events: the connection, its `socket_id`, and the payload without secret values."""

import logging
from functools import partial

from starlette_channels.channels.client import ChannelClient
from starlette_channels.observability.error_log import Lazily
from starlette_channels.wire.messages import Message

logger: logging.Logger = logging.getLogger("starlette_channels.channel")


def describe_client(client: ChannelClient) -> str:
    """Return the number of a connection, and its `socket_id` if it has one."""
    return f"connection {client.number}" + (f" of {client.socket_id!r}" if client.socket_id is not None else "")


def log_message(level: int | None, channel: object, what: str, client: ChannelClient, message: Message) -> None:
    """Log a message with its payload, if a level is set and enabled."""
    if level is not None and logger.isEnabledFor(level):
        payload = client.parameters.show(message.payload)
        logger.log(level, "%r: %s, %s, parameters %s", channel, what, describe_client(client), payload)


def log_refusal(level: int | None, channel: object, code: str, client: ChannelClient, message: Message) -> None:
    """Count a refused join, and log it with its payload, if a level is set."""
    if level is None:
        client.counts[code] += 1
        return
    who, parameters = Lazily(partial(describe_client, client)), Lazily(partial(client.parameters.show, message.payload))
    text = "%r: refused, %s, %s, parameters %s"
    client.error_log.note(code, logger, text, channel, code, who, parameters, level=level)
