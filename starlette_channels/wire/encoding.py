"""Payload encoding: JSON by msgspec, and by pydantic for pydantic's types, at any depth of a payload.

msgspec calls `encode_unknown` for types that it does not know, such as pydantic models and mappings other than dicts.
It would write pydantic dataclasses as plain dataclasses, with excluded fields and without aliases; so in processes that
have any, these are replaced by their JSON first (`prepared`).
"""

import collections
import dataclasses
import datetime
import decimal
import enum
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import msgspec
from msgspec import Raw, Struct

from starlette_channels.exceptions import SerializerError
from starlette_channels.wire.annotations import (
    Parts,
    has_fields,
    hints_of,
    is_class,
    is_pydantic_class,
    is_union,
    parts_of,
    unwrapped,
)
from starlette_channels.wire.pydantic_adapters import Adapter, dump

T = TypeVar("T")

Prepare = Callable[[Any], Any]
"""Returns a replacement that msgspec encodes in place of a value: often the value itself."""

MAX_KNOWN_CLASSES = 1_000

ATOMS: frozenset[type] = frozenset(
    {
        *(str, int, float, bool, type(None), bytes, bytearray, memoryview, Raw, decimal.Decimal, uuid.UUID),
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
    }
)
"""Types without inner values."""


class TooDeep(SerializerError):
    """A payload is nested too deeply to be encoded."""


def encode_json(payload: object, _modules: Mapping[str, Any] = sys.modules) -> Raw:
    """Encode a payload as JSON.

    Raises `TypeError` for a value that cannot be encoded. Raises `SerializerError` for lone surrogates, and for values
    that contain themselves or are nested more deeply than Python's stack allows.
    """
    try:
        if "pydantic.dataclasses" in _modules:
            payload = prepared(payload)
        return Raw(_encode(payload))
    except (UnicodeEncodeError, RecursionError) as error:
        raise refusal(error) from None


def encode_prepared(payload: object) -> Raw:
    """Encode a payload of a type that has pydantic's types inside, as `encode_json` does."""
    try:
        return Raw(_encode(prepared(payload)))
    except (UnicodeEncodeError, RecursionError) as error:
        raise refusal(error) from None


def _encode_as_it_is(payload: object) -> Raw:
    try:
        return Raw(_encode(payload))
    except (UnicodeEncodeError, RecursionError) as error:
        raise refusal(error) from None


def refusal(error: UnicodeEncodeError | RecursionError) -> SerializerError:
    """Return the error for a payload with lone surrogates, or one that contains itself or is nested too deeply."""
    if isinstance(error, UnicodeEncodeError):
        return SerializerError(f"text with lone surrogates: {error}")
    return TooDeep("a payload that contains itself, or is nested too deeply")


def encode_unknown(instance: Any) -> Any:
    """Return a replacement for a value of a type that msgspec does not know: the encoder's `enc_hook`."""
    kind = cast("Any", type(instance))
    serializer = getattr(kind, "__pydantic_serializer__", None)
    if serializer is not None:
        return dump(serializer, instance)
    if issubclass(kind, Mapping):
        return prepared(dict(instance))
    if issubclass(kind, collections.deque):
        return prepared(list(instance))
    if hasattr(kind, "model_dump"):
        return instance.model_dump(mode="json", by_alias=True)
    if is_pydantic_class(kind) or ("pydantic" in sys.modules and kind.__module__ in _KNOWN_TO_PYDANTIC):
        return _adapter_of(kind).simplify(instance)
    if kind in ATOMS or kind in (tuple, frozenset):
        raise TypeError(f"Encoding a {kind.__name__} as the key of an object is unsupported: keys are text or numbers")
    raise TypeError(f"Encoding objects of type {kind.__name__} is unsupported")


_KNOWN_TO_PYDANTIC = ("ipaddress", "pathlib", "pathlib._local", "fractions")
encode_natively: Callable[[Any], bytes] = msgspec.json.Encoder(enc_hook=encode_unknown).encode
_encode = encode_natively


