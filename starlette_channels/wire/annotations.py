"""Annotations: the parts of a type, and the library that decodes each: msgspec, pydantic or attrs.

Neither pydantic nor attrs is imported here: an application with their classes in an annotation has imported them.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Flag
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, TypeVar, Union, cast, get_args, get_origin

import msgspec
from msgspec import Meta, Raw, Struct, UnsetType

QUALIFIERS = ("Required", "NotRequired", "ReadOnly", "Final", "ClassVar", "InitVar")


class Parts(Flag):
    """Parts of a type, at any depth, that decide whether msgspec or pydantic alone can decode it."""

    NOTHING = 0
    PYDANTIC = 1
    """A pydantic model, dataclass or type, or metadata for pydantic, such as `Field(min_length=3)`."""
    CHECKS = 2
    """Metadata of annotated-types, such as `Ge(3)`."""
    CONVERTERS = 4
    """An attrs class with converters."""
    NOT_PYDANTIC = 8
    """Types that pydantic cannot decode, or constraints that it ignores: a `Struct`, an attrs class, `msgspec.Meta`."""

    METADATA = 16
    """Metadata for pydantic, outside of pydantic's own classes."""
    SHAPED = 32
    """A dataclass, `Struct`, attrs class or named tuple whose fields have metadata for pydantic."""

    SPECIAL = PYDANTIC | CHECKS | CONVERTERS


class Field(NamedTuple):
    """A field of a class."""

    name: str
    """The name of the attribute."""
    argument: str
    """The name of the constructor's argument."""
    key: str
    """The name in JSON."""
    type: Any
    """The type to decode before the constructor is called."""
    required: bool


class Fields(NamedTuple):
    """The constructor of a class, its fields, and their layout in JSON."""

    made: Callable[..., Any]
    fields: tuple[Field, ...]
    options: Mapping[str, Any]
    """The options of a `Struct` with the same layout."""


def is_class(annotation: Any) -> TypeGuard[type[Any]]:
    """Whether an annotation is a class; `list[int]` is not."""
    return isinstance(annotation, type) and get_origin(annotation) is None


def is_alias(annotation: Any) -> bool:
    """Whether an annotation is `type Name = ...`; by name, because older Pythons lack the class."""
    return type(annotation).__name__ == "TypeAliasType"


def alias_value(annotation: Any) -> Any:
    """Return the value of an alias with its type parameters substituted; any other annotation unchanged."""
    if is_alias(annotation):
        return annotation.__value__
    origin: Any = get_origin(annotation)
    if is_alias(origin):
        return substituted(origin.__value__, dict(zip(origin.__type_params__, get_args(annotation), strict=False)))
    return annotation


def unwrapped(annotation: Any) -> Any:
    """Return the type inside of a `NewType`, an alias, `Required[...]`, `Final[...]` and the like."""
    while True:
        inner = alias_value(annotation)
        if isinstance(inner, typing.NewType):
            inner = inner.__supertype__
        elif getattr(get_origin(inner), "_name", None) in QUALIFIERS:
            inner = get_args(inner)[0]
        elif isinstance(inner, TypeVar):
            inner = _bound(inner)
        if inner is annotation:
            return inner
        annotation = inner


def _bound(variable: TypeVar) -> Any:
    if variable.__constraints__:
        return Union[variable.__constraints__]  # noqa: UP007 - known at run time only
    return Any if variable.__bound__ is None else variable.__bound__


def is_union(annotation: Any) -> bool:
    """Whether an annotation is `Union[...]`, `Optional[...]` or `... | ...`."""
    return get_origin(annotation) in (Union, types.UnionType)


def is_pydantic_class(annotation: Any) -> bool:
    """Whether a class is a pydantic model, dataclass or custom type."""
    bare: Any = get_origin(annotation) or annotation
    return is_class(bare) and (
        hasattr(bare, "__pydantic_validator__")
        or hasattr(bare, "__pydantic_core_schema__")
        or (hasattr(bare, "__get_pydantic_core_schema__") and "pydantic" in sys.modules)
    )


def is_pydantic_metadata(metadata: object) -> bool:
    """Whether metadata in `Annotated` is for pydantic: `Field(...)`, validators, serializers, constraints."""
    kinds = metadata.__mro__ if isinstance(metadata, type) else type(metadata).__mro__
    return hasattr(metadata, "__get_pydantic_core_schema__") or any(
        kind.__module__.partition(".")[0] in ("pydantic", "pydantic_core") for kind in kinds
    )


def is_check(metadata: object) -> bool:
    """Whether metadata in `Annotated` is a constraint of annotated-types."""
    if is_pydantic_metadata(metadata):
        return False
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(metadata).__mro__}
    if kinds & {"annotated_types.DocInfo", "annotated_types.Unit"}:
        return False
    return any(name.startswith("annotated_types.") for name in kinds)


