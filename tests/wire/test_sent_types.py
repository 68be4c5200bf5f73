"""What is sent is written as it is read, on every way to a client: by alias, without what is excluded, any Mapping."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import fastapi
import httpx
import pytest
from msgspec import Raw, Struct
from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field, field_serializer
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass as pydantic_dataclass

from starlette_channels import (
    Broadcast,
    Broker,
    Channels,
    JoinError,
    Payload,
    Presence,
    Publisher,
    Reply,
    SerializerError,
    Socket,
    channel,
)
from starlette_channels.testing import Joined, JoinRefused, connect
from starlette_channels.wire.messages import encode_payload

pytestmark = pytest.mark.anyio


class User(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    user_name: str
    password: str = Field("", exclude=True)
    token: SecretStr = SecretStr("hidden")
    born_in: int = 1990

    @computed_field
    @property
    def full_name(self) -> str:
        return f"{self.user_name} Smith"

    @field_serializer("born_in")
    def year(self, year: int) -> str:
        return f"year {year}"


@pydantic_dataclass
class Order:
    item: str
    secret: str = Field(default="s3cret", exclude=True)


class Parcel(Struct):
    order: Order
    user: User | None = None
    more: dict[str, Any] = {}


USER = User.model_validate({"userName": "ann", "password": "pw"})
WRITTEN = {"userName": "ann", "token": "**********", "bornIn": "year 1990", "fullName": "ann Smith"}
ORDER = Order("tea")

PAYLOADS: dict[str, tuple[Payload, Any]] = {
    "model": (USER, WRITTEN),
    "dataclass": (ORDER, {"item": "tea"}),
    "dict": ({"user": USER, "orders": [ORDER]}, {"user": WRITTEN, "orders": [{"item": "tea"}]}),
    "struct": (
        Parcel(ORDER, USER, {"a": (ORDER,)}),
        {"order": {"item": "tea"}, "user": WRITTEN, "more": {"a": [{"item": "tea"}]}},
    ),
    "mapping": (MappingProxyType({"a": MappingProxyType({"order": ORDER})}), {"a": {"order": {"item": "tea"}}}),
}


@channel("shop:*")
async def shop(socket: Socket, payload: dict[str, Any]) -> Payload:
    kind = socket.subtopic
    if kind.startswith("no "):
        raise JoinError(payload={"reason": "no", "with": PAYLOADS[kind[3:]][0]})
    socket.subscribe("news")
    socket.push("pushed", PAYLOADS[kind][0])
    return PAYLOADS[kind][0]


@shop.on("give")
async def give(socket: Socket, payload: dict[str, Any]) -> Payload:
    return PAYLOADS[socket.subtopic][0]


@shop.on("wrap")
async def wrap(socket: Socket, payload: dict[str, Any]) -> Reply:
    return Reply("ok", [PAYLOADS[socket.subtopic][0]])


@shop.on("later")
async def later(socket: Socket, payload: dict[str, Any]) -> None:
    socket.reply_later()(PAYLOADS[socket.subtopic][0])


@shop.on("tell")
async def tell(socket: Socket, payload: dict[str, Any]) -> None:
    socket.broadcast("told", PAYLOADS[socket.subtopic][0])
    socket.broadcast("seen", USER)


@shop.intercept("seen")
async def seen(socket: Socket, user: dict[str, Any]) -> None:
    socket.push("seen", {"user": user})


@shop.info(Broadcast)
async def heard(socket: Socket, broadcast: Broadcast) -> None:
    socket.push("heard", {"payload": broadcast.payload})


@pytest.mark.parametrize("kind", PAYLOADS)
async def test_a_type_is_written_as_it_is_read_on_every_way_to_a_client(kind: str) -> None:
    payload, written = PAYLOADS[kind]
    channels = Channels([shop])
    async with connect(channels) as client:
        joined: Joined = await client.join(f"shop:{kind}")
        assert joined.reply == Reply("ok", written)
        assert await joined.receive("pushed") == written
        assert await joined.push("give") == Reply("ok", written)
        assert await joined.push("wrap") == Reply("ok", [written])
        assert await joined.push("later") == Reply("ok", written)
        joined.send("tell", {})
        assert await joined.receive("told") == written
        assert await joined.receive("seen") == {"user": WRITTEN}
        channels.broadcast(f"shop:{kind}", "from_outside", payload)
        assert await joined.receive("from_outside") == written
        channels.broadcast("news", "news", payload)
        assert await joined.receive("heard") == {"payload": written}
        with pytest.raises(JoinRefused) as refused:
            await client.join(f"shop:no {kind}")
        assert refused.value.reply.payload == {"reason": "no", "with": written}


class Renamed(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    user_name: str


@channel("room")
async def room(socket: Socket, payload: Renamed | None) -> Renamed | None:
    return payload


@room.on("say")
async def say(socket: Socket, message: Renamed) -> Renamed:
    socket.broadcast("said", message)
    return message


@room.intercept("said")
async def said(socket: Socket, message: Renamed) -> None:
    socket.push("said", {"from": message.user_name})


async def test_an_intercept_handler_takes_the_type_that_was_broadcast() -> None:
    async with connect(Channels([room])) as client:
        joined = await client.join("room", {"userName": "ann"})
        assert joined.reply == Reply("ok", {"userName": "ann"})
        assert await joined.push("say", {"userName": "bob"}) == Reply("ok", {"userName": "bob"})
        assert await joined.receive("said") == {"from": "bob"}


async def test_a_model_is_sent_as_fastapi_answers_with_it() -> None:
    app = fastapi.FastAPI()

    @app.get("/user")
    async def user() -> User:  # pyright: ignore[reportUnusedFunction] - FastAPI calls it
        return USER

    @app.get("/orders")
    async def orders() -> list[Order]:  # pyright: ignore[reportUnusedFunction] - as above
        return [ORDER]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        for path, value in (("/user", USER), ("/orders", [ORDER])):
            answered = (await http.get(path)).json()
            sent = httpx.Response(200, content=bytes(encode_payload(value))).json()
            assert answered == sent


async def test_the_metas_of_presences_are_written_as_they_are_read() -> None:
    presence = Presence()

    @channel("lobby")
    async def lobby(socket: Socket, payload: dict[str, Any]) -> None:
        presence.track(socket, "model", USER)
        presence.track(socket, "dataclass", ORDER)
        presence.track(socket, "mapping", MappingProxyType({"order": ORDER}))
        presence.push_state(socket)

    async with connect(Channels([lobby])) as client:
        joined = await client.join("lobby")
        state = await joined.receive("presence_state")
        metas = {key: entry["metas"][0] for key, entry in state.items()}
        for meta in metas.values():
            meta.pop("phx_ref")
        assert metas == {"model": WRITTEN, "dataclass": {"item": "tea"}, "mapping": {"order": {"item": "tea"}}}


class OwnMapping(Mapping[str, Any]):
    """A mapping that is no dict."""

    def __getitem__(self, key: str) -> Any:
        return {"a": 1}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


MAPPINGS: list[Mapping[str, Any]] = [
    {"a": 1},
    MappingProxyType({"a": 1}),
    collections.ChainMap({"a": 1}, {"a": 2}),
    collections.UserDict({"a": 1}),
    collections.OrderedDict({"a": 1}),
    collections.Counter("a"),
    OwnMapping(),
]


@pytest.mark.parametrize("mapping", MAPPINGS, ids=lambda one: type(one).__name__)
async def test_every_mapping_can_be_sent_and_stand_inside_of_others(mapping: Mapping[str, Any]) -> None:
    assert bytes(encode_payload(mapping)) == b'{"a":1}'
    assert bytes(encode_payload({"b": [mapping]})) == b'{"b":[{"a":1}]}'
    assert bytes(encode_payload(MappingProxyType({"b": mapping}))) == b'{"b":{"a":1}}'

    @channel("room")
    async def answering(socket: Socket, payload: object) -> Mapping[str, Any]:
        return mapping

    async with connect(Channels([answering])) as client:
        assert (await client.join("room")).reply == Reply("ok", {"a": 1})


class Omitting(Struct, omit_defaults=True, rename="camel", tag="omitting", kw_only=True):
    the_order: Order | None = None
    the_list: list[Any] = []
    the_number: int = 0


def test_a_struct_with_something_special_in_it_keeps_its_layout() -> None:
    assert bytes(encode_payload(Omitting(the_order=ORDER))) == b'{"type":"omitting","theOrder":{"item":"tea"}}'
    assert bytes(encode_payload(Omitting(the_list=[ORDER], the_number=1))) == (
        b'{"type":"omitting","theList":[{"item":"tea"}],"theNumber":1}'
    )
    assert bytes(encode_payload(Omitting())) == b'{"type":"omitting"}'


@dataclasses.dataclass
class Unreadable:
    one: "NobodyHasImportedThis"  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


def test_a_class_whose_hints_cannot_be_read_is_sent_all_the_same() -> None:
    assert bytes(encode_payload(Unreadable(ORDER))) == b'{"one":{"item":"tea"}}'
    assert bytes(encode_payload({"a": Unreadable({"b": ORDER})})) == b'{"a":{"one":{"b":{"item":"tea"}}}}'


def _cycle() -> dict[str, Any]:
    cycle: dict[str, Any] = {}
    cycle["inner"] = {"again": cycle}
    return cycle


def _deep() -> dict[str, Any]:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    return deep


LONG = "x" * 256

INEXPRESSIBLE: dict[str, tuple[str, str, Any, type[Exception], str]] = {
    "a cycle": ("t", "e", _cycle(), SerializerError, "contains itself, or is nested too deeply"),
    "a cycle of mappings": ("t", "e", MappingProxyType(_cycle()), SerializerError, "contains itself"),
    "too deep": ("t", "e", _deep(), SerializerError, "nested too deeply"),
    "surrogates": ("t", "e", {"a": "\ud800"}, SerializerError, "lone surrogates"),
    "surrogates in a key": ("t", "e", {"\ud800": 1}, SerializerError, "lone surrogates"),
    "surrogates in a model": ("t", "e", Renamed.model_construct(user_name="\ud800"), SerializerError, "surrogate"),
    "surrogates in the topic": ("\ud800", "e", {}, SerializerError, "lone surrogates"),
    "surrogates in the event": ("t", "\ud800", {}, SerializerError, "lone surrogates"),
    "keys that are no text": ("t", "e", {(1, 2): 3}, TypeError, "a tuple as the key of an object is unsupported"),
    "an unknown class": ("t", "e", {"a": [object()]}, TypeError, "type object is unsupported"),
    "a list": ("t", "e", [1], SerializerError, "must be an object"),
    "text": ("t", "e", "text", SerializerError, "must be an object"),
    "nothing": ("t", "e", None, SerializerError, "must be an object"),
    "raw JSON that is no object": ("t", "e", Raw(b"[1]"), SerializerError, "must be an object"),
    "bytes on a long topic": (LONG, "e", b"x", SerializerError, "more than 255 bytes"),
    "bytes with a long event": ("t", LONG, b"x", SerializerError, "more than 255 bytes"),
    "a reply": ("t", "e", Reply("ok"), TypeError, "a Reply is returned from a handler"),
}


@pytest.mark.parametrize("kind", INEXPRESSIBLE)
@pytest.mark.parametrize("url", ["memory://", "redis://127.0.0.1:1"])
async def test_what_no_wire_can_carry_raises_although_nobody_is_subscribed(kind: str, url: str) -> None:
    topic, event, payload, error, why = INEXPRESSIBLE[kind]
    broker = Broker(url)
    try:
        with pytest.raises(error, match=why):
            broker.broadcast(topic, event, payload)
        with pytest.raises(error, match=why):
            Channels([room], broker=broker).broadcast(topic, event, payload)
    finally:
        await broker.close()


@pytest.mark.parametrize("kind", INEXPRESSIBLE)
def test_what_no_wire_can_carry_raises_in_a_publisher(kind: str) -> None:
    topic, event, payload, error, why = INEXPRESSIBLE[kind]
    publisher = Publisher("redis://127.0.0.1:1")
    with pytest.raises(error, match=why):
        publisher.broadcast(topic, event, payload)


def test_what_is_not_a_number_is_null_as_in_javascript() -> None:
    class Number(BaseModel):
        value: float

    assert bytes(encode_payload({"value": float("nan")})) == b'{"value":null}'
    assert bytes(encode_payload(Number(value=float("inf")))) == b'{"value":null}'
