"""The names of channels between processes: topics, and the lines on which the library talks to itself."""

import base64
import hashlib

_TOPIC = "t:"
_LINE = "x:"

MAX_TOKEN = 100
MAX_BYTES = 200


def topic_channel(topic: str) -> str:
    """Return the channel of a topic."""
    return _TOPIC + topic


def line_channel(name: str) -> str:
    """Return the channel of a line."""
    return _LINE + name


COMMANDS = line_channel("commands")
"""Where processes tell each other what to do to the clients of an identity; all that have clients hear it."""


def is_topic(channel: str) -> bool:
    """Whether a channel is that of a topic."""
    return channel.startswith(_TOPIC)


def name_of(channel: str) -> str:
    """Return the topic of a channel, or the name of its line."""
    return channel[len(_TOPIC) :]


def as_bytes(name: str) -> bytes:
    """Return a name of any length as bytes, from which `from_bytes` makes it again, lone surrogates included."""
    return name.encode("utf-8", "surrogatepass")


def from_bytes(name: bytes) -> str:
    """Return what `as_bytes` was given."""
    return name.decode("utf-8", "surrogatepass")


def as_short_bytes(channel: str) -> bytes:
    """Return a channel's name for an engine that takes any bytes: 201 bytes at most, whatever the channel.

    A name of over 200 bytes becomes its beginning and its SHA-256. That is always 201 bytes, so no shorter channel,
    which a client may choose, can have the same name.
    """
    data = as_bytes(channel)
    if len(data) <= MAX_BYTES:
        return data
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[: MAX_BYTES - len(digest)] + b"~" + digest


def as_token(channel: str) -> str:
    """Return a channel's name for an engine with a syntax of its own: letters, digits, `-`, `_` and `=` only, and 100
    of them at most.

    It is base64, whose length is a multiple of four. A name that is too long for that becomes the beginning of it and
    the SHA-256, 97 characters, so no shorter channel can have the same name.
    """
    data = as_bytes(channel)
    token = base64.urlsafe_b64encode(data[:MAX_TOKEN]).decode()
    if len(token) <= MAX_TOKEN:
        return token
    return f"{token[:32]}_{hashlib.sha256(data).hexdigest()}"
