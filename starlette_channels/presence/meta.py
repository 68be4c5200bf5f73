"""What is told of one presence, and the keys under which it is told."""

import secrets
from typing import Any, cast

import msgspec
from msgspec import Raw

from starlette_channels.exceptions import PresenceError
from starlette_channels.presence.crdt.delta import Meta
from starlette_channels.wire.messages import encode_payload, shown

# Who looks up `state[key]` in a plain object, as older versions of phoenix.js do, finds what all objects inherit.
INHERITED = {
    *("__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__", "__proto__", "constructor"),
    *("hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf"),
}


def make_meta(fields: object, replaced: Meta | None = None) -> Meta:
    """Encode the fields of a presence, which may be anything that is encoded as a JSON object, and name it.

    Raises `TypeError` or `SerializerError` for anything else.
    """
    body = encode_payload(fields)
    decoded = msgspec.json.decode(body) if isinstance(body, Raw) else None
    if not isinstance(decoded, dict):
        raise TypeError(f"presence: a meta must be encoded as a JSON object, not {type(fields).__name__}")
    named = cast("dict[str, Any]", decoded)
    named["phx_ref"] = ref = secrets.token_urlsafe(12)
    named.pop("phx_ref_prev", None)
    if replaced is not None:
        named["phx_ref_prev"] = replaced.ref
    return Meta(ref, msgspec.json.encode(named).decode())


def fields_of(meta: Meta) -> dict[str, Any]:
    """Return the fields of a presence decoded, for whoever wants to change them."""
    return msgspec.json.decode(meta.json)


def make_key(key: object) -> str:
    """Return a key as clients know it: 1 and "1" are the same.

    Raises `TypeError` for what is neither text nor a whole number, and `PresenceError` for a name that pages cannot
    look up safely.
    """
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TypeError(f"presence: a key must be a str or an int, not {type(key).__name__}")
    text = str(key)
    if text in INHERITED or not _is_unicode(text):
        raise PresenceError("unsafe_key", f"presence: the key {shown(text)} is not safe in JavaScript")
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
