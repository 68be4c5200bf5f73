"""Nothing secret is ever logged: secrets are sent in every place where there can be one, and the log is searched."""

import base64
import json
import logging
import re
from typing import Any

import httpx
import pytest

from starlette_channels.handshake.auth_token import SUBPROTOCOL, encode_token
from starlette_channels.transports.uvicorn_lane.access_log import install_log_filter
from tests.fuzzing.wire import Address, Refused, Wire, binary, text
from tests.support.servers import FAST_LANE, HYPERCORN_TRIO, UVICORN, Kind, Server, serve

pytestmark = pytest.mark.anyio

SECRET = "hunter2"
SECRETS: dict[str, Any] = {
    "password": SECRET,
    "nested": [{"api_key": SECRET, "user": {"Access-Token": {"value": SECRET}}}],
    "text": f"see https://example.com/?token={SECRET}&secret={SECRET} and Authorization: Bearer {SECRET}",
    "json": json.dumps({"password": f"{SECRET} {SECRET}"}),
}
HEADERS = f"Cookie: session={SECRET}\r\nAuthorization: Bearer {SECRET}\r\nX-Api-Key: {SECRET}"
QUERY = f"vsn=2.0.0&token={SECRET}&user[password]={SECRET}&next=%2F%3Fsecret%3D{SECRET}"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def signed(server: Server) -> str:
    """A token that the application has signed."""
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"{server.http}/token")).json()["token"]


def tries(token: str) -> list[str | bytes]:
    """Messages with secrets in all of their parts that are no names: right ones and wrong ones."""
    payload = {**SECRETS, "plain": token}
    return [
        text("1", "1", "room:a", "phx_join", payload),
        text("1", "2", "room:a", "echo", payload),
        text("1", "3", "room:a", "typed", payload),
        text("1", "4", "room:a", "shout", payload),
        text("1", "5", "room:a", "nonsense", payload),
        text("1", "6", "room:a", "echo", SECRETS["text"]),
        text("stale", "7", "room:a", "echo", payload),
        text("1", "8", "nowhere", "phx_join", payload),
        text("9", "9", "room:b", "phx_join", {**payload, "refuse": 1}),
        text("10", "10", "room:c", "phx_join", {**payload, "crash": 1}),
        text("11", "11", "room:d", "phx_join", [payload]),
        text(None, "12", "phoenix", "refresh", payload),
        text(None, "13", "phoenix", "refresh", {**payload, "crash": 1}),
        text(None, "14", "phoenix", "heartbeat", payload),
        text("1", "15", "room:a", "phx_leave", payload),
        text("16", "16", "room:a", "phx_join", payload),
        text("16", "17", "room:a", "crash", payload),
    ]


async def attack(server: Server, *, query: str = QUERY, protocol: str = "", frames: list[str | bytes]) -> None:
    """Connect, send, and wait for the end that each message brings about, or for an answer to a last one."""
    extra = HEADERS if not protocol else f"{HEADERS}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}, {protocol}"
    try:
        wire = await Wire.open(Address(server.port), f"/socket/websocket?{query}", extra=extra)
    except Refused:
        return
    wire.send(*frames, text(None, "last", "phoenix", "heartbeat", SECRETS))
    for _ in range(100):
        wire.unread.clear()
        await wire.read()
        if wire._closed is not None or any("last" in str(message) for message in wire.unread):  # pyright: ignore[reportPrivateUsage]
            break
    await wire.end()


