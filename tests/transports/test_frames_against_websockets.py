"""`FrameReader` and the parser of `websockets` agree; `python -m tests.fuzzing.frames` compares more streams."""

from random import Random

import pytest

from tests.fuzzing.frames import compare_all, expected, read
from tests.fuzzing.streams import encoded
from tests.support.effort import some

STREAMS, BLOCKS = some(of=10_000), 4


@pytest.mark.parametrize("block", range(BLOCKS))
def test_both_read_the_same_and_fail_for_the_same(block: int) -> None:
    compare_all(range(block * STREAMS // BLOCKS, (block + 1) * STREAMS // BLOCKS))


def test_both_accept_the_same_close_codes() -> None:
    for code in (*range(6000), 1 << 15, (1 << 16) - 1):
        data = encoded(Random(0), 0x88, code.to_bytes(2, "big"))
        assert read(data, [], 125) == expected(data, 125).events, code
