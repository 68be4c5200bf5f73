"""Conversions: decoding of types that msgspec alone cannot decode, or whose constraints it would not check.

Inside of an annotation, each such type is replaced by a stand-in class, for which msgspec calls its `dec_hook`. A type
that pydantic can decode as a whole goes to a `TypeAdapter`. Any other is split here: classes field by field, unions
member by member.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any, ClassVar, NotRequired, TypedDict, Union, get_args, get_origin

import msgspec
import msgspec.inspect
from msgspec import Meta, UnsetType

from starlette_channels.wire.annotations import (
    Fields,
    Parts,
    alias_value,
    fields_of,
    hints_of,
    is_check,
    is_pydantic_metadata,
    is_required,
    is_typed_dict,
    is_union,
    parts_of,
    unwrapped,
)
from starlette_channels.wire.pydantic_adapters import Adapter, Misfit

FAULTS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
"""Errors of a converter or constructor that mean that the value does not fit."""

MISSING: Any = object()

MAX_FAILURES = 20_000
"""Failed attempts to decode members of nested unions; in a union that contains itself, they double with each level."""

_failures: ContextVar[list[None] | None] = ContextVar("_failures", default=None)


class _StandInType(type):
    """Metaclass of stand-ins: any decoded value passes msgspec's `isinstance` check."""

    def __instancecheck__(cls, _: object) -> bool:
        return True


class StandIn(metaclass=_StandInType):
    """Replaces a type in an annotation; `take` converts decoded JSON to a value, or raises `Misfit`."""

    take: ClassVar[Callable[[Any], Any]]
    adapter: ClassVar[Adapter | None] = None


def is_stand_in(wanted: Any) -> bool:
    """Whether a type is a stand-in."""
    return type(wanted) is _StandInType


def take(stand_in: Any, value: Any) -> Any:
    """Convert decoded JSON to the type of a stand-in: msgspec's `dec_hook`."""
    return stand_in.take(value)


def misfit(error: msgspec.MsgspecError) -> Misfit:
    """Convert an error of msgspec to a `Misfit`, joining the paths outside and inside of a stand-in."""
    cause, text = error.__cause__, str(error)
    if isinstance(cause, Misfit) and text.startswith(cause.text):
        return Misfit(cause.text, _split(text[len(cause.text) :])[1] + cause.path)
    return Misfit(*_split(text))


def _split(text: str) -> tuple[str, str]:
    text, found, path = text.rpartition(" - at `$")
    return (text, path.removesuffix("`")) if found else (path, "")


def type_for_msgspec(annotation: Any) -> Any:
    """Return an annotation that msgspec can decode with `take` as `dec_hook`: the same one if nothing is special.

    Raises `TypeError` for a type that cannot be decoded.
    """
    return Rewriting().rewrite(annotation)


