"""Pydantic's type adapters: how types that validate by themselves are decoded and encoded.

Pydantic is no dependency: it is taken from where the application has imported it.
"""

import sys
from typing import Any, cast

import msgspec
from msgspec import Raw

from starlette_channels.exceptions import SerializerError

MAX_ERRORS = 1_000
"""With more errors than these, none of them is described: pydantic describes all, or none."""


class Misfit(ValueError):
    """A value does not fit its type: what is wrong, and where below the value that is."""

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.text: str = text
        self.path: str = path


class Adapter:
    """Decodes and encodes one type as pydantic does, as FastAPI has it: by alias, and without what is excluded.

    Raises `TypeError` for a type that pydantic cannot decode.
    """

    __slots__ = ("_adapter", "name")

    def __init__(self, annotation: Any) -> None:
        pydantic: Any = sys.modules.get("pydantic")
        self.name: str = getattr(annotation, "__name__", str(annotation))
        if pydantic is None or not hasattr(pydantic, "TypeAdapter"):
            raise TypeError(f"{self.name} is checked by pydantic 2, which nobody has imported")
        try:
            self._adapter: Any = pydantic.TypeAdapter(annotation)
        except Exception as error:  # pydantic has no class for what is wrong with a definition
            raise TypeError(f"pydantic cannot decode {self.name}: {_first_line(error)}") from error
        schema: Any = getattr(self._adapter, "core_schema", None)
        never = _never_json(schema) if isinstance(schema, dict) else None  # no dict yet: a class is not defined yet
        if never is not None:
            raise TypeError(
                f"{self.name}: {never} cannot be decoded from JSON; use a model, or a validator that makes one of it"
            )

    def decode(self, json: bytes) -> Any:
        """Validate JSON; raises `Misfit`."""
        try:
            return self._adapter.validate_json(json)
        except ValueError as error:
            raise _misfit(error, json) from None

    def take(self, value: Any) -> Any:
        """Validate JSON that is decoded already; raises `Misfit`."""
        return self.decode(msgspec.json.encode(value))

    def take_bytes(self, data: bytes) -> Any:
        """Validate what is no JSON; raises `Misfit`."""
        try:
            return self._adapter.validate_python(data)
        except ValueError as error:
            raise _misfit(error, b"null") from None

    def take_text(self, text: str) -> Any:
        """Validate what is always text, as in a topic; raises `Misfit`."""
        try:
            return self._adapter.validate_strings(text)
        except ValueError as error:
            raise _misfit(error, b"null") from None

    def simplify(self, value: Any) -> Any:
        """Return a value as what JSON is made of; it may be the key of an object then."""
        return self._adapter.dump_python(value, mode="json", by_alias=True)

    def dump(self, value: Any) -> Raw:
        """Return a value as JSON."""
        return dump(self._adapter.serializer, value)


def dump(serializer: Any, value: Any) -> Raw:
    """Return what a serializer of pydantic makes of a value, by alias, as FastAPI does.

    Raises `SerializerError` for what contains itself, and for text that is no Unicode, and `TypeError` for what cannot
    be encoded.
    """
    try:
        return Raw(serializer.to_json(value, by_alias=True))
    except UnicodeEncodeError as error:
        raise SerializerError(f"text that is no Unicode: {error}") from None
    except ValueError as error:
        if type(error).__name__ != "PydanticSerializationError":
            raise
        kind = SerializerError if "ircular" in str(error) or "surrogate" in str(error) else TypeError
        raise kind(f"{type(value).__name__} cannot be encoded: {_first_line(error)}") from error


def _never_json(schema: Any) -> str | None:
    """Return what is inside of a schema of pydantic, and must be, but cannot come from JSON: an instance of a class.

    What goes through a validator of the application may; so that is not looked into.
    """
    kind: str = schema.get("type", "")
    if kind in ("is-instance", "is-subclass", "callable"):
        return f"an instance of {getattr(schema.get('cls'), '__name__', 'a function')}"
    if kind == "union":
        choices = [_never_json(one[0] if isinstance(one, tuple) else one) for one in schema["choices"]]
        return choices[0] if all(choices) else None
    inner: list[Any] = []
    if kind == "json-or-python":
        inner.append(schema["json_schema"])
    elif kind in ("nullable", "model", "dataclass", "definitions"):
        inner.append(schema["schema"])
    elif kind in ("list", "set", "frozenset", "dict", "tuple"):
        items: Any = schema.get("values_schema") or schema.get("items_schema") or []
        inner += items if isinstance(items, list) else [items]
    elif kind in ("model-fields", "typed-dict"):
        inner += [one["schema"] for one in schema["fields"].values() if one["schema"].get("type") != "default"]
    elif kind == "dataclass-args":
        inner += [one["schema"] for one in schema["fields"] if one["schema"].get("type") != "default"]
    return next(filter(None, map(_never_json, inner)), None)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _misfit(error: Any, json: bytes) -> Misfit:
    """Return the first of pydantic's complaints. `error` is pydantic's `ValidationError`, or another `ValueError`."""
    if not hasattr(error, "error_count"):
        return Misfit(_first_line(error))
    number: int = error.error_count()
    if number > MAX_ERRORS:
        return Misfit(f"{number} validation errors for {error.title}")
    first: dict[str, Any] = error.errors(include_url=False, include_input=False, include_context=False)[0]
    missing = str(first["type"]).startswith("missing")
    return Misfit(str(first["msg"]), _path(cast("tuple[str | int, ...]", first["loc"]), json, missing=missing))


def _path(steps: tuple[str | int, ...], json: bytes, *, missing: bool) -> str:
    """Write where an error is as msgspec does. The names of a union's members are no steps of a path."""
    try:
        here: Any = msgspec.json.decode(json)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        here = None
    path = ""
    for number, step in enumerate(steps):
        if isinstance(step, int):
            path += f"[{step}]"
            here = cast("list[Any]", here)[step] if isinstance(here, list) and step < len(here) else None
        elif isinstance(here, dict) and (step in here or (missing and number == len(steps) - 1)):
            path += f".{step}"
            here = cast("dict[str, Any]", here).get(step)
    return path