def is_old_typed_dict(annotation: Any) -> bool:
    """Whether an annotation is a `typing.TypedDict` before Python 3.12, which pydantic refuses."""
    return sys.version_info < (3, 12) and type(annotation) is type(_Empty)


class _Empty(typing.TypedDict):
    """A typed dict, for its metaclass."""


def is_typed_dict(annotation: Any) -> bool:
    """Whether an annotation is a `TypedDict` of `typing` or `typing_extensions`."""
    bare: Any = get_origin(annotation) or annotation
    return is_class(bare) and hasattr(bare, "__total__") and issubclass(bare, dict)


def is_required(typed_dict: Any, name: str, hint: Any) -> bool:
    """Whether a key of a typed dict is required. The hint decides: with postponed annotations, the class is wrong."""
    while get_origin(hint) is Annotated:
        hint = hint.__origin__
    qualifier = getattr(get_origin(hint), "_name", None)
    if qualifier in ("Required", "NotRequired"):
        return qualifier == "Required"
    return name in typed_dict.__required_keys__


def parts_of(annotation: Any) -> Parts:
    """Return the parts of a type; it may contain itself. Raises as `typing.get_type_hints` for undefined names."""
    return _parts(annotation, set())


def _parts(annotation: Any, seen: set[int]) -> Parts:
    if is_alias(annotation):
        if id(annotation) in seen:
            return Parts.NOTHING
        seen.add(id(annotation))
    annotation = unwrapped(annotation)
    if annotation in (Any, object, None) or get_origin(annotation) is Literal:
        return Parts.NOTHING
    if get_origin(annotation) is Annotated:
        found = _parts(annotation.__origin__, seen)
        for metadata in annotation.__metadata__:
            found |= _parts_of_metadata(metadata)
        return found
    if is_pydantic_class(annotation):
        _refuse_meta_in_pydantic(annotation, seen)
        return Parts.PYDANTIC
    found = Parts.NOTHING
    bare: Any = get_origin(annotation) or annotation
    if not is_union(annotation) and is_class(bare):
        if id(annotation) in seen:
            return Parts.NOTHING
        seen.add(id(annotation))
        found |= _parts_of_class(bare)
    for inner in _children(annotation):
        found |= _parts(inner, seen)
    if found & Parts.METADATA and is_class(bare) and has_fields(bare) and not is_typed_dict(bare):
        found |= Parts.SHAPED
    return found


def _parts_of_metadata(metadata: object) -> Parts:
    if isinstance(metadata, Meta):
        return Parts.NOT_PYDANTIC
    if is_check(metadata):
        return Parts.CHECKS
    return Parts.PYDANTIC | Parts.METADATA if is_pydantic_metadata(metadata) else Parts.NOTHING


def _parts_of_class(bare: type[Any]) -> Parts:
    found = Parts.NOTHING
    ours = issubclass(bare, Struct | Raw | UnsetType)
    if ours or hasattr(bare, "__attrs_attrs__") or is_old_typed_dict(bare):
        found |= Parts.NOT_PYDANTIC
    if any(one.converter is not None for one in getattr(bare, "__attrs_attrs__", ())):
        found |= Parts.CONVERTERS
    if any(is_pydantic_metadata(default) for default in _dataclass_defaults(bare)):
        found |= Parts.PYDANTIC | Parts.METADATA
    return found


def _dataclass_defaults(bare: type[Any]) -> Iterator[object]:
    """Yield the defaults of a dataclass, where pydantic accepts `Field(...)` as well."""
    for one in getattr(bare, "__dataclass_fields__", {}).values():
        yield one.default


def _refuse_meta_in_pydantic(annotation: Any, seen: set[int]) -> None:
    """Raise `TypeError` for a pydantic class with constraints of msgspec, which pydantic would silently ignore."""
    bare: Any = get_origin(annotation) or annotation
    if id(bare) in seen:
        return
    seen.add(id(bare))
    fields: Mapping[str, Any] = getattr(bare, "__pydantic_fields__", {})
    for name, field in fields.items():
        if any(isinstance(one, Meta) for one in field.metadata):
            raise TypeError(
                f"{bare.__name__}.{name}: pydantic does not check msgspec.Meta: use pydantic's Field(...) for it"
            )
        if field.annotation is not None:
            _parts(field.annotation, seen)


def _children(annotation: Any) -> Iterator[Any]:
    """Yield the type arguments and the types of the fields of a type."""
    bare: Any = get_origin(annotation) or annotation
    if is_class(bare) and not is_union(annotation) and has_fields(bare):
        yield from hints_of(annotation).values()
    elif bare is not annotation:
        for argument in get_args(annotation):
            if argument is not Ellipsis and not isinstance(argument, list):
                yield argument


