"""Signed tokens: the server signs who the user is, the page sends the token along, and `connect` verifies it.

Tokens are signed with itsdangerous, as are Starlette's sessions. A token names no algorithm, so it cannot be forged to
name a weak one. To verify JWTs of another service, use a JWT library. This is the counterpart of `Phoenix.Token`, whose
own tokens contain Erlang terms and cannot be read here.
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
"""Seconds that the clock of the signing server may be ahead."""


class Tokens:
    """Sign data as tokens and verify them: `Tokens(secret_key, salt="user socket", max_age=3600)`.

    The data is signed, not encrypted: everyone who has the token can read it.

    Args:
        secret_key: The key, at least 20 bytes. Of a list, the first key signs and all verify: to replace a key, put the
            new one in front, and remove the old one `max_age` later.
        salt: The purpose of the tokens. A token of another salt is invalid.
        max_age: Seconds from signing to expiry; default one day.

    Raises:
        TypeError: The key is no string or list of strings.
        ValueError: A key is too short, the salt is empty, or `max_age` is not positive.
    """

    __slots__ = ("_max_age", "_serializer")

    def __init__(self, secret_key: str | Sequence[str], *, salt: str, max_age: float = 86_400) -> None:
        if isinstance(secret_key, bytes) or not isinstance(secret_key, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance] - from the environment, it may be None
            raise TypeError(
                "Tokens(secret_key): it must be a string or a list of strings; is its environment variable set?"
            )
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
            keys[::-1],  # itsdangerous signs with the last one
            salt=salt,
            serializer=_Json,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def sign(self, data: object) -> str:
        """Return a token with the data, safe for URLs: letters, digits, `.`, `-` and `_`.

        Raises `TypeError` if the data cannot be encoded as JSON.
        """
        return self._serializer.dumps(data)

    @overload
    def verify(self, token: str | None) -> Any: ...

    @overload
    def verify(self, token: str | None, data_type: type[T]) -> T: ...

    def verify(self, token: str | None, data_type: Any = Any) -> Any:
        """Return the data of a token, decoded to `data_type` if given.

        Both errors refuse the client with 401 if `connect` does not catch them.

        Args:
            token: The token, or `None` if the client sent none.
            data_type: A type that msgspec can decode to, such as a `Struct`.

        Raises:
            ExpiredToken: The token is older than `max_age`.
            InvalidToken: There is no token, its signature or salt is wrong, or its data does not match `data_type`.
        """
        data, _ = self._open(token)
        try:
            return msgspec.convert(data, data_type)
        except msgspec.ValidationError as error:
            raise InvalidToken(f"the data of the token does not fit: {error}") from None

    def expires_at(self, token: str | None) -> float:
        """Return when a token expires, in seconds since 1970. Raises `ExpiredToken` and `InvalidToken` as `verify`."""
        _, expires_at = self._open(token)
        return expires_at

    def _open(self, token: str | None) -> tuple[Any, float]:
        if not isinstance(token, str) or not token:
            raise InvalidToken("no token")
        try:
            data, signed_at = self._serializer.loads(token, return_timestamp=True)
        except (BadData, UnicodeError) as error:
            error.__traceback__ = None  # a reference cycle with a frame of itsdangerous, garbage for each bad token
            raise InvalidToken("invalid token") from None
        age = time.time() - signed_at.timestamp()
        if age < -CLOCK_SKEW:
            raise InvalidToken("the token was signed in the future")
        if age > self._max_age:
            raise ExpiredToken("expired token")
        return data, signed_at.timestamp() + self._max_age


class _Json:
    """JSON for itsdangerous; data that is dumped as `str` becomes a token that is a `str`."""

    loads = staticmethod(msgspec.json.decode)

    @staticmethod
    def dumps(data: object) -> str:
        return msgspec.json.encode(data).decode()
