"""Signed tokens: a page gets one from the server that rendered it, and shows it to `connect`.

The signing is that of itsdangerous, which Starlette's sessions use as well: no algorithm is named in a token, so none
can be forged into it, and salts and old keys are understood. Tokens of another party are JWTs: read those with a JWT
library. The counterpart of `Phoenix.Token`, whose tokens hold Erlang terms and are not read here.
"""

import hashlib
import time
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import msgspec

from starlette_channels.exceptions import ExpiredToken, InvalidToken

try:
    from itsdangerous import BadData, URLSafeTimedSerializer
except ImportError:
    raise ImportError("signed tokens need itsdangerous: pip install 'starlette-channels[tokens]'") from None

T = TypeVar("T")

MIN_KEY_BYTES = 20
CLOCK_SKEW = 60.0
"""Seconds by which the clock of the server that signed may be ahead of ours."""


class Tokens:
    """Signs data, and reads it again: `Tokens(secret_key, salt="user socket", max_age=3600)`.

    The data is anything that JSON can hold, structs included. It is signed, not encrypted: whoever has the token can
    read it. `salt` says what the tokens are for; those of another salt are invalid. They expire `max_age` seconds
    after they were signed, one day by default. Of several keys the first signs and all verify, so that a new one can
    be put in front while tokens of the old one are still about.

    Raises `ValueError` for a key of less than 20 bytes, an empty salt, or a `max_age` that is not positive.
    """

    __slots__ = ("_max_age", "_serializer")

    def __init__(self, secret_key: str | Sequence[str], *, salt: str, max_age: float = 86_400) -> None:
        if isinstance(secret_key, bytes) or not isinstance(secret_key, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance] - of the environment, it may be None
            raise TypeError("Tokens(secret_key): it is a text, or a list of some; is the variable for it set?")
        keys = [secret_key] if isinstance(secret_key, str) else list(secret_key)
        if not keys or min(len(key.encode()) for key in keys) < MIN_KEY_BYTES:
            make = "python -c 'import secrets; print(secrets.token_urlsafe())'"
            raise ValueError(f"Tokens(secret_key): it must have {MIN_KEY_BYTES} bytes or more; make one with {make}")
        if not salt:
            raise ValueError('Tokens(salt=...): say what the tokens are for, as in salt="user socket"')
        if isinstance(max_age, bool) or not isinstance(max_age, int | float) or not max_age > 0:  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise ValueError(f"Tokens(max_age={max_age!r}): it is a number of seconds, more than 0")
        self._max_age = max_age
        self._serializer = URLSafeTimedSerializer(
            keys[::-1],  # there, the last one signs
            salt=salt,
            serializer=_Json,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def sign(self, data: object) -> str:
        """Return a token that holds the data: letters, digits, `.`, `-` and `_`. Raises `TypeError` if JSON cannot."""
        return self._serializer.dumps(data)

    @overload
    def verify(self, token: str | None) -> Any: ...

    @overload
    def verify(self, token: str | None, data_type: type[T]) -> T: ...

    def verify(self, token: str | None, data_type: Any = Any) -> Any:
        """Return the data of a token, as an instance of a type if you name one.

        Raises `ExpiredToken` if it is too old, and `InvalidToken` if there is none, if it was not signed with one of
        the keys for this purpose, or if its data does not fit the type. Let out of `connect`, either refuses the
        client.
        """
        data, _ = self._open(token)
        try:
            return msgspec.convert(data, data_type)
        except msgspec.ValidationError as error:
            raise InvalidToken(f"the data of the token does not fit: {error}") from None

    def expires_at(self, token: str | None) -> float:
        """Return when a token expires, in seconds since 1970. Raises as `verify` does."""
        _, expires_at = self._open(token)
        return expires_at

    def _open(self, token: str | None) -> tuple[Any, float]:
        if not isinstance(token, str) or not token:
            raise InvalidToken("no token")
        try:
            data, signed_at = self._serializer.loads(token, return_timestamp=True)
        except (BadData, UnicodeError) as error:
            error.__traceback__ = None  # itsdangerous keeps the error in one of its frames: garbage for each bad token
            raise InvalidToken("invalid token") from None
        age = time.time() - signed_at.timestamp()
        if age < -CLOCK_SKEW:
            raise InvalidToken("a token of the future")
        if age > self._max_age:
            raise ExpiredToken("expired token")
        return data, signed_at.timestamp() + self._max_age


class _Json:
    """How itsdangerous wants it: what is dumped as text becomes a token that is text."""

    loads = staticmethod(msgspec.json.decode)

    @staticmethod
    def dumps(data: object) -> str:
        return msgspec.json.encode(data).decode()