def has_fields(bare: type[Any]) -> bool:
    """Whether a class has typed fields."""
    return (
        issubclass(bare, Struct)
        or hasattr(bare, "__dataclass_fields__")
        or hasattr(bare, "__attrs_attrs__")
        or is_typed_dict(bare)
        or (hasattr(bare, "_fields") and issubclass(bare, tuple))
    )


def hints_of(annotation: Any) -> dict[str, Any]:
    """Return the types of a class's fields, with the type parameters of a generic class substituted."""
    bare: Any = get_origin(annotation) or annotation
    hints = typing.get_type_hints(bare, include_extras=True)
    filled: dict[Any, Any] = {}
    _fill(annotation, filled)
    if filled:
        hints = {name: substituted(hint, filled) for name, hint in hints.items()}
    return hints


def _fill(annotation: Any, filled: dict[Any, Any]) -> None:
    """Add the values of the type variables of a class and its bases to `filled`."""
    bare: Any = get_origin(annotation) or annotation
    parameters: Iterable[Any] = getattr(bare, "__parameters__", ())
    for variable, argument in zip(parameters, get_args(annotation), strict=False):
        filled.setdefault(variable, substituted(argument, filled))
    for base in getattr(bare, "__orig_bases__", ()):
        if get_origin(base) not in (None, typing.Generic, typing.Protocol):
            _fill(substituted(base, filled), filled)


def substituted(annotation: Any, filled: Mapping[Any, Any]) -> Any:
    """Return a type with its type variables substituted."""
    if isinstance(annotation, TypeVar):
        return filled.get(annotation, annotation)
    parameters = getattr(annotation, "__parameters__", ())
    if not parameters or isinstance(annotation, type):
        return annotation
    return annotation[tuple(filled.get(one, one) for one in parameters)]


def fields_of(annotation: Any) -> Fields | None:
    """Return the fields of a `Struct`, a dataclass, an attrs class or a named tuple; `None` for any other type."""
    bare: Any = get_origin(annotation) or annotation
    if not is_class(bare) or is_typed_dict(bare) or not has_fields(bare):
        return None
    hints = hints_of(annotation)
    if issubclass(bare, Struct):
        return _fields_of_struct(bare, hints)
    if hasattr(bare, "__attrs_attrs__"):
        return _fields_of_attrs(cast("Any", bare), hints)
    if hasattr(bare, "__dataclass_fields__"):
        return _fields_of_dataclass(cast("Any", bare), hints)
    return _fields_of_tuple(cast("Any", bare), hints)


def _fields_of_struct(bare: type[Struct], hints: Mapping[str, Any]) -> Fields:
    config = bare.__struct_config__
    options = {
        "array_like": config.array_like,
        "forbid_unknown_fields": config.forbid_unknown_fields,
    }
    if config.tag is not None:
        options |= {"tag": config.tag, "tag_field": config.tag_field}
    fields = [
        Field(one.name, one.name, one.encode_name, hints[one.name], one.required)
        for one in msgspec.structs.fields(bare)
    ]
    return Fields(bare, tuple(fields), options)


def _fields_of_attrs(bare: Any, hints: Mapping[str, Any]) -> Fields:
    nothing = sys.modules["attr"].NOTHING
    # attrs annotates the argument of a field with a converter with the type that the converter takes, if known.
    arguments: Mapping[str, Any] = getattr(bare.__init__, "__annotations__", {})
    fields: list[Field] = []
    for one in bare.__attrs_attrs__:
        wanted = hints.get(one.name, Any)
        if one.converter is not None:
            wanted = arguments.get(one.alias, Any)
            wanted = Any if isinstance(wanted, str) else wanted
        if one.init:
            fields.append(Field(one.name, one.alias, one.name, wanted, one.default is nothing))
    return Fields(bare, tuple(fields), {})


def _fields_of_dataclass(bare: Any, hints: Mapping[str, Any]) -> Fields:
    if any(isinstance(hint, dataclasses.InitVar) for hint in hints.values()):
        raise TypeError(f"{bare.__name__}: dataclasses with InitVar fields cannot be decoded")
    ignored = next((one.name for one in dataclasses.fields(bare) if is_pydantic_metadata(one.default)), None)
    if ignored is not None:
        raise TypeError(f"{bare.__name__}.{ignored}: Field(...) is not checked beside a Struct or an attrs class")
    missing = dataclasses.MISSING
    fields = [
        Field(one.name, one.name, one.name, hints[one.name], one.default is missing and one.default_factory is missing)
        for one in dataclasses.fields(bare)
        if one.init
    ]
    return Fields(bare, tuple(fields), {})


def _fields_of_tuple(bare: Any, hints: Mapping[str, Any]) -> Fields:
    fields = [
        Field(name, name, name, hints.get(name, Any), name not in bare._field_defaults)
        for name in cast("tuple[str, ...]", bare._fields)
    ]
    return Fields(bare, tuple(fields), {"array_like": True})
