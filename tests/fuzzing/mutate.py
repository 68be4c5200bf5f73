"""Mutations of valid messages: some stay messages, some stop being any."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.fuzzing.wire import Frame, binary, text

TOPICS = ["room:honest", "room:a", "room:b", "room:slow", "room:refused", "room:crash", "any:x", "typed:7", "phoenix"]
EVENTS = [
    *(
        "phx_join",
        "phx_leave",
        "phx_reply",
        "phx_close",
        "phx_error",
        "heartbeat",
        "disconnect",
        "nope",
        "stop",
        "crash",
    ),
    *("echo", "new_msg", "shout", "relay", "wait", "later", "bin"),
]
REFS: list[Any] = ["1", "2", None, 1, "1 ", "01", 1.0, True]
PAYLOADS: list[Any] = [
    {},
    {"body": "hi"},
    {"body": "hi", "count": 3},
    {"greet": True},
    {"a": [1, {"b": []}]},
    None,
    [],
    "x",
    5,
]
# Most messages should reach a handler: topics that are joined, with the join_ref of that join.
OFTEN = {
    "topic": ([12, 12, 12, 3, 1, 1, 6, 3, 1], TOPICS),
    "event": ([6, 2, 1, 1, 1, 1, 1, 1, 1, 1, *[7] * 7], EVENTS),
    "join_ref": ([40, *[1] * 7], REFS),
    "payload": ([4, 8, 4, 4, 4, 1, 1, 1, 1], PAYLOADS),
}


ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, -(2**70), 10**400, 1e308, 5e-324),
    *("", " ", "\0", "\n", "\u2028", "é", "😀", "\ufeff", "\ufffd", "a\u0300", "\u202e", "null", "x" * 300, "*", ":"),
    *([], {}, [[]], [None] * 50, {"": ""}, {"status": "ok", "response": {}}, {"__proto__": 1}, {"toJSON": "x"}),
]
# What no JSON encoder writes, but a client can.
RAW = [
    *("1e999", "-1e999", "NaN", "Infinity", "01", "1.", ".5", "+1", "0x10", "9" * 5_000, "1 2", "/**/1", "nul", "'a'"),
    *(
        r'"\ud800"',
        r'"\udc00\ud800"',
        r'"\u0000"',
        r'"\x"',
        '"\x01"',
        "\t1",
        "\x0c1",
        "[",
        "{",
        '"',
        "",
        ",",
        "[" * 10_000,
    ),
    *('{"a":1,"a":2}', '{"a":1,}', "[1,]", *("[" * levels + "]" * levels for levels in (50, 500, 985, 5_000))),
]


def message(rnd: random.Random) -> list[Any]:
    """A version 2 message that could have been meant."""
    join_ref, topic, event, payload = (
        rnd.choices(choices, weights)[0]
        for weights, choices in (OFTEN[name] for name in ("join_ref", "topic", "event", "payload"))
    )
    return [join_ref, rnd.choice(REFS), topic, event, payload]


def in_shape(rnd: random.Random) -> Frame:
    """An array with an element, or several, that are not what they should be."""
    elements = message(rnd)
    for _ in range(rnd.choice((0, 1, 1, 1, 2, 3))):
        elements[rnd.choice((0, 1, 2, 3, 4, 4, 4))] = rnd.choice(ODD)
    if rnd.random() < 0.05:
        rnd.shuffle(elements)
    elements += [rnd.choice(ODD) for _ in range(rnd.choice((0, 0, 0, 1, 4)))]
    return json.dumps(elements, ensure_ascii=rnd.random() < 0.5, indent=rnd.choice((None, None, None, 1)))


def with_duplicates(rnd: random.Random) -> Frame:
    """A payload with keys that come twice, and an array with elements that do."""
    pairs = [f'"{rnd.choice(("body", "count", ""))}":{json.dumps(rnd.choice(ODD))}' for _ in range(rnd.randrange(2, 6))]
    head = [json.dumps(one) for one in message(rnd)[:4]]
    return f"[{','.join([*head, '{' + ','.join(pairs) + '}'])}]"


def binary_in_shape(rnd: random.Random) -> Frame:
    """A binary push whose names and bytes are anything."""
    _, _, topic, event, _ = message(rnd)
    odd = ("", "\0", "é", "x" * 255)
    names = ["1", "2", topic, rnd.choice((event, "bin", "echo"))]
    if rnd.random() < 0.3:
        names[rnd.randrange(4)] = rnd.choice(odd)
    return binary(names[0], names[1], names[2], names[3], rnd.randbytes(rnd.choice((0, 1, 20, 300, 3_000))))


def out_of_shape(rnd: random.Random) -> Frame:
    """An array with something in it that no encoder writes."""
    elements = [json.dumps(one) for one in message(rnd)]
    elements[rnd.randrange(5)] = rnd.choice(RAW)
    return (
        f"[{rnd.choice((',', ',', ', ', ',,', ''))}".rstrip(",")
        + ",".join(elements)
        + rnd.choice(("]", "]", "]]", "", "}"))
    )


def flipped(rnd: random.Random) -> Frame:
    """A few bits are wrong."""
    frame = valid(rnd)
    data = bytearray(frame.encode() if isinstance(frame, str) else frame)
    for _ in range(rnd.choice((1, 1, 2, 5))):
        data[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
    # As text it must stay UTF-8: what is not never reaches the application.
    return bytes(data) if isinstance(frame, bytes) else data.decode(errors="replace")


def cut(rnd: random.Random) -> Frame:
    """The end, the beginning or the middle is missing."""
    frame = valid(rnd)
    start, end = sorted((rnd.randrange(len(frame) + 1), rnd.randrange(len(frame) + 1)))
    if isinstance(frame, str):
        return rnd.choice((frame[:end], frame[start:], frame[:start] + frame[end:]))
    return rnd.choice((frame[:end], frame[start:], frame[:start] + frame[end:]))


def spliced(rnd: random.Random) -> Frame:
    """The beginning of one message and the end of another."""
    one, two = valid(rnd), valid(rnd)
    if isinstance(one, str) and isinstance(two, str):
        return one[: rnd.randrange(len(one) + 1)] + two[rnd.randrange(len(two) + 1) :]
    first, second = (frame.encode() if isinstance(frame, str) else frame for frame in (one, two))
    return first[: rnd.randrange(len(first) + 1)] + second[rnd.randrange(len(second) + 1) :]


def junk(rnd: random.Random) -> Frame:
    """Bytes, or letters, of no meaning."""
    data = rnd.randbytes(rnd.choice((0, 1, 4, 5, 6, 100)))
    return data if rnd.random() < 0.5 else data.decode("latin-1")


def wrong_opcode(rnd: random.Random) -> Frame:
    """Text in a binary frame, or the other way round."""
    frame = valid(rnd)
    return frame.encode() if isinstance(frame, str) else frame.decode(errors="replace")


def valid(rnd: random.Random) -> Frame:
    """A message with nothing wrong in its form."""
    join_ref, ref, topic, event, payload = message(rnd)
    if rnd.random() < 0.2:
        return binary("1", "2", topic, "bin" if rnd.random() < 0.5 else event, rnd.randbytes(8))
    return text(join_ref, ref, topic, event, payload)


def version_1(rnd: random.Random) -> Frame:
    """A version 1 message, with something wrong more often than not."""
    join_ref, ref, topic, event, payload = message(rnd)
    fields: dict[str, Any] = {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref}
    for _ in range(rnd.choice((0, 1, 1, 2))):
        fields[rnd.choice(list(fields))] = rnd.choice(ODD)
    parts = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in fields.items()]
    if rnd.random() < 0.1:
        parts.append(f'"{rnd.choice(list(fields))}":{rnd.choice(RAW)}')
    rnd.shuffle(parts)
    whole = "{" + ",".join(parts) + "}"
    if rnd.random() < 0.05:
        whole = whole[: rnd.randrange(len(whole))]
    return whole.encode() if rnd.random() < 0.2 else whole


Mutation = Callable[[random.Random], Frame]
MILD: Sequence[Mutation] = (in_shape, in_shape, in_shape, with_duplicates, binary_in_shape)
"""What most often remains a message, so that the connection lives on."""
FATAL: Sequence[Mutation] = (out_of_shape, flipped, cut, spliced, junk, wrong_opcode)
"""What most often closes the connection."""


def mutated(rnd: random.Random, *, fatal: float) -> Frame:
    """Any mutation of a version 2 message; `fatal` says how often it is one that does not remain a message."""
    return rnd.choice(FATAL if rnd.random() < fatal else MILD)(rnd)


def broken_stream(rnd: random.Random, stream: bytes) -> bytes:
    """A few bytes of a stream of frames are wrong, missing or doubled: headers, lengths, masks or payloads."""
    data = bytearray(stream)
    for _ in range(rnd.randrange(1, 5)):
        at = rnd.randrange(len(data))
        match rnd.randrange(4):
            case 0:
                data[at] ^= 1 << rnd.randrange(8)
            case 1:
                del data[at : at + rnd.randrange(1, 10)]
            case 2:
                data[at:at] = data[at : at + rnd.randrange(1, 30)]
            case _:
                data[at] = rnd.randrange(256)
        data = data or bytearray(b"\0")
    return bytes(data)
