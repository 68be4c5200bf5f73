"""What waits for a client that is behind, and what of it may be dropped: the outbox alone, without a client."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_channels import latest_by_key
from starlette_channels.channels.backpressure import Place
from starlette_channels.transports.send_queue import SendQueue

TICKER, CHAT = object(), object()


def everything(outbox: SendQueue[str]) -> list[str]:
    return [outbox.pop() for _ in range(len(outbox))]


def test_frames_without_a_place_are_all_kept_and_come_back_in_order() -> None:
    outbox = SendQueue[str](10, Counter())
    for number in range(5):
        outbox.add(str(number), 4)
    assert outbox.is_full
    assert (outbox.bytes, len(outbox)) == (20, 5)
    assert everything(outbox) == ["0", "1", "2", "3", "4"]
    assert (outbox.bytes, len(outbox), outbox.is_full) == (0, 0, False)


def test_the_oldest_that_may_go_makes_room() -> None:
    counts = Counter[str]()
    outbox = SendQueue[str](10, counts)
    outbox.add("reply", 4)
    for number in range(4):
        outbox.add(f"picture {number}", 3, Place(CHAT, None))
    assert not outbox.is_full
    assert everything(outbox) == ["reply", "picture 2", "picture 3"]
    assert counts == {"dropped_oldest": 2}


def test_a_reply_makes_nobody_room_and_is_never_dropped() -> None:
    counts = Counter[str]()
    outbox = SendQueue[str](10, counts)
    for _ in range(3):
        outbox.add("reply", 4)
    outbox.add("picture", 1, Place(CHAT, None))
    assert everything(outbox) == ["reply"] * 3, "there is no room for the picture"
    assert counts == {"dropped_oldest": 1}


def test_the_newest_of_a_key_takes_the_place_at_the_end() -> None:
    counts = Counter[str]()
    outbox = SendQueue[str](100, counts)
    outbox.add("EUR 1", 5, Place(TICKER, "EUR"))
    outbox.add("USD 1", 5, Place(TICKER, "USD"))
    outbox.add("EUR 2", 5, Place(TICKER, "EUR"))
    outbox.add("another's", 5, Place(CHAT, "EUR"))
    assert outbox.bytes == 15
    assert everything(outbox) == ["USD 1", "EUR 2", "another's"]
    assert counts == {"dropped_stale": 1}
    outbox.add("EUR 3", 5, Place(TICKER, "EUR"))
    assert everything(outbox) == ["EUR 3"], "what has gone out is not there to be replaced"
    assert counts == {"dropped_stale": 1}


def test_a_key_that_is_none_is_refused_before_anything_is_kept() -> None:
    outbox = SendQueue[str](10, Counter())
    with pytest.raises(TypeError):
        outbox.add("a", 1, Place(TICKER, ("event", ["a list"])))
    assert (outbox.bytes, len(outbox)) == (0, 0)


def test_clearing_forgets_everything() -> None:
    outbox = SendQueue[str](1, Counter())
    outbox.add("a", 1, Place(TICKER, "a"))
    outbox.add("b", 1, Place(TICKER, None))
    outbox.clear()
    outbox.add("c", 1, Place(TICKER, "a"))
    assert everything(outbox) == ["c"]


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["-", None, "x", "y", "pop"])), max_size=60))
def test_what_is_left_is_what_a_list_would_keep(steps: list[tuple[int, str | None]]) -> None:
    counts = Counter[str]()
    outbox = SendQueue[int](20, counts)
    kept: list[tuple[int, int, str | None]] = []
    stale = oldest = 0
    for number, (size, key) in enumerate(steps):
        if key == "pop":
            if kept:
                assert outbox.pop() == kept.pop(0)[0]
            continue
        if key in ("x", "y"):
            older = [entry for entry in kept if entry[2] == key]
            stale += len(older)
            kept = [entry for entry in kept if entry[2] != key]
        kept.append((number, size, key))
        outbox.add(number, size, None if key == "-" else Place(TICKER, key))
        while (key is not None and key != "-") or key is None:
            ageing = [entry for entry in kept if entry[2] is None]
            if sum(entry[1] for entry in kept) <= 20 or not ageing:
                break
            kept.remove(ageing[0])
            oldest += 1
    assert outbox.bytes == sum(size for _, size, _ in kept)
    assert [outbox.pop() for _ in range(len(outbox))] == [number for number, _, _ in kept]
    assert counts == Counter({"dropped_stale": stale, "dropped_oldest": oldest})


def test_a_key_is_a_member_of_the_payload_or_whatever_a_function_says() -> None:
    by_symbol = latest_by_key("symbol")
    assert by_symbol.key_of("price", {"symbol": "EUR", "price": 1}) == "EUR"
    assert by_symbol.key_of("price", {"price": 1}) is None
    assert by_symbol.key_of("price", {"symbol": ["not", "hashable"]}) is None
    assert by_symbol.key_of("price", b"bytes") is None
    assert latest_by_key(lambda event, payload: event).key_of("price", {}) == "price"


@pytest.mark.parametrize("key", [None, 1, ["symbol"]])
def test_anything_else_is_no_key(key: object) -> None:
    with pytest.raises(TypeError, match="name a member of the payload"):
        latest_by_key(key)  # pyright: ignore[reportArgumentType]
