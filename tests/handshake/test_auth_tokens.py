"""The `authToken` of a client: on its way in a subprotocol, and as `connect` sees it."""

import base64
import logging
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from starlette_channels import Channels, Handshake, Reply, Socket, channel
from starlette_channels.handshake.auth_token import PREFIX, decode_token, encode_token, long_poll_token, take_token
from starlette_channels.testing import HandshakeRefused, connect

pytestmark = pytest.mark.anyio
PROPERTY = settings(derandomize=True, database=None, deadline=None)


@channel("me")
async def me(socket: Socket[Any], payload: Any) -> Reply:
    return Reply("ok", socket.assigns)


async def enter(conn: Handshake) -> dict[str, Any]:
    return {"token": conn.auth_token, "offered": conn.offered_subprotocols}


def phoenix_js(token: str) -> str:
    """What phoenix.js offers: the standard alphabet, without padding."""
    return PREFIX + base64.b64encode(token.encode()).decode().rstrip("=")


SECRET = phoenix_js("s3cret")


@pytest.mark.parametrize(
    ("offered", "chosen", "token", "rest"),
    [
        ([], None, None, []),
        (["phoenix"], "phoenix", None, ["phoenix"]),
        (["phoenix", SECRET], "phoenix", "s3cret", ["phoenix"]),
        ([SECRET, "phoenix"], "phoenix", "s3cret", ["phoenix"]),
        ([SECRET], None, "s3cret", []),
        (["sip", SECRET], "sip", "s3cret", ["sip"]),
        (["sip", "phoenix", SECRET], "phoenix", "s3cret", ["sip", "phoenix"]),
        (["phoenix", SECRET, SECRET], "phoenix", None, ["phoenix", SECRET, SECRET]),
        (["phoenix", PREFIX], "phoenix", "", ["phoenix"]),
    ],
)
async def test_connect_sees_the_token_and_the_subprotocols_beside_it(
    offered: list[str], chosen: str | None, token: str | None, rest: list[str]
) -> None:
    channels = Channels([me], connect=enter, auth_token=True, subprotocols=["sip"])
    async with connect(channels, subprotocols=offered) as client:
        assert client.subprotocol == chosen
        assert (await client.join("me")).reply.payload == {"token": token, "offered": rest}


@pytest.mark.parametrize("offered", [["other"], ["other", SECRET], [SECRET, SECRET]])
async def test_a_client_that_offers_only_other_subprotocols_is_refused(offered: list[str]) -> None:
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(Channels([me], auth_token=True), subprotocols=offered):
            pass
    assert caught.value.status == 403


async def test_the_token_is_not_read_where_it_is_not_asked_for() -> None:
    async with connect(Channels([me], connect=enter), subprotocols=["phoenix", SECRET]) as client:
        assert client.subprotocol is None
        assert (await client.join("me")).reply.payload == {"token": None, "offered": ["phoenix", SECRET]}


async def test_the_kits_client_has_an_auth_token_too() -> None:
    channels = Channels([me], connect=enter, auth_token=True)
    async with connect(channels, auth_token="grüße/~?>") as client:
        assert client.subprotocol == "phoenix"
        assert (await client.join("me")).reply.payload == {"token": "grüße/~?>", "offered": ["phoenix"]}


@pytest.mark.parametrize("junk", ["!", "a_-b!", "a", "YWJj.", "YW Jj", "_w", "YQ=x"])
async def test_a_token_that_is_not_base64_of_text_is_refused_and_not_logged(
    junk: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    channels = Channels([me], auth_token=True)
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(channels, subprotocols=["phoenix", PREFIX + junk]):
            pass
    assert (caught.value.status, caught.value.body) == (403, "")
    assert channels.statistics().counts == {"malformed_auth_token": 1}
    assert PREFIX + junk not in caplog.text


async def test_a_token_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    channels = Channels([me], connect=enter, auth_token=True)
    async with connect(channels, auth_token="s3cret") as client:
        await client.join("me")
    with pytest.raises(HandshakeRefused):
        async with connect(channels, subprotocols=["other", SECRET]):
            pass
    assert "s3cret" not in caplog.text
    assert SECRET.removeprefix(PREFIX) not in caplog.text


@PROPERTY
@given(st.text())
@example("??>>~~")
def test_either_alphabet_padded_or_not_is_the_same_token(token: str) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        padded = encode(token.encode()).decode()
        assert decode_token(padded) == decode_token(padded.rstrip("=")) == token
    assert take_token(["phoenix", encode_token(token)]) == (token, ["phoenix"])


@PROPERTY
@given(st.lists(st.text(max_size=20) | st.text(max_size=20).map(PREFIX.__add__), max_size=4))
def test_whatever_is_offered_is_read_or_a_value_error(offered: list[str]) -> None:
    try:
        token, others = take_token(offered)
    except ValueError:
        return
    assert (others == offered) if token is None else len(others) == len(offered) - 1


def test_for_long_polling_the_token_is_a_header_as_it_is() -> None:
    assert long_poll_token({"x-phoenix-authtoken": "s3cret"}) == "s3cret"
    assert long_poll_token({}) is None
