"""Errors: what they carry, and that one word catches them all."""

from typing import Any

import pytest

import starlette_channels
from starlette_channels import (
    ChannelsError,
    ConnectError,
    EventError,
    ExpiredToken,
    InvalidPayload,
    InvalidToken,
    JoinError,
    PresenceError,
    ProtocolError,
    PublishError,
    SerializerError,
)

ERRORS = [
    ConnectError,
    EventError,
    ExpiredToken,
    InvalidPayload,
    InvalidToken,
    JoinError,
    PresenceError,
    ProtocolError,
    PublishError,
    SerializerError,
]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_a_channels_error(error: type[Exception]) -> None:
    assert issubclass(error, ChannelsError)


def test_there_is_no_public_error_beside_them() -> None:
    public = {name for name in starlette_channels.__all__ if isinstance(getattr(starlette_channels, name), type)}
    errors = {name for name in public if issubclass(getattr(starlette_channels, name), BaseException)}
    assert errors == {"ChannelsError", *(error.__name__ for error in ERRORS)}


def test_an_invalid_token_refuses_with_401() -> None:
    assert (InvalidToken().status, str(InvalidToken()), str(ExpiredToken("too old"))) == (
        401,
        "invalid token",
        "too old",
    )


def test_a_connect_error_is_403_without_a_reason_unless_it_says_otherwise() -> None:
    plain = ConnectError()
    assert (plain.reason, plain.status, str(plain)) == ("", 403, "")
    told = ConnectError("slow down", status=429)
    assert (told.reason, told.status, str(told)) == ("slow down", 429, "slow down")


@pytest.mark.parametrize("status", [400, 404, 429, 500, 599])
def test_a_connect_error_may_have_any_status_of_a_refusal(status: int) -> None:
    assert ConnectError("no", status).status == status


@pytest.mark.parametrize("status", [0, 101, 200, 301, 399, 600, -1])
def test_a_status_that_refuses_nothing_is_a_value_error_with_the_fix(status: int) -> None:
    with pytest.raises(ValueError, match=f"{status} is no status of a refusal: use 400 to 599"):
        ConnectError("no", status)


@pytest.mark.parametrize(
    ("error", "payload"),
    [
        (JoinError(), {"reason": "refused"}),
        (JoinError("unauthorized"), {"reason": "unauthorized"}),
        (JoinError(""), {"reason": ""}),
        (JoinError({"code": 7}), {"code": 7}),
        (JoinError(None), None),
        (JoinError([1]), [1]),
        (JoinError(b"\x00"), b"\x00"),
        (JoinError(payload="text"), "text"),
        (JoinError(payload=None), None),
        (JoinError("unused", payload={"code": 7}), {"code": 7}),
    ],
    ids=repr,
)
def test_a_join_error_carries_what_the_client_gets(error: JoinError, payload: Any) -> None:
    assert error.payload == payload


def test_a_join_error_says_in_a_log_what_it_was() -> None:
    assert str(JoinError("unauthorized")) == "unauthorized"
    assert str(JoinError({"code": 7})) == "{'code': 7}"
    assert str(JoinError(payload="text")) == "text"
