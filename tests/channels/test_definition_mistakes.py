"""Definitions of channels: every mistake fails at import, with the fix in the text."""

from textwrap import dedent
from typing import NamedTuple

import pytest

from tests.channels.test_channel_definitions import PRELUDE, STRINGS, module


class Mistake(NamedTuple):
    source: str
    error: type[Exception]
    fix: str


NOT_ASYNC_OR_WRONG_ARITY = [
    Mistake(
        '@channel("room:*")\n{definition}',
        TypeError,
        "channel('room:*'): handle must be `async def` and take (socket, payload)",
    ),
    Mistake(
        '@lobby.on("e")\n{definition}',
        TypeError,
        "lobby.on('e'): handle must be `async def` and take (socket, payload)",
    ),
    Mistake(
        "@lobby.on_any\n{definition}",
        TypeError,
        "lobby.on_any(): handle must be `async def` and take (socket, event, payload)",
    ),
    Mistake(
        '@lobby.intercept("e")\n{definition}',
        TypeError,
        "lobby.intercept('e'): handle must be `async def` and take (socket, payload)",
    ),
    Mistake(
        "@lobby.info(Moved)\n{definition}",
        TypeError,
        "lobby.info('Moved'): handle must be `async def` and take (socket, message)",
    ),
    Mistake(
        "@lobby.terminate\n{definition}",
        TypeError,
        "lobby.terminate(): handle must be `async def` and take (socket, reason)",
    ),
]
DEFINITIONS = {
    "plain": "def handle(*args): ...",
    "generator": "async def handle(socket, payload): yield",
    "nothing": "async def handle(): ...",
    "only the socket": "async def handle(socket): ...",
    "too much": "async def handle(socket, one, two, three): ...",
    "keyword only": "async def handle(socket, *, payload, event=None): ...",
    "keyword only besides": "async def handle(socket, payload, event=None, *, more): ...",
    "any number": "async def handle(*args): ...",
    "partly any number": "async def handle(socket, *rest): ...",
    "no function": "class handle: ...",
}

