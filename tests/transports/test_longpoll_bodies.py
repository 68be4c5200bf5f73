"""What long-poll clients may put into a body: read as it was written, or refused, and never anybody else's trouble."""

import base64
import contextlib
import logging
import os
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlette_channels import ProtocolError, SerializerError
from starlette_channels.transports.longpoll.batches import is_batch, read_lines, read_text, split
from starlette_channels.wire.messages import Frame
from tests.fuzzing import app
from tests.fuzzing.mutate import TOPICS, mutated
from tests.support.effort import some
from tests.support.polling import BEAT, BEATEN, Poller

BODIES = int(os.environ.get("FUZZ_BODIES") or some(of=2_000))
SEED = int(os.environ.get("FUZZ_SEED") or random.randrange(1 << 32))

bounded = settings(max_examples=some(of=60), derandomize=True, database=None, deadline=None)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\n")).map(lambda text: "[" + text)
frames = st.lists(texts.filter(lambda text: not text.endswith("\r")) | st.binary(min_size=1), min_size=1, max_size=20)
line_ends = st.sampled_from([b"\n", b"\r\n"])


def line(frame: Frame) -> bytes:
    return frame.encode() if isinstance(frame, str) else base64.b64encode(frame)


@bounded
@given(frames, line_ends)
def test_a_batch_is_read_as_it_was_written(frames: list[Frame], line_end: bytes) -> None:
    lines, beyond = split(line_end.join(map(line, frames)), 20)
    assert beyond == 0
    assert list(read_lines(lines)) == frames


@bounded
@given(st.integers(0, 12), st.integers(1, 12), line_ends)
def test_of_a_batch_so_many_lines_are_read_and_the_others_counted(lines: int, most: int, line_end: bytes) -> None:
    read, beyond = split(line_end.join([b"[]"] * lines), most)
    assert len(read) == max(1, min(lines, most))  # nothing at all is an empty line, which is malformed
    assert beyond == max(0, lines - most)


@bounded
@given(st.binary(max_size=200) | st.lists(st.sampled_from([b"[", b"\n", b"\r", b"AA==", b"=", b"\xff"])).map(b"".join))
def test_any_body_is_frames_or_a_protocol_error(body: bytes) -> None:
    lines, beyond = split(body, 3)
    assert len(lines) <= 3
    assert beyond <= body.count(b"\n") + 1
    for read in (lambda: list(read_lines(lines)), lambda: [read_text(body)]):
        with contextlib.suppress(ProtocolError):
            assert all(isinstance(frame, str | bytes) for frame in read())


@pytest.mark.parametrize(
    ("content_type", "batch"),
    [
        ("application/x-ndjson", True),
        ("Application/X-NDJSON ; charset=utf-8", True),
        ("application/json", False),
        ("application/x-ndjson2", False),
        ("text/plain; a=application/x-ndjson", False),
        ("", False),
    ],
)
def test_the_content_type_of_a_batch(content_type: str, batch: bool) -> None:
    assert is_batch(content_type) is batch


def body_of(rnd: random.Random) -> bytes:
    """A batch of messages, some of which are none, and now and then broken between them."""
    body = rnd.choice([b"\n", b"\r\n"]).join(
        line(mutated(rnd, fatal=0.05)) if rnd.random() < 0.98 else rnd.randbytes(rnd.randrange(20))
        for _ in range(rnd.randrange(1, 12))
    )
    if rnd.random() < 0.1:
        at = rnd.randrange(len(body) + 1)
        body = body[:at] + rnd.choice([b"\n", b"\r", b"[", b"\x00", b"\xff", b"", b"\n\n"]) + body[at + 1 :]
    return body


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_no_body_ends_a_session_or_shows_what_is_inside(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "starlette_channels")
    rnd = random.Random(SEED)
    channels = app.mount(longpoll=True)
    statuses: Counter[int] = Counter()
    client, honest = await Poller(channels).open(), await Poller(channels).open()
    await honest.join("room:honest")
    for number in range(BODIES // 2):
        if number % 50 == 0:
            await client.post(*[["1", "1", topic, "phx_join", {}] for topic in TOPICS])
            assert await honest.post(BEAT) == 200
            assert BEATEN in (await honest.poll()).frames
        kind = rnd.choice(["application/x-ndjson"] * 4 + ["application/json"])
        answer = await client.request("POST", body_of(rnd), content_type=kind)()
        statuses[answer.status] += 1
        assert answer.status in (200, 400), f"FUZZ_SEED={SEED}"
        assert b"Traceback" not in answer.body
        assert await client.post(BEAT) == 200, f"FUZZ_SEED={SEED}"
        assert BEATEN in (await client.poll()).frames
    assert min(statuses[200], statuses[400]) > BODIES / 40
    asked = (app.Asked, SerializerError)  # the latter by handlers that answer with bytes
    unexpected = [one.exc_text for one in caplog.records if one.exc_info and one.exc_info[0] not in asked]
    assert not unexpected, f"FUZZ_SEED={SEED}"
    async with channels.lifespan():
        pass
    assert channels.statistics().connections == channels.statistics().channels == 0
