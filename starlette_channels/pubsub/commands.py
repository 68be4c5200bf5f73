"""Commands: disconnect or kick the clients with a `socket_id`, in all processes. Broadcasts cannot express them."""

from typing import TypeAlias

import msgspec
from msgspec import Struct

from starlette_channels.arguments import check_type
from starlette_channels.close_codes import check_close


class Disconnect(Struct, frozen=True, tag="disconnect"):
    """Close the connection. Raises `ValueError` if a close frame cannot carry the code or the reason."""

    code: int = 1001
    reason: str = "disconnected"

    def __post_init__(self) -> None:
        check_close(self.code, self.reason, code_name="disconnect(code", reason_name="disconnect(reason")

    @property
    def slot(self) -> str:
        """Deduplication key: of two commands to a `socket_id` with the same slot, only the later one is kept."""
        return "disconnect"


class Kick(Struct, frozen=True, tag="kick"):
    """Close the channel of one topic, with an optional reason. Raises `ValueError` for lone surrogates."""

    topic: str
    reason: str | None = None

    def __post_init__(self) -> None:
        check_type(self.topic, str, "kick(topic=", "it takes the name of a topic")
        f"{self.topic}{self.reason}".encode()

    @property
    def slot(self) -> str:
        """Deduplication key: of two commands to a `socket_id` with the same slot, only the later one is kept."""
        return f"kick {self.topic}"


Command: TypeAlias = Disconnect | Kick


def check_socket_id(socket_id: object, command: Command) -> None:
    """Raise `TypeError` unless `socket_id` is a `str`: a user's number would match no connection, silently."""
    name = type(command).__name__.lower()
    check_type(
        socket_id, str, f"{name}(socket_id=", "it takes the text that the function of Channels(socket_id=...) returns"
    )


def encode_command(command: Command) -> bytes:
    """Encode a command."""
    return _encode(command)


def decode_command(data: bytes) -> Command:
    """Decode a command. Raises `msgspec.MsgspecError` if it is invalid or unknown."""
    return _decode(data)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Command).decode
