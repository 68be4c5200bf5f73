"""Segments of topics, decoded to the join handler's annotations; what does not fit is tried with the next pattern."""

import enum
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, Optional
from uuid import UUID

import annotated_types
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta, Raw, Struct
from pydantic import BaseModel, Field, RootModel

from starlette_channels import Channels, Reply, Socket, channel
from starlette_channels.testing import JoinRefused, connect
from starlette_channels.wire.pydantic_adapters import Misfit
from starlette_channels.wire.topic_segments import text_decoder
from tests.support.effort import some

bounded = settings(
    max_examples=some(of=150),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

UNMATCHED = Reply("error", {"reason": "unmatched topic"})
ID = "123e4567-e89b-12d3-a456-426614174000"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Loose(enum.Enum):
    YES = "yes"

    @classmethod
    def _missing_(cls, value: object) -> "Loose | None":
        return cls.YES if str(value).lower() == "yes" else None


class Model(BaseModel):
    x: int


class Fields(Struct):
    x: int


RoomId = NewType("RoomId", int)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "7", 7),
        (int, "0", 0),
        (int, "-12", -12),
        (int, "9" * 30, int("9" * 30)),
        (RoomId, "7", 7),
        (float, "1.5", 1.5),
        (float, "1e3", 1000.0),
        (bool, "true", True),
        (Decimal, "1.50", Decimal("1.50")),
        (UUID, ID, UUID(ID)),
        (UUID, ID.upper(), UUID(ID)),
        (date, "2024-02-29", date(2024, 2, 29)),
        (datetime, "1700000000", datetime.fromtimestamp(1_700_000_000, UTC)),
        (timedelta, "PT1H", timedelta(hours=1)),
        (Colour, "red", Colour.RED),
        (Level, "2", Level.HIGH),
        (Loose, "YES", Loose.YES),
        (Literal["a", 7, True, None], "a", "a"),
        (Literal["a", 7, True, None], "7", 7),
        (Literal["a", 7, True, None], "true", True),
        (Literal[Colour.RED], "red", Colour.RED),
        (Annotated[int, Meta(ge=1)], "1", 1),
        (Annotated[int, annotated_types.Ge(1)], "1", 1),
        (Annotated[int, Field(ge=1)], "1", 1),
        (Annotated[str, Meta(pattern="^[a-z]+$")], "abc", "abc"),
        (Annotated[str, Field(min_length=2)], "ab", "ab"),
        (Annotated[int, "documented"], "1", 1),
        (Optional[int], "7", 7),  # noqa: UP045 - people write it this way too
        (int | str, "7", 7),
        (int | str, "abc", "abc"),
        (str | int, "7", "7"),
        (UUID | int, ID, UUID(ID)),
        (UUID | int, "7", 7),
        (RootModel[int], "7", RootModel[int](7)),
    ],
    ids=str,
)
def test_a_text_that_fits_is_decoded(annotation: Any, text: str, value: object) -> None:
    decoder = text_decoder(annotation)
    decoded = text if decoder is None else decoder(text)
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize(
    ("annotation", "texts"),
    [
        (int, ["abc", "07", "+7", "-0", " 7", "7 ", "7_0", "1.0", "1e3", "\uff11", "0x7", "--7", "9" * 5000, "7\n"]),
        (float, ["abc", "nan", "inf", "-inf", "1e999", "1_0"]),
        (bool, ["yes", "2", "null"]),
        (Decimal, ["abc", "nan", "Infinity", "\u0663"]),
        (UUID, ["7", ID + "0", ID[:-1]]),
        (date, ["2024-02-30", "today"]),
        (Colour, ["RED", "green"]),
        (Level, ["3", "LOW", "01"]),
        (Loose, ["no"]),
        (Literal["a", 7, None], ["b", "07", "null", "None"]),
        (Annotated[int, Meta(ge=1)], ["0", "abc", "01"]),
        (Annotated[int, annotated_types.Ge(1)], ["0", "abc"]),
        (Annotated[int, Field(ge=1)], ["0", "abc", "01", " 1", "+1", "1_0"]),
        (Annotated[str, Meta(pattern="^[a-z]+$")], ["ABC", "1"]),
        (Annotated[str, Field(min_length=2)], ["a"]),
        (Optional[int], ["null", "None", "abc"]),  # noqa: UP045
        (UUID | int, ["abc"]),
        (RootModel[int], ["abc"]),
    ],
    ids=str,
)
def test_a_text_that_does_not_fit_is_a_misfit(annotation: Any, texts: list[str]) -> None:
    decoder = text_decoder(annotation)
    assert decoder is not None
    for text in texts:
        with pytest.raises(Misfit):
            decoder(text)