class Encoders(dict[type, Callable[[Any], Any]]):
    """Cache of the encoder of each class: choosing one takes longer than encoding."""

    def remember(self, kind: type[Any], encoder: Callable[[Any], T]) -> Callable[[Any], T]:
        """Store and return the encoder of a class."""
        if len(self) < MAX_KNOWN_CLASSES:  # classes created dynamically must not fill the memory
            self[kind] = encoder
        return encoder


_tables: list[Encoders] = []
special_classes: set[type] = set()
"""Classes that msgspec would encode wrongly. If there are any, `prepared` searches each payload."""


def encoders() -> Encoders:
    """Return a new cache of encoders. It is cleared when `special_classes` becomes non-empty."""
    _tables.append(Encoders())
    return _tables[-1]


def json_encoder(kind: type[Any]) -> Callable[[Any], Raw]:
    """Choose the encoder of a class."""
    if hasattr(kind, "__pydantic_serializer__"):
        return encode_prepared
    if has_fields(kind):
        prepare = _preparer(kind)
        if prepare is _itself:
            return _encode_as_it_is
        if (_parts_of_class(kind) or Parts.NOTHING) & Parts.PYDANTIC:
            return encode_prepared
    return encode_prepared if special_classes else encode_json


def _note_special(kind: type) -> None:
    """Add a class to `special_classes`."""
    if not special_classes:
        for table in _tables:
            table.clear()
    special_classes.add(kind)


def prepared(value: Any) -> Any:
    """Replace inner values that msgspec would encode wrongly; returns the same object if there are none.

    Costs about as much as encoding.
    """
    kind = value.__class__
    if kind in ATOMS:
        return value
    return (_preparers.get(kind) or _preparer(kind))(value)


def _itself(value: Any) -> Any:
    return value


def _prepare_dict(value: dict[Any, Any]) -> Any:
    changed: dict[Any, Any] | None = None
    for key, item in value.items():
        if item.__class__ not in ATOMS:
            new = prepared(item)
            if new is not item:
                changed = dict(value) if changed is None else changed
                changed[key] = new
    return value if changed is None else changed


def _prepare_items(value: Any) -> Any:
    changed: list[Any] | None = None
    for number, item in enumerate(value):
        if item.__class__ not in ATOMS:
            new = prepared(item)
            if new is not item:
                changed = list(value) if changed is None else changed
                changed[number] = new
    return value if changed is None else changed


def _prepare_mapping(value: Mapping[Any, Any]) -> Any:
    return _prepare_dict(dict(value))


_preparers: dict[type, Prepare] = {
    dict: _prepare_dict,
    **dict.fromkeys((list, tuple, set, frozenset), _prepare_items),
}


def _preparer(kind: type[Any]) -> Prepare:
    """Return the cached `Prepare` of a class."""
    known = _preparers.get(kind)
    if known is not None:
        return known
    prepare = _new_preparer(kind)
    if len(_preparers) < MAX_KNOWN_CLASSES:  # classes created dynamically must not fill the memory
        _preparers[kind] = prepare
    return prepare


def _dump_by_itself(value: Any) -> Raw:
    return dump(value.__pydantic_serializer__, value)


def _new_preparer(kind: type[Any]) -> Prepare:
    if hasattr(kind, "__pydantic_serializer__"):  # a dataclass of pydantic, or a model
        return _dump_by_itself
    if issubclass(kind, dict):
        return _prepare_dict
    if has_fields(kind):
        parts = _parts_of_class(kind)
        if parts is None:
            return _FieldsPreparer(kind, {})
        if parts & Parts.PYDANTIC:
            if parts & Parts.SHAPED:
                _note_special(kind)
            return _special_preparer(kind, parts)
        if not hasattr(kind, "_fields") and all(_is_closed(hint) for hint in hints_of(kind).values()):
            return _itself
        return _FieldsPreparer(kind, {})
    if issubclass(kind, list | tuple | set | frozenset):
        return _prepare_items
    return _prepare_mapping if issubclass(kind, Mapping) else _itself


def _parts_of_class(kind: type[Any]) -> Parts | None:
    """Return the parts of a class, or `None` if its type hints cannot be evaluated; msgspec encodes without them."""
    try:
        return parts_of(kind)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return None


