"""`FrameReader` and the parser of the `websockets` library read the same streams, good and bad, and must agree.

Each stream is made from its number alone, and a failure tells it: `compare(number)` repeats it. By default there are
50,000; `FUZZED_STREAMS=1000000` in the environment asks for more.
"""

import codecs
import os
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import NamedTuple, Self

import pytest
from websockets.frames import Frame
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.utils import apply_mask

from starlette_channels.frames import Close, Event, Failure, FrameReader, Ping, Pong

STREAMS = int(os.environ.get("FUZZED_STREAMS", "50000"))
BLOCKS = 10
FINAL, MASKED = 0x80, 0x80
TEXTS = (
    "",
    "a",
    "hello",
    '["1","2","room:a","new_msg",{}]',
    "é",
    "κόσμε",
    "🎈",
    "\0",
    "\ufeff",
    "\U0010ffff",
    "x" * 40,
)
NOT_UTF_8 = (
    b"\x80",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xff",
    b"a\xc3",
    b"\xf0\x9f\x8e",
    b"\xe2\x82A",
)
CODES = (1000, 1001, 1002, 1011, 1014, 3000, 4999, 0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535)
SIZES = (*range(10), 124, 125, 126, 127, 128, 200, 1000)
LIMITS = (0, 1, 5, 30, 125, 126, 127, 300, *[100_000] * 8)
WORTH_SEEING = (
    *("str", "bytes", "Ping", "Pong", "Close", "Failure 1002", "Failure 1007", "Failure 1009"),
    *("reserved bits, 1002", "control frame in fragments, 1002", "long form", "out of order, 1002", "top bit, 1009"),
    *("limit", "close within a message"),
)


# Streams


class Stream(NamedTuple):
    """What a client sends, and the longest message that it may send."""

    data: bytes
    max_bytes: int


def encoded(random: Random, first: int, payload: bytes, *, size: int | None = None, mask: bool = True) -> bytes:
    """A frame; `size` is what it says of its length, if that is not true. Now and then that is in too long a form."""
    size = len(payload) if size is None else size
    form = 0 if size < 126 else 2 if size < 1 << 16 else 8
    if random.random() < 0.05:
        form = random.choice([2, 8]) if form < 8 and size < 1 << 16 else 8
    second = {0: size, 2: 126, 8: 127}[form]
    head = bytes((first, second | MASKED if mask else second)) + (size.to_bytes(form, "big") if form else b"")
    key = random.randbytes(4)
    return head + key + apply_mask(payload, key) if mask else head + payload


def payload(random: Random, *, text: bool) -> bytes:
    chance = random.random()
    if chance < 0.1:
        return b"x" * random.choice(SIZES)
    if text:
        data = "".join(random.choices(TEXTS, k=random.randrange(4))).encode()
        return data if chance < 0.95 else data + random.choice(NOT_UTF_8) + b"y" * random.randrange(3)
    return random.randbytes(random.randrange(20))


def control(random: Random) -> bytes:
    size = random.choice((0, 1, 5, 125)) if random.random() < 0.95 else 126
    return encoded(random, random.choice((0x89, 0x8A)), random.randbytes(size))


def closing(random: Random) -> bytes:
    data = random.choice(CODES).to_bytes(2, "big") + payload(random, text=True)[:124]
    return encoded(random, 0x88, random.choice((data, data, data, data[:2], data[:1], b"")))


def message(random: Random) -> bytes:
    """A message in fragments, cut anywhere, with control frames between them."""
    text = random.random() < 0.7
    data = payload(random, text=text)
    cuts = sorted(random.choices(range(len(data) + 1), k=random.randrange(4)))
    pieces = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    made = b""
    for i, piece in enumerate(pieces):
        final = FINAL if i == len(pieces) - 1 else 0
        made += encoded(random, final | (0 if i else 1 if text else 2), piece)
        if random.random() < 0.2:
            made += control(random) if random.random() < 0.9 else closing(random)
    return made


def wild(random: Random) -> bytes:
    """A frame that may be anything."""
    data = payload(random, text=random.random() < 0.5)
    size = random.choice((None, None, len(data) + 1, random.choice(SIZES), 1 << random.randrange(64), 1 << 63))
    first = random.choice((0x81, 0x02, 0x09, random.randrange(256)))
    return encoded(random, first, data, size=size, mask=random.random() < 0.9)


