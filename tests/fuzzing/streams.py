"""Streams of websocket frames, good and bad, as clients might send them. Each is made from its number alone."""

from random import Random
from typing import NamedTuple

from websockets.utils import apply_mask

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
LONG = (65_535, 65_536)
LIMITS = (0, 1, 5, 30, 125, 126, 127, 300, *[100_000] * 8)


class Stream(NamedTuple):
    """What a client sends, and the longest message that it may send."""

    data: bytes
    max_bytes: int


def encoded(random: Random, first: int, payload: bytes, *, size: int | None = None, mask: bool = True) -> bytes:
    """A frame; `size` is what it says of its length, if that is not true. Now and then that is in too long a form.

    Without a mask, it may be that only the bit is missing that tells of it.
    """
    size = len(payload) if size is None else size
    form = 0 if size < 126 else 2 if size < 1 << 16 else 8
    if random.random() < 0.05:
        form = random.choice([2, 8]) if form < 8 and size < 1 << 16 else 8
    second = {0: size, 2: 126, 8: 127}[form]
    head = bytes((first, second | MASKED if mask else second)) + (size.to_bytes(form, "big") if form else b"")
    key = random.randbytes(4)
    return head + key + apply_mask(payload, key) if mask or random.random() < 0.5 else head + payload


def payload(random: Random, *, text: bool) -> bytes:
    chance = random.random()
    if chance < 0.1:
        return b"x" * random.choice(SIZES if random.random() < 0.99 else LONG)
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
    """A message in fragments, cut anywhere, with control frames between them; now and then without an end."""
    text = random.random() < 0.7
    data = payload(random, text=text)
    cuts = sorted(random.choices(range(len(data) + 1), k=random.randrange(4)))
    pieces = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    last = len(pieces) - 1 if random.random() < 0.95 else None
    made = b""
    for i, piece in enumerate(pieces):
        final = FINAL if i == last else 0
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
