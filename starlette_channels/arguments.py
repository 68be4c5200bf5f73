"""Checks of the arguments of public constructors: a wrong type raises `TypeError` at once, with the fix in the text.

Type checkers find most of these mistakes, but not everyone runs one, and configuration comes from files and environment
variables.
"""

import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, Union, cast, get_args, get_origin

from msgspec import Struct


def check_fields(struct: Struct, *, above_zero: Collection[str] = (), off: str = "") -> None:
    """Raise `TypeError` if a field's value does not match its annotation, and `ValueError` if a number is negative.

    Checks numbers, strings, booleans, functions and structs; ignores fields with any other annotation. Fields in
    `above_zero` must not be 0 either; `off` ends the message for these, and says how to have no limit.
    """
    for name, kinds in _kinds_of_fields(type(struct)).items():
        value: object = getattr(struct, name)
        where = f"{type(struct).__name__}({name}={shown_argument(value)})"
        if not any(_fits(value, kind) for kind in kinds):
            raise TypeError(f"{where}: it must be {_named(kinds)}{_fix(value, kinds)}")
        if not isinstance(value, int | float):
            continue
        if name in above_zero and not value > 0:
            raise ValueError(f"{where}: it must be more than 0{off}")
        if value < 0 or math.isnan(value):
            raise ValueError(f"{where}: it must not be less than 0{_off(kinds)}")


def check_type(value: object, kinds: type | tuple[type, ...], where: str, fix: str, *, close: str = ")") -> None:
    """Raise `TypeError` unless a value has one of the types. `where` is the call up to the value, `fix` the advice."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool and bool not in _tuple(kinds)):
        raise TypeError(f"{where}{shown_argument(value)}{close}: {fix}")


def check_seconds(value: object, where: str) -> None:
    """Raise `TypeError` unless a value is a number, and `ValueError` if it is negative."""
    check_type(value, (int, float), where, "it is a number of seconds")
    if not cast("float", value) >= 0:
        raise ValueError(f"{where}{value!r}): it is a number of seconds, 0 or more")


def shown_argument(value: object) -> str:
    """Return the `repr` of an argument for an error message, at most 60 characters; a function by its name.

    A coroutine is shown as the call that has made it, and closed.
    """
    called = close_called(value)
    if called is not None:
        return f"{called}(...)"
    name = getattr(value, "__name__", None)
    text = name if isinstance(name, str) and callable(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def close_called(value: object) -> str | None:
    """Return the name of the function if a value is what calling an async one returns, a coroutine; close that.

    Else Python would warn, after the error, that the coroutine was never awaited.
    """
    if not inspect.iscoroutine(value):
        return None
    value.close()
    return value.__name__


def _tuple(kinds: type | tuple[type, ...]) -> tuple[type, ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


@cache
def _kinds_of_fields(cls: type[Struct]) -> Mapping[str, tuple[Any, ...]]:
    hints = typing.get_type_hints(cls)
    fields = {name: _members(hints[name]) for name in cls.__struct_fields__}
    return {name: kinds for name, kinds in fields.items() if all(map(_is_known, kinds))}


def _members(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for one in get_args(hint) for member in _members(one))
    origin = get_origin(hint)
    return (hint if origin is None else origin,)


def _is_known(kind: Any) -> bool:
    return kind in _NAMES or (isinstance(kind, type) and kind is not object)


def _fits(value: object, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if kind is Callable:
        return callable(value)
    return isinstance(value, kind)


_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    tuple: "a list",
    type(None): "None",
    Callable: "a function",
}


def _named(kinds: tuple[Any, ...]) -> str:
    names = [_NAMES.get(kind) or f"a {cast('type', kind).__name__}" for kind in kinds]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _fix(value: object, kinds: tuple[Any, ...]) -> str:
    is_rate = any(getattr(kind, "__name__", "") == "Rate" for kind in kinds)
    if is_rate and isinstance(value, int | float) and not isinstance(value, bool):
        return f": {value!r} a second is Rate({value!r}, burst={max(1, round(value * 10))})"
    if inspect.iscoroutine(value) and Callable in kinds:
        return f": write {value.__name__}, without calling it"
    if isinstance(value, str) and value.replace(".", "", 1).isdecimal():
        return f": write {value}, without quotes"
    return ""


def _off(kinds: tuple[Any, ...]) -> str:
    return "; None switches it off" if type(None) in kinds else ""
