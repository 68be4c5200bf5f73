"""Pydantic adapters: decoding and encoding of pydantic's types by its `TypeAdapter`.

Pydantic is not a dependency: the module is the one that the application has imported.
"""

import sys
from typing import Any, cast

import msgspec
from msgspec import Raw

from starlette_channels.exceptions import SerializerError

MAX_ERRORS = 1_000
"""With more validation errors, only their number is reported: pydantic would describe all of them."""


class Misfit(ValueError):
    """A value does not fit its type; `text` says why, `path` where inside of the value."""

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.text: str = text
        self.path: str = path


class Adapter:
    """Decodes and encodes one type with pydantic as FastAPI does: by alias, and without excluded fields.

    Raises `TypeError` for a type that pydantic cannot decode from JSON.
    """

    __slots__ = ("_adapter", "name")

    def __init__(self, annotation: Any) -> None:
        pydantic: Any = sys.modules.get("pydantic")
        self.name: str = getattr(annotation, "__name__", str(annotation))
        if pydantic is None or not hasattr(pydantic, "TypeAdapter"):
            raise TypeError(f"{self.name} needs pydantic 2, which is not imported")
        try:
            self._adapter: Any = pydantic.TypeAdapter(annotation)
        except Exception as error:  # pydantic has no common class for errors in definitions
            raise TypeError(f"pydantic cannot decode {self.name}: {_first_line(error)}") from error
        schema: Any = getattr(self._adapter, "core_schema", None)
        never = (
            _never_json(schema) if isinstance(schema, dict) else None
        )  # not a dict while a forward reference is undefined
        if never is not None:
            raise TypeError(
                f"{self.name}: {never} cannot be decoded from JSON; use a model, or a validator that creates it"
            )

    def decode(self, json: bytes) -> Any:
        """Validate JSON; raises `Misfit`."""
        try:
            return self._adapter.validate_json(json)
        except ValueError as error:
            raise _misfit(error, json) from None

    def take(self, value: Any) -> Any:
        """Validate decoded JSON; raises `Misfit`."""
        return self.decode(msgspec.json.encode(value))

    def take_bytes(self, data: bytes) -> Any:
        """Validate the bytes of a binary frame; raises `Misfit`."""
        try:
            return self._adapter.validate_python(data)
        except ValueError as error:
            raise _misfit(error, b"null") from None

    def take_text(self, text: str) -> Any:
        """Validate text of a topic segment; raises `Misfit`."""
        try:
            return self._adapter.validate_strings(text)
        except ValueError as error:
            raise _misfit(error, b"null") from None

    def simplify(self, value: Any) -> Any:
        """Convert a value to JSON types, so that it may be the key of an object."""
        return self._adapter.dump_python(value, mode="json", by_alias=True)

    def dump(self, value: Any) -> Raw:
        """Encode a value as JSON."""
        return dump(self._adapter.serializer, value)


def dump(serializer: Any, value: Any) -> Raw:
    """Encode a value with one of pydantic's serializers, by alias, as FastAPI does.

    Raises `SerializerError` for values that contain themselves and for lone surrogates, and `TypeError` for values that
    cannot be encoded.
    """
    try:
        return Raw(serializer.to_json(value, by_alias=True))
    except UnicodeEncodeError as error:
        raise SerializerError(f"text with lone surrogates: {error}") from None
    except ValueError as error:
        if type(error).__name__ != "PydanticSerializationError":
            raise
        kind = SerializerError if "ircular" in str(error) or "surrogate" in str(error) else TypeError
        raise kind(f"{type(value).__name__} cannot be encoded: {_first_line(error)}") from error


def _never_json(schema: Any) -> str | None:
    """Return the required part of a pydantic schema that JSON can never contain, an instance of a class; else `None`.

    Validators of the application may create such instances, so the schemas of validators are not searched.
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
    """Return the first error of pydantic's `ValidationError`, or another `ValueError`, as a `Misfit`."""
    if not hasattr(error, "error_count"):
        return Misfit(_first_line(error))
    number: int = error.error_count()
    if number > MAX_ERRORS:
        return Misfit(f"{number} validation errors for {error.title}")
    first: dict[str, Any] = error.errors(include_url=False, include_input=False, include_context=False)[0]
    missing = str(first["type"]).startswith("missing")
    return Misfit(str(first["msg"]), _path(cast("tuple[str | int, ...]", first["loc"]), json, missing=missing))


def _path(steps: tuple[str | int, ...], json: bytes, *, missing: bool) -> str:
    """Return pydantic's `loc` as a path in msgspec's notation, without the names of union members."""
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