class Rewriting:
    """Rewrites one annotation; it remembers the classes in it, which may contain themselves."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def rewrite(self, annotation: Any) -> Any:
        """Return an annotation with stand-ins for its special parts."""
        parts = parts_of(annotation)
        if not parts & Parts.SPECIAL:
            refuse_unknown_types(annotation)
            return annotation
        if parts & Parts.PYDANTIC and not parts & Parts.NOT_PYDANTIC:
            adapter = Adapter(annotation)
            return self._stand_in(adapter.name, adapter.take, adapter)
        return self._take_apart(annotation)

    def _stand_in(self, name: str, take: Callable[[Any], Any], adapter: Adapter | None = None) -> type[StandIn]:
        return _StandInType(name, (StandIn,), {"take": staticmethod(take), "adapter": adapter})

    def _take_apart(self, annotation: Any) -> Any:
        bare: Any = alias_value(annotation)
        if bare is not annotation:
            return self._named(annotation, bare)
        annotation = unwrapped(annotation)
        if get_origin(annotation) is Annotated:
            return self._rewrite_annotated(annotation)
        if is_union(annotation):
            return self._rewrite_union(get_args(annotation))
        if is_typed_dict(annotation):
            return self._named(annotation, annotation)
        fields = fields_of(annotation)
        if fields is not None:
            return self._named(annotation, annotation)
        arguments = tuple(one if one is Ellipsis else self.rewrite(one) for one in get_args(annotation))
        origin: Any = get_origin(annotation)
        if origin is None or not arguments:
            raise TypeError(f"{annotation}: JSON cannot be decoded to this type")
        wanted = origin[arguments]
        refuse_unknown_types(wanted)
        return wanted

    def _named(self, annotation: Any, bare: Any) -> Any:
        """Return the stand-in of a class or alias, which may contain itself."""
        known = self._known.get(annotation)
        if known is None:
            makers: list[Callable[[Any], Any]] = []
            name = getattr(annotation, "__name__", str(annotation))
            known = self._known[annotation] = self._stand_in(name, lambda value: makers[0](value))
            makers.append(self._maker(bare, known))
        return known

    def _maker(self, bare: Any, stand_in: Any) -> Callable[[Any], Any]:
        if is_typed_dict(bare):
            return _converter(self._typed_dict(bare))
        fields = None if is_union(bare) else fields_of(bare)
        if fields is not None:
            layout = self._layout(fields, stand_in.__name__)
            return _builder(fields, _converter(layout))
        return _converter(self.rewrite(bare))

    def _typed_dict(self, annotation: Any) -> Any:
        bare: Any = get_origin(annotation) or annotation
        items: dict[str, Any] = {}
        for name, hint in hints_of(annotation).items():
            wanted = self.rewrite(unwrapped(hint))
            items[name] = wanted if is_required(bare, name, hint) else NotRequired[wanted]
        wanted = TypedDict(bare.__name__, items)  # type: ignore[misc]  # created at run time, for msgspec only
        refuse_unknown_types(wanted)
        return wanted

    def _layout(self, fields: Fields, name: str) -> Any:
        """Return a `Struct` class with the JSON layout of another class, its fields rewritten."""
        specs: list[Any] = []
        for one in fields.fields:
            wanted = self.rewrite(one.type)
            specs.append((one.argument, wanted) if one.required else (one.argument, wanted, MISSING))
        renamed = {one.argument: one.key for one in fields.fields}
        layout = msgspec.defstruct(name, specs, rename=renamed, kw_only=True, **fields.options)
        refuse_unknown_types(layout)
        return layout

    def _rewrite_annotated(self, annotation: Any) -> Any:
        ours: list[Any] = []
        pydantics: list[Any] = []
        for metadata in annotation.__metadata__:
            if is_check(metadata):
                ours += _as_meta(metadata)
            elif is_pydantic_metadata(metadata):
                pydantics.append(metadata)
            else:
                ours.append(metadata)
        inner = annotation.__origin__
        if pydantics:
            raise TypeError(
                f"{annotation}: metadata for pydantic does not go together with msgspec.Meta, a Struct or an attrs"
                " class: use msgspec.Meta only, or pydantic's Field and models only (typing.TypedDict belongs to the"
                " former before Python 3.12: take that of typing_extensions)"
            )
        rewritten = self.rewrite(inner)
        constraints = [one for one in ours if isinstance(one, Meta)]
        if constraints and is_stand_in(rewritten):
            raise TypeError(f"{annotation}: constraints are not checked on {rewritten.__name__}")
        annotated: Any = Annotated
        wanted: object = annotated[(rewritten, *ours)] if ours else rewritten
        refuse_unknown_types(wanted)
        return wanted

    def _rewrite_union(self, members: tuple[Any, ...]) -> Any:
        """Group the members into msgspec's, pydantic's, and each other one; the first group that fits decodes."""
        natives: list[Any] = []
        pydantics: list[Any] = []
        groups: list[Any] = []
        for member in members:
            parts = parts_of(member)
            if member is UnsetType:
                continue
            if not parts & Parts.SPECIAL:
                groups += [natives] if not natives else []
                natives.append(member)
            elif parts & Parts.PYDANTIC and not parts & Parts.NOT_PYDANTIC:
                groups += [pydantics] if not pydantics else []
                pydantics.append(member)
            else:
                groups.append([member])
        wanted = [self.rewrite(Union[tuple(group)]) for group in groups]  # noqa: UP007 - known at run time only
        if len(wanted) > (2 if all(one in (None, type(None)) for one in natives) and natives else 1):
            name = " | ".join(getattr(one, "__name__", str(one)) for one in wanted)
            wanted = [self._stand_in(name, _chooser(wanted))]
        return Union[(*wanted, UnsetType)] if UnsetType in members else Union[tuple(wanted)]  # noqa: UP007 - as above


def _converter(wanted: Any) -> Callable[[Any], Any]:
    """Return a converter of decoded JSON to a type, which raises `Misfit`."""

    def convert(value: Any) -> Any:
        try:
            return msgspec.convert(value, wanted, str_keys=True, dec_hook=take)
        except msgspec.ValidationError as error:
            raise misfit(error) from None

    return convert


def _builder(fields: Fields, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that calls a constructor with the fields in decoded JSON."""
    arguments = [one.argument for one in fields.fields]

    def build(value: Any) -> Any:
        layout = convert(value)
        given = {name: getattr(layout, name) for name in arguments}
        try:
            return fields.made(**{name: one for name, one in given.items() if one is not MISSING})
        except (*FAULTS, msgspec.MsgspecError) as error:
            raise Misfit(str(error) or type(error).__name__) from None

    return build