def frames(random: Random) -> bytes:
    made = b""
    for _ in range(random.randrange(1, 6)):
        chance = random.random()
        if chance < 0.45:
            text = random.random() < 0.7
            made += encoded(random, 0x81 if text else 0x82, payload(random, text=text))
        elif chance < 0.75:
            made += message(random)
        elif chance < 0.93:
            made += control(random)
        elif chance < 0.98:
            made += wild(random)
        else:
            made += closing(random)
    return made + closing(random) if random.random() < 0.2 else made


def mutated(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    match random.randrange(6):
        case 0:  # some bits
            changed = bytearray(data)
            for _ in range(random.randrange(1, 4)):
                changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
            return bytes(changed)
        case 1:  # the beginning only
            return data[:at]
        case 2:  # a part taken out, or doubled
            return data[:at] + data[random.randrange(len(data) + 1) :]
        case 3:  # the beginning of one stream and the end of another one
            other = frames(random)
            return data[:at] + other[random.randrange(len(other) + 1) :]
        case 4:  # some bytes put in
            return data[:at] + random.randbytes(random.randrange(1, 4)) + data[at:]
        case _:  # nothing of it
            return random.randbytes(random.randrange(1, 40))


def stream(number: int) -> Stream:
    """The stream of this number."""
    random = Random(number)
    data = frames(random)
    return Stream(data if random.random() < 0.4 else mutated(random, data), random.choice(LIMITS))


# What is to come of them


class Head(NamedTuple):
    """How a frame begins; a length counts as nothing until all of it is there."""

    opcode: int
    final: bool
    reserved: bool
    masked: bool
    short: int
    length: int
    start: int

    @classmethod
    def of(cls, data: bytes) -> Self:
        first, second = data[:2]
        short = second & 0x7F
        size = {126: 2, 127: 8}.get(short, 0)
        field = data[2 : 2 + size]
        length = short if not size else int.from_bytes(field, "big") if len(field) == size else 0
        return cls(first & 0x0F, first >= FINAL, first & 0x70 > 0, second >= MASKED, short, length, 2 + size + 4)

    @property
    def control(self) -> bool:
        return self.opcode >= 8

    @property
    def known(self) -> bool:
        """Whether the library, too, does not fail on the first two bytes already."""
        return self.masked and self.opcode in (0, 1, 2, 8, 9, 10)

    def breaks(self, *, within: bool) -> str:
        """Which rule is broken, of those that the library sees to later or not at all."""
        if self.reserved:
            return "reserved bits"
        if self.control:
            return "long form" if self.short > 125 else "" if self.final else "control frame in fragments"
        if (self.opcode == 0) != within:
            return "out of order"
        return "top bit" if self.length >> 63 else ""


class Expected(NamedTuple):
    """The events, without the reasons of failures; where frames end; what the library has another opinion on."""

    events: list[Event]
    ends: list[int]
    differences: list[str]


def expected(data: bytes, max_bytes: int) -> Expected:
    """What the library makes of a stream. It does not decode text and puts no fragments together: that is done here.

    We differ from it on purpose, by the RFC, in these and no other things:

    - A header that breaks a rule is a protocol error at once. The library reads the payload first, which may be long
      and may never come; or calls it too big, as it does whenever a length has the top bit.
    - The length of a control frame is in its second byte (§5.5). The library takes the longer forms, too.
    - A control frame is no part of a message (§5.4), so it may be longer than what the message may still have,
    - and a client may close within a message. In the library both are errors.
    """
    library = ServerProtocol(state=State.OPEN, max_size=max_bytes)
    events, ends, differences = found = Expected([], [], [])
    decoder: codecs.IncrementalDecoder | None = None
    text, binary = "", b""
    held: int | None = None  # bytes of the message that has not ended
    at = 0
    while len(data) - at >= 2:
        head = Head.of(data[at : at + 10])
        stop = at + head.start + head.length
        frame = data[at:stop]
        if head.known and (rule := head.breaks(within=held is not None)):
            full = Head.of(frame.ljust(10, b"\0"))
            library.receive_data(frame.ljust(min(full.start + full.length, max_bytes + 14), b"\0"))
            code = library.close_sent and library.close_sent.code
            assert code in (1002, 1009) or (rule == "long form" and full.length <= 125), (rule, code)
            differences.append(f"{rule}, {code}" if code in (1002, 1009) else rule)
            events.append(Failure(1002, ""))
            break
        if beyond := head.control and head.length > max_bytes - (held or 0):
            differences.append("limit")
            allow(library, None)
        library.receive_data(frame)
        if beyond:
            allow(library, max_bytes)
        if library.close_rcvd is not None:
            if library.parser_exc is not None:
                differences.append("close within a message")
            events.append(Close(library.close_rcvd.code, library.close_rcvd.reason))
            break
        if library.parser_exc is not None:
            assert library.close_sent is not None
            events.append(Failure(library.close_sent.code, ""))
            break
        whole = [bytes(one.data) for one in library.events_received() if isinstance(one, Frame)]
        if head.control:
            events.extend(map(Ping if head.opcode == 9 else Pong, whole))
        else:
            if head.opcode:
                text, binary = "", b""
                decoder = codecs.getincrementaldecoder("utf-8")() if head.opcode == 1 else None
            held = None if head.final else (held or 0) + head.length
            ends_here = head.final and bool(whole)
            part = whole[0] if whole else unmasked(frame, head.start)
            try:
                text += decoder.decode(part, ends_here) if decoder else ""
            except UnicodeDecodeError:
                events.append(Failure(1007, ""))
                break
            binary += part
            if ends_here:
                events.append(text if decoder else binary)
        ends.append(stop)
        at = stop
    return found


def allow(library: ServerProtocol, max_bytes: int | None) -> None:
    """Change the limit of messages, between two frames."""
    setattr(library, "max_message_size" if hasattr(library, "max_message_size") else "max_size", max_bytes)


def unmasked(frame: bytes, start: int) -> bytes:
    """What there is of its payload."""
    return apply_mask(frame[start:], frame[start - 4 : start]) if len(frame) >= start else b""


# The comparison


def ways(data: bytes, ends: list[int], random: Random) -> Iterator[list[int]]:
    """Where to cut a stream."""
    yield []
    yield ends
    yield sorted(random.choices(range(len(data) + 1), k=random.randrange(1, 8)))
    if len(data) < 150 or random.random() < 0.05:
        yield list(range(1, len(data)))


def read(data: bytes, cuts: list[int], max_bytes: int) -> list[Event]:
    """What we make of it, without the reasons of failures."""
    reader = FrameReader(max_bytes)
    events = [event for start, stop in pairwise([0, *cuts, len(data)]) for event in reader.feed(data[start:stop])]
    return [Failure(event.code, "") if isinstance(event, Failure) else event for event in events]


def compare(number: int) -> Expected:
    data, max_bytes = stream(number)
    found = expected(data, max_bytes)
    for cuts in ways(data, found.ends, Random(number)):
        ours = read(data, cuts, max_bytes)
        assert ours == found.events, f"stream {number}: {data.hex()}, at most {max_bytes} bytes, cut at {cuts}"
    return found


def kind(event: Event) -> str:
    return f"{type(event).__name__} {event.code}" if isinstance(event, Failure) else type(event).__name__


@pytest.mark.parametrize("block", range(BLOCKS))
def test_both_read_the_same_and_fail_for_the_same(block: int) -> None:
    seen = Counter[str]()
    for number in range(block * STREAMS // BLOCKS, (block + 1) * STREAMS // BLOCKS):
        found = compare(number)
        seen.update(map(kind, found.events))
        seen.update(found.differences)
    rare = {what: seen[what] for what in WORTH_SEEING if seen[what] < STREAMS // BLOCKS // 1000}
    assert not rare, seen


def test_both_accept_the_same_close_codes() -> None:
    for code in (*range(6000), 1 << 15, (1 << 16) - 1):
        data = encoded(Random(0), 0x88, code.to_bytes(2, "big"))
        assert read(data, [], 125) == expected(data, 125).events, code
