"""Handlers: checked when they are defined, with the decoder of their payload."""

import inspect
import typing
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from msgspec import Raw, Struct

from starlette_channels.runtime.callables import check_function, defined_in
from starlette_channels.wire.payloads import Decode, json_decoder, payload_decoder
from starlette_channels.wire.topic_segments import DecodeText, segment_decoders

OURS = "starlette_channels."


class Handler(Struct, frozen=True):
    """A handler and the decoder of its payload."""

    call: Callable[..., Coroutine[Any, Any, Any]]
    decode: Decode
    decode_json: Callable[[Raw], Any]
    """The decoder of JSON payloads alone, without a wrapper function, for speed: it raises `UNDECODABLE`."""
    segments: Mapping[str, DecodeText] = {}
    """The decoders of the topic segments that are not passed as text."""


def _hints(function: Callable[..., Any], label: str) -> dict[str, Any]:
    """Return the annotations of a handler; local names of the place of its definition are resolved as well."""
    function = defined_in(function)
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(OURS):
        frame = frame.f_back
    at_home = frame is not None and frame.f_globals is getattr(inspect.unwrap(function), "__globals__", None)
    try:
        names = dict(frame.f_locals) if frame is not None and at_home else None
        return typing.get_type_hints(function, localns=names, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise TypeError(f"{label}: an annotation cannot be resolved: {error} (is it imported at run time?)") from None


def make_handler(function: Any, label: str, takes: tuple[str, ...], extra: tuple[str, ...] = ()) -> Handler:
    """Check a handler and build the decoder for its last positional parameter."""
    payload = check_function(function, label, takes, extra)
    hints = _hints(function, label)
    annotation = hints.get(payload.name, inspect.Parameter.empty)
    try:
        segments = segment_decoders(inspect.signature(function).parameters, hints, extra)
    except TypeError as error:
        raise TypeError(f"{label}: {error}") from None
    try:
        return Handler(function, payload_decoder(annotation), json_decoder(annotation), segments)
    except TypeError as error:
        raise TypeError(f"{label}: the payload cannot be decoded as {annotation}: {error}") from None
