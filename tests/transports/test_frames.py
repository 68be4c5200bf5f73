"""WebSocket frames that come from a client: what is read, however it is cut, and which rules a client must keep."""

import gc
import importlib.util
import sys
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from starlette_channels.transports.uvicorn_lane import frames
from starlette_channels.transports.uvicorn_lane.frames import Close, Event, Failure, FrameReader, Ping, Pong

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A
MORE = 0x7F  # `TEXT & MORE` is a text frame that is not the last one
MASK = bytes.fromhex("37fa213d")
PLENTY = 1 << 20


def masked(data: bytes, mask: bytes = MASK) -> bytes:
    masks = mask * (len(data) // 4 + 1)
    return (int.from_bytes(data) ^ int.from_bytes(masks[: len(data)])).to_bytes(len(data))


def header(first: int, size: int, *, form: int | None = None, mask: bool = True) -> bytes:
    """The beginning of a frame, up to the mask; `form` is how many bytes its length has, if not as few as can be."""
    if form is None:
        form = 0 if size < 126 else 2 if size < 1 << 16 else 8
    second = {0: size, 2: 126, 8: 127}[form] | (0x80 if mask else 0)
    return bytes((first, second)) + (size.to_bytes(form, "big") if form else b"")


def frame(first: int, payload: bytes | str = b"", *, form: int | None = None) -> bytes:
    """A frame as a client sends it."""
    data = payload.encode() if isinstance(payload, str) else payload
    return header(first, len(data), form=form) + MASK + masked(data)


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def feed(pieces: Iterable[bytes], max_bytes: int = PLENTY) -> list[Event]:
    reader = FrameReader(max_bytes)
    events = [event for piece in pieces for event in reader.feed(piece)]
    assert all(type(event) is not bytearray for event in events)
    return events


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and in two pieces, cut at every place."""
    yield [data]
    yield bytewise(data)
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


def failure(stream: bytes, max_bytes: int = PLENTY) -> tuple[int, str]:
    """How the reader fails, however the stream is cut."""
    found = {tuple(feed(pieces, max_bytes)) for pieces in splits(stream)}
    assert len(found) == 1
    (last,) = found.pop()
    assert isinstance(last, Failure)
    return last.code, last.reason


VALID: dict[str, tuple[bytes, list[Event]]] = {
    "nothing": (b"", []),
    "a text": (frame(TEXT, "héllo 🎈"), ["héllo 🎈"]),
    "an empty text": (frame(TEXT), [""]),
    "a binary": (frame(BINARY, b"\x00\xff"), [b"\x00\xff"]),
    "an empty binary": (frame(BINARY), [b""]),
    "a zero byte, and the last character there is": (frame(TEXT, "\0\U0010ffff"), ["\0\U0010ffff"]),
    "several": (frame(TEXT, "a") + frame(BINARY, b"b") + frame(TEXT, "c"), ["a", b"b", "c"]),
    "text in fragments": (
        frame(TEXT & MORE, "one ") + frame(CONTINUATION & MORE, "two ") + frame(CONTINUATION, "three"),
        ["one two three"],
    ),
    "binary in fragments": (frame(BINARY & MORE, b"\xff") + frame(CONTINUATION, b"\xfe"), [b"\xff\xfe"]),
    "empty fragments": (frame(TEXT & MORE) + frame(CONTINUATION & MORE) + frame(CONTINUATION), [""]),
    "fragments that cut characters": (
        frame(TEXT & MORE, b"\xf0\x9f") + frame(CONTINUATION & MORE, b"\x8e") + frame(CONTINUATION, b"\x88\xc3\xa9"),
        ["🎈é"],
    ),
    "two messages in fragments": (
        (frame(TEXT & MORE, "a") + frame(CONTINUATION, "b")) + (frame(BINARY & MORE, b"c") + frame(CONTINUATION, b"d")),
        ["ab", b"cd"],
    ),
    "pings and pongs": (frame(PING, b"a") + frame(PONG, b"\xff" * 125), [Ping(b"a"), Pong(b"\xff" * 125)]),
    "pings and pongs between fragments": (
        frame(TEXT & MORE, "a") + frame(PING) + frame(CONTINUATION & MORE) + frame(PONG) + frame(CONTINUATION, "b"),
        [Ping(b""), Pong(b""), "ab"],
    ),
    "an empty close": (frame(CLOSE), [Close(1005, "")]),
    "a close with a code": (close(1000), [Close(1000, "")]),
    "a close with a reason": (close(4999, "über".encode()), [Close(4999, "über")]),
    "a close with the longest reason": (close(1001, b"x" * 123), [Close(1001, "x" * 123)]),
    "a close between fragments": (frame(TEXT & MORE, "a") + close(1001) + frame(CONTINUATION), [Close(1001, "")]),
    "a close, and something after it": (close(1000) + frame(TEXT, "a") + b"\xff", [Close(1000, "")]),
    "lengths that are longer than need be": (
        frame(TEXT, "a", form=2) + frame(TEXT, "b", form=8) + frame(BINARY, form=8),
        ["a", "b", b""],
    ),
    "a marker of a long form that happens to fit the size": (frame(TEXT, "x" * 124, form=2), ["x" * 124]),
    "the other one": (frame(TEXT, "x" * 119, form=8), ["x" * 119]),
}  # fmt: skip


@pytest.mark.parametrize("name", VALID)
def test_what_a_client_sends_is_read_however_it_is_cut(name: str) -> None:
    stream, events = VALID[name]
    for pieces in splits(stream):
        assert feed(pieces) == events, pieces


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 124, 125, 126, 127, 200, 65_535, 65_536, 200_000])
@pytest.mark.parametrize("step", [1_000_000, 65_536, 100, 7])
def test_messages_of_every_form_of_length_are_read(size: int, step: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    text = "".join("aé€🎈"[i % 4] for i in range(size))[: max(0, size // 3)]
    stream = frame(BINARY, data) + frame(TEXT, text)
    assert feed(stream[at : at + step] for at in range(0, len(stream), step)) == [data, text]


def test_what_looks_like_a_whole_message_is_none_where_another_has_not_ended() -> None:
    text = frame(TEXT, "b")
    assert feed([frame(TEXT & MORE, "a"), text]) == [Failure(1002, "message within a message")]
    for start, event in ((header(BINARY, len(text)), text), (header(PING, len(text)), Ping(text))):
        assert feed([start + bytes(4), text]) == [event]


def test_a_frame_without_a_mask_is_none_with_one_though_its_size_fits() -> None:
    assert feed([header(TEXT, 5, mask=False) + MASK + masked(b"hello")]) == [Failure(1002, "frame is not masked")]


def test_the_examples_of_the_rfc_are_read() -> None:
    assert feed([bytes.fromhex("818537fa213d7f9f4d5158")]) == ["Hello"]
    assert feed([bytes.fromhex("8a8537fa213d7f9f4d5158")]) == [Pong(b"Hello")]


@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"abcd"])
def test_any_mask_will_do(mask: bytes) -> None:
    stream = header(TEXT, 7) + mask + masked(b"payload", mask)
    for pieces in splits(stream):
        assert feed(pieces) == ["payload"]


# What a client must not do: bytes that are wrong as soon as they are there, none too many, and how that is told.
WRONG: dict[str, tuple[bytes, int, str]] = {
    **{
        f"first byte {first:02x}": (bytes((first, 0x80)), 1002, "reserved bits or an unknown opcode")
        for first in (0xC1, 0xA1, 0x91, 0xC9, 0x83, 0x84, 0x85, 0x86, 0x87, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F)
    },
    "text without a mask": (b"\x81\x01", 1002, "frame is not masked"),
    "empty ping without a mask": (b"\x89\x00", 1002, "frame is not masked"),
    "long binary without a mask": (b"\x82\x7e", 1002, "frame is not masked"),
    "ping in fragments": (b"\x09\x80", 1002, "control frame in fragments"),
    "close in fragments": (b"\x08\x80", 1002, "control frame in fragments"),
    "ping of 126 bytes": (b"\x89\xfe", 1002, "control frame too long"),
    "close of 126 bytes": (b"\x88\xfe", 1002, "control frame too long"),
    "continuation of nothing": (b"\x80\x80", 1002, "continuation of no message"),
    "first fragment of a continuation of nothing": (b"\x00\x80", 1002, "continuation of no message"),
    "binary within a text": (frame(TEXT & MORE, "a") + b"\x82\x80", 1002, "message within a message"),
    "fragment of a text within a binary": (frame(BINARY & MORE) + b"\x01\x80", 1002, "message within a message"),
    "length with the top bit": (b"\x82\xff\x80" + bytes(7), 1002, "length out of range"),
    "greatest length": (b"\x82\xff" + b"\xff" * 8, 1002, "length out of range"),
    "close of one byte": (frame(CLOSE, b"\x03"), 1002, "invalid close code"),
    **{
        f"close with {code}": (close(code, b"?"), 1002, "invalid close code")
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65_535)
    },
    "close with a wrong reason": (close(1000, b"\xff"), 1007, "text is not UTF-8"),
    "close with half a character": (close(1000, b"\xc3"), 1007, "text is not UTF-8"),
    "text of half a character": (frame(TEXT, b"a\xc3"), 1007, "text is not UTF-8"),
    "text in fragments, half a character at the end": (
        frame(TEXT & MORE, "a") + frame(CONTINUATION, b"\xe2\x82"), 1007, "text is not UTF-8"
    ),
    "text in fragments, then nothing that would end its character": (
        frame(TEXT & MORE, b"\xe2\x82") + frame(CONTINUATION), 1007, "text is not UTF-8"
    ),
    "too long": (header(TEXT, PLENTY + 1), 1009, f"message of more than {PLENTY} bytes"),
    "much too long": (header(BINARY, (1 << 63) - 1), 1009, f"message of more than {PLENTY} bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_rule_ends_the_reading_with_its_code(name: str) -> None:
    stream, code, reason = WRONG[name]
    assert failure(stream) == (code, reason)


@pytest.mark.parametrize("name", WRONG)
def test_it_is_noticed_with_the_byte_that_breaks_the_rule(name: str) -> None:
    stream = WRONG[name][0]
    assert feed([stream[:-1]]) == []
    assert feed(bytewise(stream[:-1])) == []


@pytest.mark.parametrize("name", WRONG)
def test_what_came_before_a_broken_rule_is_delivered_first_and_nothing_after_it(name: str) -> None:
    stream, code, reason = WRONG[name]
    first = frame(TEXT, "before") + frame(PING) + frame(BINARY, b"x" * 300)
    for pieces in ([first + stream + frame(TEXT, "after")], bytewise(first + stream + frame(TEXT, "after"))):
        assert feed(pieces) == ["before", Ping(b""), b"x" * 300, Failure(code, reason)]


@pytest.mark.parametrize("end", [b"\xff\xff", close(1000), frame(TEXT, b"\xff"), frame(TEXT & MORE, b"\xff")])
def test_after_the_end_there_is_nothing_for_ever(end: bytes) -> None:
    reader = FrameReader(PLENTY)
    assert len(reader.feed(end)) == 1
    for data in (frame(TEXT, "a"), frame(PING), b"", b"\xff", frame(TEXT & MORE, "a"), frame(CONTINUATION), end):
        assert reader.feed(data) == []


# Sequences whose last byte is the first one that no character can have there (RFC 3629). Of a surrogate that is the
# second byte already, but Python waits for the third.
NOT_UTF_8 = {
    "a continuation byte alone": b"\x80",
    "an overlong slash": b"\xc0",
    "a longer overlong slash": b"\xe0\x80",
    "an even longer one": b"\xf0\x80",
    "a surrogate": b"\xed\xa0\x80",
    "beyond the last character": b"\xf4\x90",
    "no character begins like this": b"\xf5",
    "no byte of any": b"\xff",
    "a character that is cut off by another": b"\xe2\x82A",
    "two beginnings": b"\xf0\x9f\x8e\xf0",
}


@pytest.mark.parametrize("name", NOT_UTF_8)
@pytest.mark.parametrize("before", ["", "κόσμε", "x" * 200])
def test_wrong_text_fails_at_its_first_wrong_byte(name: str, before: str) -> None:
    data = before.encode() + NOT_UTF_8[name]
    wrong = Failure(1007, "text is not UTF-8")
    for start in (
        header(TEXT, len(data) + 1000) + MASK,  # a frame of which much is still to come,
        header(TEXT & MORE, len(data)) + MASK,  # and a message
    ):
        *begun, last = bytewise(start + masked(data))
        assert feed(begun) == []
        assert feed([*begun, last]) == [wrong]
        assert feed([b"".join(begun) + last]) == [wrong]
    assert feed([frame(TEXT, data)]) == [wrong]


def test_wrong_text_in_a_fragment_comes_before_the_ping_that_follows_it() -> None:
    first, wrong = frame(TEXT & MORE, "first") + frame(CONTINUATION), Failure(1007, "text is not UTF-8")
    assert feed([frame(TEXT & MORE, b"\xff") + frame(PING)]) == [wrong]
    assert feed([first + frame(TEXT & MORE, b"\xff") + frame(PING)]) == ["first", wrong]


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_a_close_code_that_may_be_sent_is_read(code: int) -> None:
    assert feed([close(code, b"why")]) == [Close(code, "why")]


@pytest.mark.parametrize("max_bytes", [0, 1, 6, 124, 125, 126, 127, 65_535, 65_536, 100_000])
def test_a_message_may_be_as_long_as_the_limit(max_bytes: int) -> None:
    for step in (1_000_000, 1_000):
        stream = frame(TEXT, "x" * max_bytes) + frame(BINARY, b"x" * max_bytes)
        pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
        assert feed(pieces, max_bytes) == ["x" * max_bytes, b"x" * max_bytes]


@pytest.mark.parametrize("max_bytes", [0, 1, 6, 124, 125, 126, 127, 65_535, 65_536, 100_000])
@pytest.mark.parametrize("first", [TEXT, BINARY, TEXT & MORE, BINARY & MORE])
def test_one_byte_more_fails_with_the_header(max_bytes: int, first: int) -> None:
    too_big = (1009, f"message of more than {max_bytes} bytes")
    assert failure(header(first, max_bytes + 1), max_bytes) == too_big
    assert feed([frame(first, "x" * (max_bytes + 1))], max_bytes) == [Failure(*too_big)]


def test_fragments_together_may_be_as_long_as_the_limit() -> None:
    start = frame(TEXT & MORE, "12345") + frame(PING, b"not counted") + frame(CONTINUATION & MORE, "678")
    assert feed([start + frame(CONTINUATION, "90")], 10) == [Ping(b"not counted"), "1234567890"]
    too_big = Failure(1009, "message of more than 10 bytes")
    assert feed([start + header(CONTINUATION, 3)], 10) == [Ping(b"not counted"), too_big]


def test_each_message_has_the_whole_limit_for_itself() -> None:
    once = frame(TEXT & MORE, "12345") + frame(CONTINUATION, "67890") + frame(BINARY, b"1234567890")
    for pieces in ([once * 3], bytewise(once * 3)):
        assert feed(pieces, 10) == ["1234567890", b"1234567890"] * 3


def test_control_frames_are_not_messages_and_have_no_limit_but_their_own() -> None:
    stream = frame(PING, b"x" * 125) + close(1000, b"x" * 123)
    for pieces in splits(stream):
        assert feed(pieces, 0) == [Ping(b"x" * 125), Close(1000, "x" * 123)]


def seconds(pieces: Iterable[bytes], max_bytes: int) -> tuple[float, list[Event]]:
    reader, events = FrameReader(max_bytes), list[Event]()
    start = time.process_time()
    for piece in pieces:
        events += reader.feed(piece)
    return time.process_time() - start, events


@pytest.mark.parametrize("first", [TEXT, BINARY])
def test_a_long_message_in_small_pieces_takes_time_in_proportion(first: int) -> None:
    size = 10_000_000
    stream = header(first, size) + bytes(4) + b"x" * size  # a mask of zeros leaves it as it is
    took, (message,) = seconds((stream[at : at + 1024] for at in range(0, len(stream), 1024)), size)
    assert len(message) == size  # pyright: ignore[reportArgumentType]
    assert took < 2  # a twentieth of a second; when each piece copies what is there already, a minute


def test_many_frames_in_one_piece_take_time_in_proportion() -> None:
    took, events = seconds([frame(TEXT, "x") * 150_000 + (frame(TEXT & MORE) + frame(CONTINUATION, "y")) * 50_000], 10)
    assert events == ["x"] * 150_000 + ["y"] * 50_000
    assert took < 3


def test_a_message_in_tiny_pieces_takes_hardly_more_memory_than_it_has_bytes() -> None:
    reader, size = FrameReader(PLENTY), 20_000
    tracemalloc.start()
    try:
        reader.feed(header(TEXT, size) + bytes(4))
        for _ in range(size - 1):
            reader.feed(b"x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * size
    assert reader.feed(b"x") == ["x" * size]


def held(reader: FrameReader) -> int:
    return sum(sys.getsizeof(one) for one in gc.get_referents(reader) if isinstance(one, bytes | bytearray | str))


@pytest.mark.parametrize(
    "stream",
    [
        frame(BINARY, b"x" * 100_000),
        frame(TEXT & MORE, "x" * 100_000) + frame(CONTINUATION),
        frame(TEXT & MORE, "x" * 100_000) + close(1000),
        frame(TEXT & MORE, "x" * 100_000) + b"\xff\xff",
        frame(TEXT, "x" * 100_000) + frame(TEXT, b"\xff"),
    ],
    ids=["whole", "in fragments", "closed", "failed", "failed on text"],
)
def test_nothing_is_held_of_what_is_done(stream: bytes) -> None:
    for step in (1_000_000, 1_000):
        reader = FrameReader(PLENTY)
        for at in range(0, len(stream), step):
            reader.feed(stream[at : at + step])
        assert held(reader) < 200


def test_without_the_c_helper_everything_is_read_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    spec = importlib.util.find_spec(frames.__name__)
    assert spec is not None
    assert spec.loader is not None
    slow: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(slow)
    assert slow.apply_mask.__module__ == "websockets.utils"
    for text in ("", "x", "héllo", "x" * 126, "x" * 70_000):
        assert slow.FrameReader(PLENTY).feed(frame(TEXT, text)) == [text]
        reader = slow.FrameReader(PLENTY)
        assert [event for piece in bytewise(frame(TEXT, text)) for event in reader.feed(piece)] == [text]


def test_the_events_differ_even_where_they_hold_the_same() -> None:
    assert Ping(b"a") != Pong(b"a")
    assert Close(1002, "") != Failure(1002, "")
    assert len({Ping(b"a"), Pong(b"a"), Ping(b"a")}) == 2
