"""What the server does to the clients of an identity, in whatever process they are; no broadcast can mean it."""

from typing import TypeAlias

import msgspec
from msgspec import Struct

from starlette_channels.arguments import check_type
from starlette_channels.close_codes import check_close


class Disconnect(Struct, frozen=True, tag="disconnect"):
    """Close the connection. Raises `ValueError` for what no close frame can say."""

    code: int = 1001
    reason: str = "disconnected"

    def __post_init__(self) -> None:
        check_close(self.code, self.reason, code_name="disconnect(code", reason_name="disconnect(reason")

    @property
    def slot(self) -> str:
        """What the command is about: the later of two to one identity with the same slot does for both."""
        return "disconnect"


class Kick(Struct, frozen=True, tag="kick"):
    """End the channel of one topic, and say why if there is a reason. Raises `ValueError` for what is no Unicode."""

    topic: str
    reason: str | None = None

    def __post_init__(self) -> None:
        check_type(self.topic, str, "kick(topic=", "it takes the name of a topic")
        f"{self.topic}{self.reason}".encode()

    @property
    def slot(self) -> str:
        """What the command is about: the later of two to one identity with the same slot does for both."""
        return f"kick {self.topic}"


Command: TypeAlias = Disconnect | Kick


def check_socket_id(socket_id: object, command: Command) -> None:
    """Raise `TypeError` for what no connection has for its name: a number of a user would close nothing, in silence."""
    name = type(command).__name__.lower()
    check_type(
        socket_id, str, f"{name}(socket_id=", "it takes the text that the function of Channels(socket_id=...) returns"
    )


def encode_command(command: Command) -> bytes:
    """Return a command as it travels."""
    return _encode(command)


def decode_command(data: bytes) -> Command:
    """Return the command that has come. Raises `msgspec.MsgspecError` for what is none of ours."""
    return _decode(data)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Command).decode