def _special_preparer(kind: type[Any], parts: Parts) -> Prepare:
    """Prepare a class with pydantic's types inside: as a whole if pydantic can decode all, else field by field."""
    if not parts & Parts.NOT_PYDANTIC:
        return _adapter_of(kind).dump
    dumps: dict[str, Prepare] = {}
    for name, hint in hints_of(kind).items():
        inside = parts_of(hint)
        if inside & Parts.PYDANTIC and not inside & Parts.NOT_PYDANTIC:
            dumps[name] = Adapter(hint).dump
    return _FieldsPreparer(kind, dumps)


def _is_closed(hint: Any) -> bool:
    """Whether a type leaves no place for values that have to be replaced."""
    hint = unwrapped(hint)
    origin: Any = get_origin(hint)
    if origin is Literal or hint is None or hint in ATOMS or (is_class(hint) and issubclass(hint, enum.Enum)):
        return True
    if origin is Annotated:
        return _is_closed(get_args(hint)[0])
    if is_union(hint) or origin in (list, dict, tuple, set, frozenset):
        return all(one is Ellipsis or _is_closed(one) for one in get_args(hint))
    return False


class _FieldsPreparer:
    """Replaces values in the fields of a class; the layout in JSON stays that of msgspec."""

    def __init__(self, kind: type[Any], dumps: Mapping[str, Prepare]) -> None:
        self._dumps = dumps
        self._is_tuple = issubclass(kind, tuple)
        self._is_attrs = hasattr(kind, "__attrs_attrs__")
        self._layout: Any = None
        self._omitted: dict[str, Any] = {}
        if issubclass(kind, Struct):
            self._names = kind.__struct_fields__
            self._layout = _layout(kind)
            if kind.__struct_config__.omit_defaults:
                self._omitted = {one.name: one.default for one in msgspec.structs.fields(kind)}
        elif self._is_tuple:
            self._names = cast("Any", kind)._fields
        elif self._is_attrs:
            self._names = tuple(one.name for one in cast("Any", kind).__attrs_attrs__)
        else:
            self._names = tuple(one.name for one in dataclasses.fields(kind))

    def __call__(self, value: Any) -> Any:
        changed = False
        fields: dict[str, Any] = {}
        for name in self._names:
            item = getattr(value, name, msgspec.UNSET)
            absent = item is msgspec.UNSET or item is self._omitted.get(name, msgspec.UNSET)
            dump = self._dumps.get(name, prepared)
            fields[name] = new = item if absent else dump(item)
            changed = changed or new is not item
        if not changed:
            return value
        if self._layout is not None:
            return self._layout(**fields)
        if self._is_tuple:
            return list(fields.values())
        return {
            name: new
            for name, new in fields.items()
            if new is not msgspec.UNSET and not (self._is_attrs and name.startswith("_"))
        }


def _layout(kind: type[Struct]) -> Any:
    """Return a `Struct` class with fields of type `Any` and the JSON layout of another."""
    config = kind.__struct_config__
    specs: list[Any] = []
    for one in msgspec.structs.fields(kind):
        if one.required:
            specs.append((one.name, Any))
        elif one.default_factory is not msgspec.NODEFAULT:
            specs.append((one.name, Any, msgspec.field(default_factory=one.default_factory)))
        else:
            specs.append((one.name, Any, msgspec.field(default=one.default)))
    tag = {} if config.tag is None else {"tag": config.tag, "tag_field": config.tag_field}
    return msgspec.defstruct(
        kind.__name__,
        specs,
        rename={one.name: one.encode_name for one in msgspec.structs.fields(kind)},
        kw_only=True,
        omit_defaults=config.omit_defaults,
        array_like=config.array_like,
        **cast("Any", tag),
    )


_adapters: dict[type, Adapter] = {}


def _adapter_of(kind: type[Any]) -> Adapter:
    adapter = _adapters.get(kind)
    if adapter is None:
        adapter = Adapter(kind)
        if len(_adapters) < MAX_KNOWN_CLASSES:
            _adapters[kind] = adapter
    return adapter


def note_type(annotation: Any) -> None:
    """Register the payload type of a handler: values of it may be sent later inside of other payloads."""
    if parts_of(annotation) & Parts.SHAPED:
        _note_special(object)
