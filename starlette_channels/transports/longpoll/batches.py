"""Batches: the body of a long-poll POST is one frame, or a batch with a frame in each line.

Source: Phoenix's `transports/long_poll.ex`, `publish/4`.
"""

import base64
import binascii
import sys
from collections.abc import Iterable, Iterator

from starlette_channels.exceptions import ProtocolError
from starlette_channels.wire.messages import Frame

BATCH = "application/x-ndjson"
"""The content type of a batch; with any other, or none, the body is a single text frame."""


def is_batch(content_type: str) -> bool:
    """Whether a body of this content type is a batch; parameters of the type are ignored."""
    return content_type.partition(";")[0].strip().lower() == BATCH


def split(body: bytes | bytearray, most: int) -> tuple[list[bytes | bytearray], int]:
    """Return the first `most` lines of a batch, and the number of lines after them, which are not copied."""
    lines: list[bytes | bytearray] = [*body.split(b"\n", most)]
    rest = lines.pop() if len(lines) > most else None
    ended = len(lines) if rest is not None else len(lines) - 1
    for number in range(ended):
        if lines[number].endswith(b"\r"):
            lines[number] = lines[number][:-1]
    return lines, rest.count(b"\n") + 1 if rest else 0


def read_lines(lines: Iterable[bytes | bytearray], most_bytes: int = sys.maxsize) -> Iterator[Frame]:
    """Decode lines one by one: JSON begins with `[`, everything else is base64 of a binary frame.

    Raises `ProtocolError` at a line that is neither, and at one of over `most_bytes`, which is not decoded.
    """
    for number, line in enumerate(lines, 1):
        is_text = line.startswith(b"[")
        if (len(line) if is_text else len(line) // 4 * 3 - 2) > most_bytes:
            raise ProtocolError(f"a message of over {most_bytes} bytes")
        try:
            frame = read_text(line) if is_text else base64.b64decode(line, validate=True)
        except (ProtocolError, binascii.Error) as error:
            raise ProtocolError(f"line {number} of a batch is neither JSON nor base64: {error}") from None
        if not is_text and len(frame) > most_bytes:
            raise ProtocolError(f"a message of over {most_bytes} bytes")
        yield frame


def read_text(body: bytes | bytearray) -> str:
    """Decode a text frame; raises `ProtocolError` if it is not UTF-8."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"text that is not UTF-8: {error}") from None
