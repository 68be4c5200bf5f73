"""Checks of the application's functions: `async def` or not, and the parameters that they accept.

A function is any callable: `functools.partial`, a bound method, an object with `__call__`, a decorated function. Wrong
ones raise `TypeError`, with the fix in the text.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, cast, get_args, get_origin

from starlette_channels.arguments import close_called

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def name_of(function: object) -> str:
    """Return the qualified name of a function for logs: `chat.rooms.new_msg`."""
    written = plain(function)
    name = getattr(written, "__qualname__", None)
    if name is None:
        written = type(written)
        name = written.__qualname__
    return f"{getattr(written, '__module__', None) or '?'}.{name}"


def short_name(function: object) -> str:
    """Return the name of a function for error messages, without its module."""
    if isinstance(function, functools.partial):
        return f"partial({short_name(cast('functools.partial[Any]', function).func)})"
    return getattr(function, "__name__", None) or repr(function)


def plain(function: object) -> object:
    """Unwrap partials and static methods."""
    while True:
        if isinstance(function, functools.partial):
            function = cast("functools.partial[Any]", function).func
        elif isinstance(function, staticmethod | classmethod):
            function = cast("staticmethod[..., Any]", function).__func__
        else:
            return function


def defined_in(function: object) -> Callable[..., Any]:
    """Return the function that has the annotations: of an object, its `__call__`."""
    inside = plain(function)
    if not (inspect.isroutine(inside) or inspect.isclass(inside)):
        inside = type(inside).__call__
    return cast("Callable[..., Any]", inside)


def is_async(function: object) -> bool:
    """Whether a callable, or its `__call__`, is defined with `async def`."""
    inside = plain(function)
    if inspect.iscoroutinefunction(inside):
        return True
    call = None if inspect.isclass(inside) else inspect.getattr_static(type(inside), "__call__", None)
    return inspect.iscoroutinefunction(plain(call))


def check_function(
    function: object,
    label: str,
    takes: tuple[str, ...],
    extra: tuple[str, ...] = (),
    *,
    to_await: bool = True,
    by_name: bool = True,
) -> inspect.Parameter:
    """Check the signature of a function, and return its parameter for the last argument of `takes`.

    Args:
        function: The function.
        label: The place where the application passed it, for error messages.
        takes: The names of the arguments passed by position.
        extra: The names of the arguments passed by keyword.
        to_await: Whether it must be `async def`; otherwise it must not be.
        by_name: Whether `*args` is refused, because the annotations of the parameters are needed.

    Raises:
        TypeError: The function does not fit; the message shows the signature that would.
    """
    shape = "must be `async def`" if to_await else "must not be async"
    wanted = f"{label}: {short_name(function)} {shape} and take ({', '.join((*takes, *extra))})"
    if not callable(function):
        name = close_called(function)
        raise TypeError(
            f"{wanted}: it is not a function"
            if name is None
            else f"{label}: {name}(...) calls the function itself; write {name}, without calling it"
        )
    if is_async(function) is not to_await:
        raise TypeError(wanted + _why_not_async(function) if to_await else wanted)
    try:
        parameters = _parameters(function, takes, extra)
    except TypeError as error:
        raise TypeError(f"{wanted}: {error}{_advice(function)}") from None
    except ValueError:  # a builtin without a signature
        return inspect.Parameter(takes[-1], inspect.Parameter.POSITIONAL_ONLY)
    positional = [one for one in parameters if one.kind in POSITIONAL]
    if len(positional) < len(takes) and by_name:
        raise TypeError(f"{wanted}, each by name")
    filled = {*(one.name for one in positional[: len(takes)]), *extra}
    for parameter in parameters:
        if parameter.name not in filled and _is_dependency(parameter):
            raise TypeError(f"{wanted}: {parameter.name} gets no value{_INSTEAD}")
        if parameter.name in filled and _is_depends(parameter):
            raise TypeError(f"{wanted}: {parameter.name} gets its value from the library{_INSTEAD}")
    last = positional[len(takes) - 1 : len(takes)]
    return last[0] if last else inspect.Parameter(takes[-1], inspect.Parameter.POSITIONAL_ONLY)


def check_call_later(function: object, what: str, args: str = "") -> None:
    """Raise `TypeError` unless a function can be called later; a coroutine cannot, since it was called already."""
    if callable(function):
        return
    name = close_called(function)
    if name is not None:
        how = f"{what}({', '.join(filter(None, (name, args)))})"
        raise TypeError(f"{what}({name}(...)): it calls the function itself; write {how}, without calling it")
    raise TypeError(f"{what}({function!r}): it takes a function")


_INSTEAD = (
    ": Depends works in requests only, and there is none here; call the dependency in the function, or open what it"
    " needs there, such as a database session"
)


def _parameters(
    function: Callable[..., Any], takes: tuple[str, ...], extra: tuple[str, ...]
) -> tuple[inspect.Parameter, ...]:
    """Return the parameters of a function that accepts such a call.

    A decorator whose wrapper takes `*args, **kwargs` may pass further arguments to the function inside. Raises
    `TypeError` if the call does not fit, and `ValueError` for builtins with an unknown signature.
    """
    callee = cast("staticmethod[..., Any]", function).__func__ if isinstance(function, staticmethod) else function
    own = inspect.signature(callee, follow_wrapped=False)
    own.bind(*takes, **dict.fromkeys(extra))
    parameters = tuple(own.parameters.values())
    inside = inspect.signature(callee)
    if inside == own or sum(one.kind in POSITIONAL for one in parameters) >= len(takes):
        return parameters
    if {one.kind for one in parameters} >= {*VARIADIC}:
        inside.bind_partial(*takes, **dict.fromkeys(extra))
    else:
        inside.bind(*takes, **dict.fromkeys(extra))
    # The wrapper passes the other arguments, or they have defaults.
    needed = [one for one in inside.parameters.values() if one.kind in POSITIONAL]
    return tuple(needed[: len(takes)])


def _why_not_async(function: object) -> str:
    """Return the reason why a function is not async, with a fix, or an empty text."""
    inside = plain(function)
    if inspect.isasyncgenfunction(inside):
        return ": it contains `yield`, so it is a generator"
    if inspect.isclass(inside):
        return ": it is a class; pass an instance, with `async def __call__`"
    wrapped = getattr(inside, "__wrapped__", None)
    if wrapped is not None and is_async(wrapped):
        return ": its decorator makes it a plain function; write the wrapper with `async def`, and await the function"
    return ""


def _advice(function: object) -> str:
    """Return advice if a parameter looks like a FastAPI dependency."""
    try:
        parameters = inspect.signature(cast("Callable[..., Any]", function)).parameters.values()
    except (TypeError, ValueError):
        return ""
    return _INSTEAD if any(_is_dependency(one) for one in parameters) else ""


def _is_dependency(parameter: inspect.Parameter) -> bool:
    """Whether a parameter has a marker for dependency injection, such as FastAPI's `Depends` or `Query`."""
    if isinstance(parameter.annotation, str) and "Depends(" in parameter.annotation:
        return True
    return any(_is_marker(value) for value in _marks(parameter))


def _is_depends(parameter: inspect.Parameter) -> bool:
    """Whether a parameter has the marker `Depends`; other markers may only validate."""
    if isinstance(parameter.annotation, str) and "Depends(" in parameter.annotation:
        return True
    return _is_dependency(parameter) and any(
        base.__name__ in ("Depends", "Dependant") for mark in _marks(parameter) for base in type(mark).__mro__
    )


def _marks(parameter: inspect.Parameter) -> Iterator[object]:
    yield parameter.default
    if get_origin(parameter.annotation) is Annotated:
        yield from get_args(parameter.annotation)[1:]


def _is_marker(value: object) -> bool:
    """Whether a value is a FastAPI marker, recognized by the module of its class, since FastAPI is not imported."""
    kind = value if inspect.isclass(value) else type(value)
    return any(base.__module__ in _FRAMEWORKS for base in kind.__mro__)


_FRAMEWORKS = frozenset({"fastapi.params", "fast_depends.dependencies", "fast_depends.dependencies.model"})