def _chooser(wanted: list[Any]) -> Callable[[Any], Any]:
    """Return a converter to the first type that fits; if none fits, it raises the error with the longest path."""
    converters = [_converter(one) for one in wanted]

    def choose(value: Any) -> Any:
        failures = _failures.get()
        if failures is not None:
            return choose_within(value, failures)
        token = _failures.set(failures := [])
        try:
            return choose_within(value, failures)
        finally:
            _failures.reset(token)

    def choose_within(value: Any, failures: list[None]) -> Any:
        complaint: Misfit | None = None
        for convert in converters:
            try:
                return convert(value)
            except Misfit as error:
                failures.append(None)
                if len(failures) > MAX_FAILURES:
                    raise Misfit("Too many union members tried: give the members of the union a tag") from None
                if complaint is None or len(error.path) > len(complaint.path):
                    complaint = error
        raise complaint or Misfit("No member of the union fits")

    return choose


def _as_meta(check: Any) -> list[Meta]:
    """Convert a constraint of annotated-types to msgspec's `Meta`."""
    kind = type(check).__name__
    if kind in ("Len", "Interval"):
        return [meta for one in check for meta in _as_meta(one)]
    name = _CONSTRAINTS.get(kind)
    if name is None:
        raise TypeError(
            f"{check!r} is not checked here: use msgspec.Meta,"
            " or a type for pydantic, as in Annotated[str, AfterValidator(...)]"
        )
    return [Meta(**{name: getattr(check, name)})]


_CONSTRAINTS = {
    "Gt": "gt",
    "Ge": "ge",
    "Lt": "lt",
    "Le": "le",
    "MultipleOf": "multiple_of",
    "MinLen": "min_length",
    "MaxLen": "max_length",
}


def refuse_unknown_types(annotation: Any) -> None:
    """Raise `TypeError` for a type that msgspec cannot decode; it would accept a custom type and fail when decoding."""
    _refuse_unknown(msgspec.inspect.type_info(annotation), set())


def _refuse_unknown(info: Any, seen: set[int]) -> None:
    if id(info) in seen:
        return
    seen.add(id(info))
    kind: type[Any] | None = info.cls if isinstance(info, msgspec.inspect.CustomType) else None
    if kind is not None and not issubclass(kind, StandIn):
        raise TypeError(
            f"{kind.__name__}: JSON cannot be decoded to this type;"
            " make it a Struct, a dataclass, an attrs class, a TypedDict or a pydantic model"
        )
    for name in ("types", "fields", "item_types"):
        for inner in getattr(info, name, ()):
            _refuse_unknown(getattr(inner, "type", inner), seen)
    for name in ("item_type", "key_type", "value_type", "type"):
        inner = getattr(info, name, None)
        if isinstance(inner, msgspec.inspect.Type):
            _refuse_unknown(inner, seen)
