"""What the server does to the clients of an identity, in whatever process they are; no broadcast can mean it."""

from typing import TypeAlias

import msgspec
from msgspec import Struct

REASON_BYTES = 123
"""What a close frame has room for, in UTF-8."""


class Disconnect(Struct, frozen=True, tag="disconnect"):
    """Close the connection. Raises `ValueError` for what no close frame can say."""

    code: int = 1001
    reason: str = "disconnected"

    def __post_init__(self) -> None:
        if self.code not in _CODES and not 3000 <= self.code <= 4999:
            known = ", ".join(map(str, _CODES))
            raise ValueError(f"disconnect(code={self.code}): a server may send {known}, and 3000 to 4999")
        if len(self.reason.encode()) > REASON_BYTES:
            raise ValueError(f"disconnect(reason=...): it takes more than {REASON_BYTES} bytes in UTF-8")

    @property
    def slot(self) -> str:
        """What the command is about: the later of two to one identity with the same slot does for both."""
        return "disconnect"


class Kick(Struct, frozen=True, tag="kick"):
    """End the channel of one topic, and say why if there is a reason. Raises `ValueError` for what is no Unicode."""

    topic: str
    reason: str | None = None

    def __post_init__(self) -> None:
        f"{self.topic}{self.reason}".encode()

    @property
    def slot(self) -> str:
        """What the command is about: the later of two to one identity with the same slot does for both."""
        return f"kick {self.topic}"


Command: TypeAlias = Disconnect | Kick

_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 1014)


def encode_command(command: Command) -> bytes:
    """Return a command as it travels."""
    return _encode(command)


def decode_command(data: bytes) -> Command:
    """Return the command that has come. Raises `msgspec.MsgspecError` for what is none of ours."""
    return _decode(data)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Command).decode
