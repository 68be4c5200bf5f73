"""The names of channels between processes: topics, and the lines on which the library talks to itself."""

import base64
import hashlib

_TOPIC = "t:"
_LINE = "x:"

MAX_TOKEN = 100


def topic_channel(topic: str) -> str:
    """Return the channel of a topic."""
    return _TOPIC + topic


def line_channel(name: str) -> str:
    """Return the channel of a line."""
    return _LINE + name


def is_topic(channel: str) -> bool:
    """Whether a channel is that of a topic."""
    return channel.startswith(_TOPIC)


def name_of(channel: str) -> str:
    """Return the topic of a channel, or the name of its line."""
    return channel[len(_TOPIC) :]


def as_bytes(channel: str) -> bytes:
    """Return a channel's name for an engine that takes any bytes; lone surrogates have theirs, too."""
    return channel.encode("utf-8", "surrogatepass")


def as_token(channel: str) -> str:
    """Return a channel's name for an engine with a syntax of its own: letters, digits, `-`, `_` and `=` only, and 100
    of them at most. A name that is too long for that is hashed.
    """
    data = as_bytes(channel)
    token = base64.urlsafe_b64encode(data).decode()
    return token if len(token) <= MAX_TOKEN else hashlib.blake2b(data, digest_size=24).hexdigest() + "_"
