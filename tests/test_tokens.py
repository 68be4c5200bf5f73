"""Signed tokens (`starlette_channels.tokens`): what comes back, and all that is refused."""

import logging
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from starlette_channels import Channels, ConnectError, ExpiredToken, Handshake, InvalidToken, Reply, Socket, channel
from starlette_channels.testing import HandshakeRefused, connect
from starlette_channels.tokens import Tokens

OLD, NEW = "the old key of this test", "the new key of this test"
NOON = 1_800_000_000.0
PROPERTY = settings(derandomize=True, database=None, deadline=None)


class User(Struct):
    id: int
    admin: bool = False


tokens = Tokens(NEW, salt="user socket")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the time."""

    def set_to(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: seconds)

    set_to(NOON)
    return set_to


def invalid(token: Any, read: Tokens = tokens) -> str:
    """How a token is refused that is not merely too old."""
    for ask in (read.verify, read.expires_at):
        with pytest.raises(InvalidToken) as caught:
            ask(token)
        assert not isinstance(caught.value, ExpiredToken)
    return str(caught.value)


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@PROPERTY
@given(JSON)
def test_what_was_signed_comes_back(data: Any) -> None:
    token = tokens.sign(data)
    assert tokens.verify(token) == data
    assert token.replace(".", "").replace("-", "").replace("_", "").isalnum()
    assert token.isascii()


def test_a_struct_is_signed_and_comes_back_as_one_if_its_type_is_named() -> None:
    token = tokens.sign(User(7))
    assert tokens.verify(token, User) == User(7)
    assert tokens.verify(token) == {"id": 7, "admin": False}
    with pytest.raises(InvalidToken, match="does not fit"):
        tokens.verify(tokens.sign({"id": "seven"}), User)


@PROPERTY
@given(st.text(st.characters(), max_size=80) | st.from_regex(r"[\w-]{0,30}(\.[\w-]{0,30}){0,3}", fullmatch=True))
def test_whatever_else_a_client_sends_is_invalid(token: str) -> None:
    invalid(token)


@pytest.mark.parametrize("token", [None, "", 7, b"bytes", ["list"], {}])
def test_no_token_is_an_invalid_token(token: Any) -> None:
    assert invalid(token) == "no token"


@PROPERTY
@given(st.data())
def test_a_token_that_was_changed_is_invalid(data: st.DataObject) -> None:
    token = tokens.sign({"id": 7})
    position = data.draw(st.integers(0, len(token) - 2))  # the last character has bits that mean nothing
    other = data.draw(st.sampled_from("abcXYZ019-_.").filter(lambda one: one != token[position]))
    invalid(token[:position] + other + token[position + 1 :])
    invalid(token[:position])


def test_a_token_of_another_purpose_or_another_key_is_invalid() -> None:
    invalid(Tokens(NEW, salt="password reset").sign(7))
    invalid(Tokens(OLD, salt="user socket").sign(7))


def test_keys_can_be_changed_while_tokens_of_the_old_one_are_about() -> None:
    before, between, after = (Tokens(keys, salt="user socket") for keys in (OLD, [NEW, OLD], (NEW,)))
    assert between.verify(before.sign(7)) == 7
    assert after.verify(between.sign(7)) == 7
    invalid(between.sign(7), before)
    invalid(before.sign(7), after)


def test_a_token_is_good_for_its_time_and_no_longer(clock: Any) -> None:
    short = Tokens(NEW, salt="user socket", max_age=60)
    token = short.sign(7)
    assert short.expires_at(token) == NOON + 60
    clock(NOON + 60)
    assert short.verify(token) == 7
    clock(NOON + 60.001)
    for ask in (short.verify, short.expires_at):
        with pytest.raises(ExpiredToken, match="expired token"):
            ask(token)
    assert tokens.verify(token) == 7, "max_age is the reader's"
    clock(NOON + 86_401)
    with pytest.raises(ExpiredToken):
        tokens.verify(token)


def test_clocks_of_servers_may_differ_a_little(clock: Any) -> None:
    token = tokens.sign(7)
    clock(NOON - 60)
    assert tokens.verify(token) == 7
    clock(NOON - 61)
    assert invalid(token) == "the token was signed in the future"


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        ({"secret_key": "too short"}, "20 bytes or more; make one with python -c"),
        ({"secret_key": [NEW, "too short"]}, "20 bytes or more"),
        ({"secret_key": []}, "20 bytes or more"),
        ({"salt": ""}, "say what the tokens are for"),
        ({"max_age": 0}, "a number of seconds, more than 0"),
        ({"max_age": -1}, "a number of seconds, more than 0"),
        ({"max_age": float("nan")}, "a number of seconds, more than 0"),
    ],
)
def test_mistakes_fail_at_once_with_the_fix_and_without_the_key(arguments: dict[str, Any], fix: str) -> None:
    with pytest.raises(ValueError, match="Tokens") as caught:
        Tokens(**dict[str, Any](secret_key=NEW, salt="user socket") | arguments)
    assert fix in str(caught.value)
    assert "too short" not in str(caught.value)


def test_data_that_json_cannot_hold_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        tokens.sign(object())


@channel("me")
async def me(socket: Socket[User], payload: Any) -> Reply:
    return Reply("ok", socket.assigns)


async def enter(conn: Handshake) -> User:
    return tokens.verify(conn.auth_token, User)


@pytest.mark.anyio
async def test_in_connect_a_good_token_is_enough_and_others_refuse_the_client(
    clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    channels = Channels([me], connect=enter, auth_token=True)
    token = tokens.sign(User(7))
    async with connect(channels, auth_token=token) as client:
        assert (await client.join("me")).reply.payload == {"id": 7, "admin": False}
    clock(NOON + 86_401)
    for bad, body in [(None, "no token"), ("guessed", "invalid token"), (token, "expired token")]:
        with pytest.raises(HandshakeRefused) as caught:
            async with connect(channels, auth_token=bad):
                pass
        assert (caught.value.status, caught.value.body) == (401, body)
    assert channels.statistics().counts == {"connect_refused": 3}
    assert token not in caplog.text
    assert "guessed" not in caplog.text


def test_one_except_clause_is_enough() -> None:
    assert issubclass(ExpiredToken, InvalidToken)
    assert issubclass(InvalidToken, ConnectError)


def test_without_the_extra_one_learns_what_to_install() -> None:
    code = "import sys; sys.modules['itsdangerous'] = None; import starlette_channels; import starlette_channels.tokens"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("pip install 'starlette-channels[tokens]'")
