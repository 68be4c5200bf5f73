"""What the body of a long-poll POST holds: one frame, or a batch of lines.

Source: Phoenix's `transports/long_poll.ex`, `publish/4`.
"""

import base64
import binascii
import re
from collections.abc import Iterator

from starlette_channels.exceptions import ProtocolError
from starlette_channels.messages import Frame

BATCH = "application/x-ndjson"
"""The content type of a batch; every other one, or none, is that of a single text frame."""

_LINE_END = re.compile(rb"\r?\n")


def is_batch(content_type: str) -> bool:
    """Whether a body of this content type holds lines; its parameters mean nothing."""
    return content_type.partition(";")[0].strip().lower() == BATCH


def split(body: bytes, most: int) -> tuple[list[bytes], int]:
    """Return the first lines of a batch, `most` of them at most, and how many more there are."""
    lines = _LINE_END.split(body, most)
    rest = lines.pop() if len(lines) > most else b""
    return lines, len(_LINE_END.split(rest)) if rest else 0


def read_lines(lines: list[bytes]) -> Iterator[Frame]:
    """Read one line after the other: JSON begins with `[`, everything else is base64 of a binary frame.

    Raises `ProtocolError` at a line that is neither.
    """
    for number, line in enumerate(lines, 1):
        try:
            yield read_text(line) if line.startswith(b"[") else base64.b64decode(line, validate=True)
        except (ProtocolError, binascii.Error) as error:
            raise ProtocolError(f"line {number} of a batch is neither JSON nor base64: {error}") from None


def read_text(body: bytes) -> str:
    """Read a text frame; raises `ProtocolError` if it is not UTF-8."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"text that is not UTF-8: {error}") from None