async def poll(server: Server, token: str) -> None:
    headers = {"cookie": f"a={SECRET}", "x-phoenix-authtoken": token, "authorization": f"Bearer {SECRET}"}
    async with httpx.AsyncClient(base_url=server.http, headers=headers, trust_env=False, timeout=20) as http:
        url = f"/socket/longpoll?{QUERY.replace('token', 'api_key')}"
        session = (await http.get(url)).json()["token"]
        for frame in tries(token):
            body = frame if isinstance(frame, str) else base64.b64encode(frame)
            await http.post(f"{url}&token={session}", content=body, headers={"content-type": "application/x-ndjson"})
        await http.post(f"{url}&token={session}", content=f"{{{SECRET}")
        await http.post(f"{url}&token={session}", content=f'["password={SECRET}')
        assert (await http.get(f"{url}&token={session}")).json()["status"] == 200
        await http.get(f"{url}&token=lp1.0123456789abcdef.99999999999999.{SECRET:a<43}")
        await http.get(f"{url}&crash=1", headers={"x-phoenix-authtoken": token + SECRET})
        await http.get(f"/socket/longpoll?crash=1&password={SECRET}", headers={"x-phoenix-authtoken": ""})


# uvicorn's own WebSocket classes write the query of each handshake, with an access log or without.
QUIET = Kind(str(UVICORN), f"{UVICORN.command} --log-level warning")


@pytest.mark.parametrize("kind", [FAST_LANE, QUIET, HYPERCORN_TRIO], ids=str)
async def test_no_secret_of_a_client_is_in_the_log(kind: Kind) -> None:
    with serve("tests.support.secrets_app:app", kind) as server:
        token = await signed(server)
        await attack(server, frames=tries(token))
        await attack(server, protocol=encode_token(token), frames=tries(token))
        await attack(server, protocol=encode_token(token), frames=[binary("1", "1", "room:a", "echo", SECRET.encode())])
        await attack(server, protocol=encode_token(f"{token}{SECRET}"), frames=[])
        await attack(server, protocol=f"{SUBPROTOCOL}!{SECRET}", frames=[])
        await attack(server, query=f"{QUERY}&crash=1", frames=[])
        await attack(server, query=f"vsn=2.0.0&password=%zz{SECRET}", frames=[])
        await attack(server, query=f"vsn=2.0.0&password=%ff{SECRET}", frames=[])
        await attack(server, query=f"vsn=9.9.9&password={SECRET}", frames=[])
        for broken in (
            f'{{"password":"{SECRET}"',
            f'["1","1","room:a","echo",{{"password":"{SECRET}"}}',
            f"\0{SECRET}",
        ):
            await attack(server, frames=[broken, broken.encode()])
        await attack(server, frames=[text("1", str(n), "nowhere", "echo", SECRETS) for n in range(60)])
        await poll(server, token)
        server.stop()
        log = server.log.read_text()
    for word in ("Connected", "joined", "refused", "event 'echo'", "Connection refused", "crashed", "FILTERED"):
        assert word in log, f"the log is not what it should be: there is no {word}"
    found = [line for line in log.splitlines() if SECRET in line or token in line or token.split(".")[-1] in line]
    assert found == []
    assert not re.search(r"lp1\.[0-9a-f]{16}\.\d+\.", log)


@pytest.mark.parametrize("access_log", [True, False])
async def test_the_lines_of_uvicorn_about_handshakes_have_no_query_on_the_fast_lane(access_log: bool) -> None:
    command = FAST_LANE.command if access_log is False else FAST_LANE.command.replace(" --no-access-log", "")
    with serve("tests.support.secrets_app:app", Kind(str(FAST_LANE), command)) as server:
        await attack(server, protocol=encode_token(await signed(server)), frames=[])
        await attack(server, query=f"vsn=9.9.9&token={SECRET}", frames=[])
        server.stop()
        log = server.log.read_text()
    assert [line for line in log.splitlines() if SECRET in line] == []
    assert log.count('"WebSocket /socket/websocket" [accepted]') == access_log
    assert log.count('"WebSocket /socket/websocket" 40') == access_log
    assert log.count("connection open") == log.count("connection rejected") == access_log
    assert "Uvicorn running" in log
    assert "Connection refused" in log
    assert "ERROR" not in log, "a handshake that was refused was answered"


def test_what_is_no_text_is_logged_as_before(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.of_uvicorn")
    for access_log in (True, False):
        install_log_filter(logger, access_log=access_log)
    with caplog.at_level(logging.INFO):
        logger.info(OSError("address in use"))
        logger.info("connection open")
    assert caplog.messages == ["address in use"]