@pytest.mark.parametrize("annotation", [str, Any, object, str | None, NewType("Name", str)], ids=str)
def test_text_costs_nothing(annotation: Any) -> None:
    assert text_decoder(annotation) is None


@bounded
@given(st.text(min_size=1) | st.from_regex(r"[-+]?[0-9._eE]+"))
def test_whatever_the_text_a_whole_number_has_one_spelling(text: str) -> None:
    decoder = text_decoder(int)
    assert decoder is not None
    try:
        number = decoder(text)
    except Misfit:
        assert re.fullmatch(r"0|-?[1-9][0-9]*", text, re.ASCII) is None
    else:
        assert str(number) == text


@pytest.mark.parametrize(
    "annotation",
    [list[int], dict, bytes, Raw, Fields, Model, RootModel[list[int]], set, int | list[int], complex, Literal[b"a"]],
    ids=str,
)
def test_what_no_text_can_be_decoded_to_is_refused_when_the_channel_is_defined(annotation: Any) -> None:
    async def room(socket: Socket, payload: object, room_id: Any) -> None: ...

    room.__annotations__["room_id"] = annotation
    with pytest.raises(TypeError, match=r"channel\('room:\{room_id\}'\): the segment \{room_id\} cannot be decoded"):
        channel("room:{room_id}")(room)


pytestmark = pytest.mark.anyio


@channel("room:{room_id}", "raum:{room_id}")
async def room(socket: Socket, payload: object, room_id: int) -> dict[str, Any]:
    return {"twice": 2 * room_id, "text": socket.topic_params["room_id"], "subtopic": socket.subtopic}


@room.on("params")
async def params(socket: Socket, payload: object) -> Mapping[str, str]:
    return socket.topic_params


@channel("room:{name}")
async def named(socket: Socket, payload: object, name: Literal["lobby", "garden"]) -> dict[str, str]:
    return {"name": name}


@channel("day:{day}:{kind}:*")
async def day(socket: Socket, payload: object, *, day: date, kind: Colour | None = None) -> dict[str, Any]:
    return {"weekday": day.isoweekday(), "kind": kind}


@channel("all:{one}:{two}")
async def every(socket: Socket, payload: object, **segments: int) -> dict[str, int]:
    return segments


app = Channels([room, named, day, every])


@pytest.mark.parametrize(
    ("topic", "reply"),
    [
        ("room:7", {"twice": 14, "text": "7", "subtopic": "7"}),
        ("raum:8", {"twice": 16, "text": "8", "subtopic": "8"}),
        ("room:lobby", {"name": "lobby"}),
        ("day:2024-02-29:red:x", {"weekday": 4, "kind": "red"}),
        ("all:1:2", {"one": 1, "two": 2}),
    ],
)
async def test_the_join_handler_gets_what_its_annotations_say(topic: str, reply: dict[str, Any]) -> None:
    async with connect(app) as client:
        assert (await client.join(topic)).reply == Reply("ok", reply)


@pytest.mark.parametrize(
    "topic", ["room:abc", "room:07", "raum:lobby", "day:today:red:x", "day:2024-02-29:no:x", "all:1:x"]
)
async def test_a_segment_that_does_not_fit_any_pattern_is_an_unmatched_topic(topic: str) -> None:
    async with connect(app) as client:
        with pytest.raises(JoinRefused) as caught:
            await client.join(topic)
        assert caught.value.reply == UNMATCHED
        assert (await client.join("room:7")).reply.status == "ok"


async def test_topic_params_stay_text() -> None:
    async with connect(app) as client:
        joined = await client.join("room:7")
        assert await joined.push("params") == Reply("ok", {"room_id": "7"})


async def test_a_validator_that_fails_is_counted_and_the_topic_is_unmatched() -> None:
    class Broken(enum.Enum):
        ONE = "one"

        @classmethod
        def _missing_(cls, value: object) -> None:
            raise RuntimeError("a bug")

    @channel("broken:{one}")
    async def broken(socket: Socket, payload: object, one: Broken) -> None: ...

    channels = Channels([broken])
    async with connect(channels) as client:
        with pytest.raises(JoinRefused) as caught:
            await client.join("broken:two")
        assert caught.value.reply == UNMATCHED
        await client.join("broken:one")
    assert channels.statistics().counts["segment_failed"] == 1
