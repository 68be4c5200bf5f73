"""Nodes of a JSON text: its lists, its objects and their members, which cost far more to decode than their bytes say.

A megabyte of text is decoded in a millisecond or two, and a megabyte of `[],[],` in a hundred.
"""

from starlette_channels.exceptions import ProtocolError
from starlette_channels.wire.messages import Frame
from starlette_channels.wire.serializers import V1, Serializer, TextOnly

NODE_BYTES = 64
"""Decoding a node costs about as much as decoding so many bytes of a message of usual size."""


class TooManyNodes(ProtocolError):
    """A message has more lists, objects and members than it may."""

    code: str = "too_many_nodes"


def count_nodes(serializer: Serializer, frame: Frame) -> int:
    """Return how many lists, objects and members a message has; those that are written in its strings count as well.

    Costs about two nanoseconds for each. A binary frame has none, unless it is one of version 1, which is JSON.
    """
    if isinstance(frame, str):
        return frame.count("[") + frame.count("{") + frame.count(":")
    wrapped = serializer.wrapped if isinstance(serializer, TextOnly) else serializer
    return frame.count(b"[") + frame.count(b"{") + frame.count(b":") if type(wrapped) is V1 else 0


def weigh(serializer: Serializer, frame: Frame, most_nodes: int) -> int:
    """Return the bytes or characters that a message counts for, with `NODE_BYTES` for each node if that is more.

    Raises `TooManyNodes`.
    """
    nodes = count_nodes(serializer, frame)
    if nodes > most_nodes:
        raise TooManyNodes(f"a message of {nodes} lists, objects and members; it may have {most_nodes}")
    return max(len(frame), NODE_BYTES * nodes)
