"""Channel names between processes: topics, and lines for internal messages of the library."""

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
"""The channel of commands to clients; server processes, and publishers of commands, subscribe to it."""


def is_topic(channel: str) -> bool:
    """Whether a channel is that of a topic."""
    return channel.startswith(_TOPIC)


def name_of(channel: str) -> str:
    """Return the topic of a channel, or the name of its line."""
    return channel[len(_TOPIC) :]


def as_bytes(name: str) -> bytes:
    """Encode a name of any length, lone surrogates included; `from_bytes` decodes it."""
    return name.encode("utf-8", "surrogatepass")


def from_bytes(name: bytes) -> str:
    """Decode a name that `as_bytes` has encoded."""
    return name.decode("utf-8", "surrogatepass")


def as_short_bytes(channel: str) -> bytes:
    """Return the name of a channel for an engine that takes any bytes: 201 bytes at most.

    A name of over 200 bytes becomes its beginning and its SHA-256, 201 bytes together. Shorter names, which clients may
    choose, never have that length, so they cannot collide with it.
    """
    data = as_bytes(channel)
    if len(data) <= MAX_BYTES:
        return data
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[: MAX_BYTES - len(digest)] + b"~" + digest


def as_token(channel: str) -> str:
    """Return the name of a channel in letters, digits, `-`, `_` and `=`: 100 characters at most.

    For engines that restrict names. It is base64, whose length is a multiple of four. Beyond 100 characters it becomes
    the beginning of the base64 and the SHA-256, 97 characters together, so shorter names cannot collide with it.
    """
    data = as_bytes(channel)
    token = base64.urlsafe_b64encode(data[:MAX_TOKEN]).decode()
    if len(token) <= MAX_TOKEN:
        return token
    return f"{token[:32]}_{hashlib.sha256(data).hexdigest()}"
