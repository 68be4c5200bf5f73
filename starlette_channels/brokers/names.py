"""The names of channels between processes: topics, and the lines on which the library talks to itself."""

_TOPIC = "t:"
_LINE = "x:"


def topic_channel(topic: str) -> str:
    """Return the channel of a topic."""
    return _TOPIC + topic


def line_channel(name: str) -> str:
    """Return the channel of a line."""
    return _LINE + name


def name_of(channel: str) -> str:
    """Return the topic of a channel, or the name of its line."""
    return channel[len(_TOPIC) :]