MISTAKES = {
    "no pattern": Mistake(
        "@channel()\nasync def room(socket, payload): ...", TypeError, 'name the topics, as in @channel("room:*")'
    ),
    "channel without parentheses": Mistake(
        "@channel\nasync def room(socket, payload): ...", TypeError, '@channel("room:*")'
    ),
    "on without parentheses": Mistake(
        "@lobby.on\nasync def handle(socket, payload): ...", TypeError, '@lobby.on("new_msg")'
    ),
    "intercept without parentheses": Mistake(
        "@lobby.intercept\nasync def handle(socket, payload): ...", TypeError, '@lobby.intercept("new_msg")'
    ),
    "info without parentheses": Mistake(
        "@lobby.info\nasync def handle(socket, message): ...", TypeError, "lobby.info: say for what"
    ),
    "info of an instance": Mistake(
        '@lobby.info("Moved")\nasync def handle(socket, message): ...', TypeError, "lobby.info: say for what"
    ),
    "on_any with a name": Mistake(
        '@lobby.on_any("e")\nasync def handle(socket, event, payload): ...', TypeError, "must be `async def`"
    ),
    "terminate with a name": Mistake(
        '@lobby.terminate("e")\nasync def handle(socket, reason): ...', TypeError, "must be `async def`"
    ),
    "an event that is the join": Mistake(
        '@lobby.on("phx_join")\nasync def handle(socket, payload): ...', ValueError, "handle the join with @channel"
    ),
    "an event that is the leave": Mistake(
        '@lobby.on("phx_leave")\nasync def handle(socket, payload): ...', ValueError, "the end with @lobby.terminate"
    ),
    "star in the middle": Mistake(
        '@channel("room:*:x")\nasync def room(socket, payload): ...', ValueError, "only at the end, as in 'room:*'"
    ),
    "no name of a segment": Mistake(
        '@channel("room:{room-id}")\nasync def room(socket, payload): ...', ValueError, "write a segment as {name}"
    ),
    "a bad pattern after a good one": Mistake(
        '@channel("room:*", "")\nasync def room(socket, payload): ...', ValueError, "topic pattern ''"
    ),
    "segment that the handler does not take": Mistake(
        '@channel("room:{room_id}")\nasync def room(socket, payload): ...',
        TypeError,
        "channel('room:{room_id}'): room must be `async def` and take (socket, payload, room_id)",
    ),
    "segment by another name": Mistake(
        '@channel("room:{room_id}")\nasync def room(socket, payload, id): ...', TypeError, "(socket, payload, room_id)"
    ),
    "parameter without a segment": Mistake(
        '@channel("room:*")\nasync def room(socket, payload, room_id): ...', TypeError, "missing a required argument"
    ),
    "segment that cannot be given by name": Mistake(
        '@channel("room:{room_id}")\nasync def room(socket, payload, room_id, /): ...',
        TypeError,
        "(socket, payload, room_id)",
    ),
    "segment with the name of the payload": Mistake(
        '@channel("room:{payload}")\nasync def room(socket, payload): ...', TypeError, "multiple values"
    ),
    "patterns with different segments": Mistake(
        '@channel("room:{room_id}", "user:{user_id}")\nasync def room(socket, payload, room_id): ...',
        ValueError,
        "channel('room:{room_id}', 'user:{user_id}'): all patterns need the same segments",
    ),
    "pattern without the segments of the other": Mistake(
        '@channel("room:{room_id}", "hall")\nasync def room(socket, payload, room_id): ...',
        ValueError,
        "all patterns need the same segments",
    ),
    "second handler of an event": Mistake(
        """
        @lobby.on("e")
        async def one(socket, payload): ...
        @lobby.on("e")
        async def two(socket, payload): ...
        """,
        ValueError,
        "lobby.on('e'): there is a handler for it already",
    ),
    "second handler of a broadcast": Mistake(
        """
        @lobby.intercept("e")
        async def one(socket, payload): ...
        @lobby.intercept("e")
        async def two(socket, payload): ...
        """,
        ValueError,
        "lobby.intercept('e'): there is a handler for it already",
    ),
    "second handler of a class": Mistake(
        """
        @lobby.info(Moved)
        async def one(socket, message): ...
        @lobby.info(Moved)
        async def two(socket, message): ...
        """,
        ValueError,
        "lobby.info('Moved'): there is a handler for it already",
    ),
    "second handler of everything": Mistake(
        """
        @lobby.on_any
        async def one(socket, event, payload): ...
        @lobby.on_any
        async def two(socket, event, payload): ...
        """,
        ValueError,
        "lobby.on_any(): there is one already",
    ),
    "second handler of the end": Mistake(
        """
        @lobby.terminate
        async def one(socket, reason): ...
        @lobby.terminate
        async def two(socket, reason): ...
        """,
        ValueError,
        "lobby.terminate(): there is one already",
    ),
    "annotation that does not exist": Mistake(
        '@lobby.on("e")\nasync def handle(socket, payload: "Missing"): ...',
        TypeError,
        "lobby.on('e'): an annotation cannot be resolved: name 'Missing' is not defined (is it imported at run time?)",
    ),
    "annotation that is imported for type checkers only": Mistake(
        """
        if TYPE_CHECKING:
            from datetime import date

        @channel("room:*")
        async def room(socket, payload: "date"): ...
        """,
        TypeError,
        "channel('room:*'): an annotation cannot be resolved: name 'date'",
    ),
    "annotation of an attribute that does not exist": Mistake(
        '@lobby.intercept("e")\nasync def handle(socket, payload: "msgspec.Nope"): ...',
        TypeError,
        "lobby.intercept('e'): an annotation cannot be resolved",
    ),
    "annotation that is no Python": Mistake(
        '@lobby.on_any\nasync def handle(socket, event, payload: "two words"): ...',
        TypeError,
        "lobby.on_any(): an annotation cannot be resolved",
    ),
    "a class that says nothing of its fields": Mistake(
        '@lobby.on("e")\nasync def handle(socket, payload: Opaque): ...',
        TypeError,
        "lobby.on('e'): the payload cannot be decoded as <class 'app.Opaque'>",
    ),
    "a class that says nothing of its fields, inside": Mistake(
        '@channel("room:*")\nasync def room(socket, payload: dict[str, list[Opaque]]): ...',
        TypeError,
        "channel('room:*'): the payload cannot be decoded as dict[str, list[app.Opaque]]",
    ),
    "a union of classes that look alike": Mistake(
        '@lobby.intercept("e")\nasync def handle(socket, payload: NewMsg | Moved): ...',
        TypeError,
        "lobby.intercept('e'): the payload cannot be decoded as app.NewMsg | app.Moved",
    ),
    "a type without JSON": Mistake(
        "@lobby.on_any\nasync def handle(socket, event, payload: complex): ...",
        TypeError,
        "lobby.on_any(): the payload cannot be decoded as <class 'complex'>",
    ),
    "no topic": Mistake(
        '@channel("")\nasync def room(socket, payload): ...', ValueError, "topic pattern '': it would match no topic"
    ),
    "a partial function that lacks something": Mistake(
        'async def handle(more, socket, payload): ...\nlobby.on("e")(functools.partial(handle))',
        TypeError,
        "lobby.on('e'): partial(handle) must be `async def` and take (socket, payload): missing a required argument",
    ),
    "a partial of a plain function": Mistake(
        'def handle(more, socket, payload): ...\nlobby.on("e")(functools.partial(handle, 1))',
        TypeError,
        "lobby.on('e'): partial(handle) must be `async def`",
    ),
    "a class with an async call, and no instance of it": Mistake(
        "@lobby.on_any\nclass Handle:\n    async def __call__(self, socket, event, payload): ...",
        TypeError,
        "it is a class; pass an instance",
    ),
    "an instance whose call takes something else": Mistake(
        "class Handle:\n    async def __call__(self, socket): ...\nlobby.on('e')(Handle())",
        TypeError,
        "must be `async def` and take (socket, payload): too many positional arguments",
    ),
    "a decorator that is not async": Mistake(
        """
        def logged(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)
            return wrapper

        @lobby.on("e")
        @logged
        async def handle(socket, payload): ...
        """,
        TypeError,
        "write the wrapper with `async def`, and await the function",
    ),
    "a decorated function that takes something else": Mistake(
        """
        def logged(function):
            @functools.wraps(function)
            async def wrapper(*args, **kwargs):
                return await function(*args, **kwargs)
            return wrapper

        @lobby.on("e")
        @logged
        async def handle(socket): ...
        """,
        TypeError,
        "lobby.on('e'): handle must be `async def` and take (socket, payload): too many positional arguments",
    ),
    "a dependency as the default of a parameter": Mistake(
        '@lobby.on("e")\nasync def handle(socket, payload, db=Depends(dict)): ...',
        TypeError,
        "db gets no value: Depends works in requests only",
    ),
    "a dependency by keyword": Mistake(
        '@channel("room:{n}")\nasync def room(socket, payload, n, *, user=Security(dict)): ...',
        TypeError,
        "user gets no value: Depends works in requests only",
    ),
    "a dependency in an annotation": Mistake(
        "@lobby.terminate\nasync def handle(socket, reason, db: Annotated[dict, Depends(dict)]): ...",
        TypeError,
        "missing a required argument: 'db': Depends works in requests only",
    ),
    "a dependency in an annotation, and a default": Mistake(
        "@lobby.info(Moved)\nasync def handle(socket, message, db: Annotated[dict, Depends(dict)] = None): ...",
        TypeError,
        "db gets no value",
    ),
    "a parameter of a route": Mistake(
        "@lobby.on_refresh\nasync def handle(socket, assigns, page: int = Query(1)): ...",
        TypeError,
        "page gets no value",
    ),
    "a payload from a dependency": Mistake(
        '@lobby.on("e")\nasync def handle(socket, payload: dict = Depends(dict)): ...',
        TypeError,
        "payload gets its value from the library: Depends works in requests only",
    ),
    "a dependency where the payload comes": Mistake(
        "@lobby.on_any\nasync def handle(socket, payload, db: Annotated[object, Depends(object)]): ...",
        TypeError,
        "db gets its value from the library",
    ),
    "a parameter that nobody fills": Mistake(
        '@lobby.intercept("e")\nasync def handle(socket, payload, db): ...',
        TypeError,
        "missing a required argument: 'db'",
    ),
}


@pytest.mark.parametrize("future", ["", STRINGS], ids=["", "string annotations"])
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_fails_at_import_with_the_fix_in_the_text(mistake: Mistake, future: str) -> None:
    with pytest.raises(mistake.error) as caught:
        module(future + PRELUDE + dedent(mistake.source))
    assert mistake.fix in str(caught.value)


@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)
@pytest.mark.parametrize("mistake", NOT_ASYNC_OR_WRONG_ARITY, ids=lambda mistake: mistake.source.split("\n")[0])
def test_a_handler_must_be_async_and_take_what_it_is_given(mistake: Mistake, definition: str) -> None:
    with pytest.raises(mistake.error) as caught:
        module(PRELUDE + mistake.source.format(definition=definition))
    assert mistake.fix in str(caught.value)
