"""`FrameReader` and the parser of the `websockets` library read the same streams, good and bad, and must agree.

`python -m tests.fuzzing.frames --streams 1000000` compares a million, which takes some minutes, beginning with one that
is picked at random; the tests compare ten thousand. A stream on which the two disagree is told by its number.
"""

import argparse
import codecs
import random
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import NamedTuple, Self

from websockets.frames import Frame
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.utils import apply_mask

from starlette_channels.transports.uvicorn_lane.frames import Close, Event, Failure, FrameReader, Ping, Pong
from tests.fuzzing.streams import FINAL, MASKED, stream

WORTH_SEEING = (
    *("str", "bytes", "Ping", "Pong", "Close", "Failure 1002", "Failure 1007", "Failure 1009"),
    *("reserved bits, 1002", "control frame in fragments, 1002", "long form", "out of order, 1002", "top bit, 1009"),
    *("limit", "close within a message"),
)
"""Events, and differences on purpose, which a comparison that is worth anything has met with."""


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
    """The events, without the reasons of failures; where frames end or should; what the library sees differently."""

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
        ends.append(stop)
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
        at = stop
    return found


def allow(library: ServerProtocol, max_bytes: int | None) -> None:
    """Change the limit of messages, between two frames."""
    setattr(library, "max_message_size" if hasattr(library, "max_message_size") else "max_size", max_bytes)


def unmasked(frame: bytes, start: int) -> bytes:
    """What there is of its payload."""
    return apply_mask(frame[start:], frame[start - 4 : start]) if len(frame) >= start else b""


def ways(data: bytes, ends: list[int], random: Random) -> Iterator[list[int]]:
    """Where to cut a stream."""
    yield []
    yield [end for end in ends if end < len(data)]
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
        assert ours == found.events, f"at most {max_bytes} bytes, cut at {cuts}: {data.hex()}"
    return found


def kind(event: Event) -> str:
    return f"{type(event).__name__} {event.code}" if isinstance(event, Failure) else type(event).__name__


def compare_all(numbers: range) -> Counter[str]:
    """Compare streams; tell what has been seen how often. Raises at the first that differs."""
    seen = Counter[str]()
    for number in numbers:
        try:
            found = compare(number)
        except BaseException as error:
            error.add_note(f"Once more: python -m tests.fuzzing.frames --streams 1 --seed {number}")
            raise
        seen.update(map(kind, found.events))
        seen.update(found.differences)
    rare = {what: seen[what] for what in WORTH_SEEING if seen[what] < len(numbers) // 1000}
    assert not rare, rare
    return seen


def main() -> None:
    """Compare as many streams as the command line says."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzzing.frames")
    options.add_argument("--streams", type=int, default=1_000_000, help="how many")
    options.add_argument("--seed", type=int, default=random.randrange(1 << 40), help="number of the first one")
    asked = options.parse_args()
    start = time.perf_counter()
    seen = compare_all(range(asked.seed, asked.seed + asked.streams))
    print(f"{asked.streams} streams from {asked.seed} on, in {time.perf_counter() - start:.0f} s: no difference")
    print(", ".join(f"{times} {what}" for what, times in seen.most_common()))


if __name__ == "__main__":
    main()
