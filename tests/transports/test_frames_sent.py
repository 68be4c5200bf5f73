"""WebSocket frames that go to a client: byte for byte as in the RFC, and as the `websockets` library sends them."""

import pytest
from websockets.frames import Close, Frame, Opcode

from starlette_channels.transports.uvicorn_lane.frames import (
    binary_frame,
    close_frame,
    ping_frame,
    pong_frame,
    text_frame,
)


def test_the_examples_of_the_rfc_are_what_is_sent() -> None:
    assert text_frame(b"Hello") == bytes.fromhex("810548656c6c6f")
    assert ping_frame(b"Hello") == bytes.fromhex("890548656c6c6f")
    assert pong_frame(b"Hello") == bytes.fromhex("8a0548656c6c6f")
    assert binary_frame(b"x" * 256) == bytes.fromhex("827e0100") + b"x" * 256
    assert binary_frame(b"x" * 65_536) == bytes.fromhex("827f0000000000010000") + b"x" * 65_536


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 1_000_000])
def test_messages_are_sent_as_the_library_sends_them(size: int) -> None:
    data = b"x" * size
    assert text_frame(data) == Frame(Opcode.TEXT, data).serialize(mask=False)
    assert binary_frame(data) == Frame(Opcode.BINARY, data).serialize(mask=False)


@pytest.mark.parametrize("size", [0, 1, 125])
def test_pings_and_pongs_are_sent_as_the_library_sends_them(size: int) -> None:
    data = b"x" * size
    assert ping_frame(data) == Frame(Opcode.PING, data).serialize(mask=False)
    assert pong_frame(data) == Frame(Opcode.PONG, data).serialize(mask=False)


@pytest.mark.parametrize("size", [126, 70_000])
def test_a_ping_or_pong_of_more_than_125_bytes_is_refused(size: int) -> None:
    for build in (ping_frame, pong_frame):
        with pytest.raises(ValueError, match=f"control frame of {size} bytes; it may have 125"):
            build(b"x" * size)


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("", ""),
        ("über", "über"),
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("é" * 62, "é" * 61),
        ("x" + "é" * 61, "x" + "é" * 61),
        ("x" * 122 + "€", "x" * 122),
        ("x" * 120 + "🎈", "x" * 120),
        ("🎈" * 100_000, "🎈" * 30),
        ("half a \ud83c pair", "half a ? pair"),
    ],
)
def test_a_close_is_sent_as_the_library_sends_it_with_what_fits_of_its_reason(reason: str, sent: str) -> None:
    assert close_frame(1011, reason) == Frame(Opcode.CLOSE, Close(1011, sent).serialize()).serialize(mask=False)


def test_an_empty_close_is_answered_with_an_empty_one() -> None:
    assert close_frame(1005, "") == Frame(Opcode.CLOSE, b"").serialize(mask=False)
