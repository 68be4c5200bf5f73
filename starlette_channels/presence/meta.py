"""Keys and metas: checks, encoding, and the `phx_ref` of each meta."""

import secrets
from typing import Any, cast

import msgspec
from msgspec import Raw

from starlette_channels.exceptions import PresenceError
from starlette_channels.presence.crdt.delta import Meta
from starlette_channels.wire.messages import encode_payload, shown

# Older versions of phoenix.js look up `state[key]` in a plain object, and find inherited members under these names.
INHERITED = {
    *("__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__", "__proto__", "constructor"),
    *("hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf"),
}


def make_meta(fields: object, replaced: Meta | None = None) -> Meta:
    """Encode the fields of a meta with a new `phx_ref`, and with the `phx_ref_prev` of the meta that it replaces.

    Raises `TypeError` or `SerializerError` for fields that are not encoded as a JSON object.
    """
    body = encode_payload(fields)
    decoded = msgspec.json.decode(body) if isinstance(body, Raw) else None
    if not isinstance(decoded, dict):
        raise TypeError(f"presence: a meta must be encoded as a JSON object, not {type(fields).__name__}")
    meta = cast("dict[str, Any]", decoded)
    meta["phx_ref"] = ref = secrets.token_urlsafe(12)
    meta.pop("phx_ref_prev", None)
    if replaced is not None:
        meta["phx_ref_prev"] = replaced.ref
    return Meta(ref, msgspec.json.encode(meta).decode())


def fields_of(meta: Meta) -> dict[str, Any]:
    """Return the fields of a meta, decoded."""
    return msgspec.json.decode(meta.json)


def make_key(key: object) -> str:
    """Return a key as clients see it: 1 and "1" are the same key.

    Raises `TypeError` unless it is a str or an int, and `PresenceError` for a name that pages cannot look up safely.
    """
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TypeError(f"presence: a key must be a str or an int, not {type(key).__name__}")
    text = str(key)
    try:
        text.encode()
    except UnicodeEncodeError:
        is_safe = False
    else:
        is_safe = text not in INHERITED
    if not is_safe:
        raise PresenceError("unsafe_key", f"presence: the key {shown(text)} is not safe in JavaScript")
    return text
