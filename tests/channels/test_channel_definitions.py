"""Definitions of channels: what is right works, wherever and however it is written."""

from textwrap import dedent
from typing import Any

import pytest
from msgspec import Raw

from starlette_channels import Channel, InvalidPayload

PRELUDE = """
import functools
from typing import TYPE_CHECKING, Annotated, Any
from fastapi import Depends, Query, Security
import msgspec
from msgspec import Struct
from starlette_channels import Broadcast, Channel, Socket, channel

class NewMsg(Struct):
    body: str

class Moved(Struct):
    x: int

class Opaque:
    pass

@channel("lobby")
async def lobby(socket: Socket, payload: dict): ...
"""
STRINGS = "from __future__ import annotations\n"
"""Makes all annotations of a module strings."""


def module(source: str, name: str = "app", **names: Any) -> dict[str, Any]:
    """Run the source of a module, and return what it defines."""
    namespace = {"__name__": name, **names}
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), namespace)
    return namespace


def fits(decode: Any, text: str) -> object:
    """What a handler gets for a JSON payload."""
    return decode(Raw(text.encode()))


RIGHT = """
@channel("room:{room_id}", "hall:{room_id}")
async def room(socket: Socket[Any], payload: NewMsg, room_id: str) -> dict[str, Any]: ...

@room.on("typed")
async def typed(socket: Socket[Any], payload: NewMsg) -> None: ...

@room.on("untyped")
async def untyped(socket, whatever): ...

@room.on("more")
async def more(socket: Socket[Any], payload: NewMsg, limit: int = 10, /, *, flag: bool = False) -> NewMsg: ...

@room.on("binary")
async def binary(socket: Socket[Any], payload: bytes) -> bytes: ...

@room.on_any
async def anything(socket: Socket[Any], event: str, payload: NewMsg) -> None: ...

@room.intercept("typed")
async def seen(socket: Socket[Any], payload: NewMsg) -> None: ...

@room.info(NewMsg)
async def told(socket: Socket[Any], message: NewMsg) -> None: ...

@room.info(Broadcast)
async def heard(socket: Socket[Any], message: Broadcast) -> None: ...

@room.terminate
async def left(socket: Socket[Any], reason: str) -> None: ...
"""
LOCALLY = """
def define():
    class NewMsg(Struct):
        body: int

{source}
    return room
"""


@pytest.mark.parametrize("future", ["", STRINGS], ids=["", "string annotations"])
def test_a_channel_collects_its_handlers(future: str) -> None:
    names = module(future + PRELUDE + RIGHT)
    room: Channel[Any] = names["room"]
    assert isinstance(room, Channel)
    assert [pattern.text for pattern in room.patterns] == ["room:{room_id}", "hall:{room_id}"]
    assert room.name == "room"
    assert repr(room) == "<Channel room: room:{room_id}, hall:{room_id}>"
    assert {event: handler.call for event, handler in room.events.items()} == {
        event: names[event] for event in ("typed", "untyped", "more", "binary")
    }
    assert room.any_event is not None
    assert room.any_event.call is names["anything"]
    assert room.intercepts["typed"].call is names["seen"]
    assert room.infos == {names["NewMsg"]: names["told"], names["Broadcast"]: names["heard"]}
    assert room.terminator is names["left"]


@pytest.mark.parametrize("future", ["", STRINGS], ids=["", "string annotations"])
@pytest.mark.parametrize("local", [False, True], ids=["at the top", "in a function"])
def test_payloads_are_decoded_to_the_annotation_that_is_meant(future: str, local: bool) -> None:
    indented = "".join(f"    {line}" for line in RIGHT.splitlines(keepends=True))
    names = module(future + PRELUDE + (LOCALLY.format(source=indented) if local else RIGHT))
    room: Channel[Any] = names["define"]() if local else names["room"]
    right, wrong = ('{"body":7}', '{"body":"hi"}') if local else ('{"body":"hi"}', '{"body":7}')
    assert room.any_event is not None
    for handler in (room.join, room.events["typed"], room.events["more"], room.any_event, room.intercepts["typed"]):
        message: Any = fits(handler.decode, right)
        assert message.body == (7 if local else "hi")
        with pytest.raises(InvalidPayload):
            fits(handler.decode, wrong)
    assert fits(room.events["untyped"].decode, "[1]") == [1]
    assert room.events["binary"].decode(b"\x00") == b"\x00"


def test_a_handler_of_another_module_means_the_names_of_that_module() -> None:
    handlers = module(STRINGS + PRELUDE + "async def handle(socket: Socket, payload: NewMsg) -> None: ...", "handlers")
    app = module(
        """
        from msgspec import Struct
        class NewMsg(Struct):
            other: int
        def define():
            class NewMsg(Struct):
                local: int
            lobby.on("inside")(handle)
        lobby.on("e")(handle)
        define()
        """.replace("\n        ", "\n"),
        lobby=handlers["lobby"],
        handle=handlers["handle"],
    )
    lobby: Channel[Any] = app["lobby"]
    for event in ("e", "inside"):
        assert fits(lobby.events[event].decode, '{"body":"hi"}') == handlers["NewMsg"]("hi")


@pytest.mark.parametrize("future", ["", STRINGS], ids=["", "string annotations"])
def test_methods_and_decorated_functions_can_be_handlers(future: str) -> None:
    source = """
    def logged(function):
        @functools.wraps(function)
        async def wrapper(*args, **kwargs):
            return await function(*args, **kwargs)
        return wrapper

    @lobby.on("decorated")
    @logged
    async def handle(socket: Socket, payload: NewMsg) -> None: ...

    class Handlers:
        async def method(self, socket: Socket, payload: NewMsg) -> None: ...

    lobby.on("method")(Handlers().method)
    """
    names = module(future + PRELUDE + dedent(source))
    for event in ("decorated", "method"):
        assert fits(names["lobby"].events[event].decode, '{"body":"hi"}') == names["NewMsg"]("hi")


def test_decorators_return_the_handler_so_it_can_be_used_again() -> None:
    names = module(
        PRELUDE + RIGHT + '\nroom.on("again")(typed)\nlobby.on("typed")(typed)\nlobby.intercept("typed")(seen)'
    )
    assert names["room"].events["again"].call is names["typed"] is names["lobby"].events["typed"].call


def test_a_failed_definition_changes_nothing() -> None:
    names = module(PRELUDE + RIGHT)
    room: Channel[Any] = names["room"]
    with pytest.raises(ValueError, match="already"):
        room.on("typed")(names["untyped"])
    with pytest.raises(TypeError):
        room.on("fresh")(names["Moved"])
    assert room.events["typed"].call is names["typed"]
    assert "fresh" not in room.events


def test_one_join_handler_can_make_two_channels() -> None:
    names = module(
        PRELUDE + "async def join(socket, payload): ...\none, two = channel('a:*')(join), channel('b:*')(join)"
    )
    names["one"].on("e")(names["join"])
    assert names["two"].events == {}


def test_a_message_goes_to_the_handler_of_its_class_before_those_of_its_bases() -> None:
    source = """
    class Base: ...
    class Middle(Base): ...
    class Derived(Middle): ...

    @lobby.info(Base)
    async def base(socket, message): ...
    @lobby.info(Derived)
    async def derived(socket, message): ...
    """
    names = module(PRELUDE + dedent(source))
    handler_of = names["lobby"].info_handler
    assert handler_of(names["Base"]()) is names["base"]
    assert handler_of(names["Middle"]()) is names["base"]
    assert handler_of(names["Derived"]()) is names["derived"]
    assert handler_of(names["Opaque"]()) is None
