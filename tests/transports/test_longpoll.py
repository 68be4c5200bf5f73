"""What long-poll clients ask and are answered, one request at a time."""

import base64
import logging
from typing import Any, cast

import anyio
import msgspec
import pytest
from msgspec import Struct
from starlette.applications import Starlette
from starlette.routing import Mount

from starlette_channels import (
    Channels,
    ConnectError,
    Handshake,
    Limits,
    LongPoll,
    Reply,
    Serializer,
    SerializerError,
    Socket,
    channel,
)
from starlette_channels.testing import connect
from starlette_channels.wire.serializers import V2
from tests.conftest import until
from tests.support.polling import BEAT, BEATEN, Poller

pytestmark = pytest.mark.anyio


class User(Struct):
    name: str


@channel("room:*")
async def room(socket: Socket[Any], payload: Any) -> None:
    pass


@room.on("echo")
async def echo(socket: Socket[Any], payload: Any) -> Reply:
    return Reply("ok", payload)


@room.on("say")
async def say(socket: Socket[Any], payload: dict[str, Any]) -> None:
    socket.broadcast("said", payload)


@room.on("reverse")
async def reverse(socket: Socket[Any], payload: bytes) -> dict[str, str]:
    return {"reversed": payload[::-1].hex()}


@room.on("bytes")
async def some_bytes(socket: Socket[Any], payload: Any) -> dict[str, str]:
    try:
        socket.push("bytes", b"\x00\xff")
    except SerializerError as error:
        return {"error": str(error)}
    raise AssertionError("long-polling cannot carry them")


@room.on("broadcast_bytes")
async def broadcast_bytes(socket: Socket[Any], payload: Any) -> None:
    socket.broadcast("bytes", b"\x00\xff")


@channel("me")
async def me(socket: Socket[User], payload: Any) -> dict[str, str]:
    return {"you": socket.assigns.name}


def channels(**options: Any) -> Channels[Any]:
    return Channels([room], longpoll=options.pop("longpoll", True), **options)


def counts(channels: Channels[Any]) -> dict[str, int]:
    return dict(channels.statistics().counts)


def binary(ref: str, event: str, data: bytes) -> bytes:
    """A line of a batch: what phoenix.js makes of a push with an ArrayBuffer on the topic room:a."""
    fields = ["1", ref, "room:a", event]
    return base64.b64encode(bytes([0, *map(len, fields)]) + "".join(fields).encode() + data)


async def test_a_client_joins_sends_and_fetches() -> None:
    client = await Poller(channels()).open()
    assert await client.post(["1", "1", "room:a", "phx_join", {}], ["1", "2", "room:a", "echo", {"n": "é"}]) == 200
    assert (await client.poll()).frames == [
        ["1", "1", "room:a", "phx_reply", {"status": "ok", "response": {}}],
        ["1", "2", "room:a", "phx_reply", {"status": "ok", "response": {"n": "é"}}],
    ]


async def test_long_poll_and_websocket_clients_hear_each_other() -> None:
    app = channels()
    poller = await Poller(app).open()
    async with connect(app) as client:
        joined = await client.join("room:a")
        await poller.join("room:a")
        await poller.post(["1", "2", "room:a", "say", {"by": "poller"}])
        assert await joined.receive("said") == {"by": "poller"}
        joined.send("say", {"by": "client"})
        assert await joined.receive("said") == {"by": "client"}
    assert [frame[4] for frame in (await poller.poll()).frames] == [{"by": "poller"}, {"by": "client"}]


async def test_it_is_off_unless_it_is_asked_for() -> None:
    for app in (Channels([room]), channels(longpoll=False)):
        assert (await Poller(app).request("GET")()).status == 404


async def test_it_may_be_somewhere_else_with_variables() -> None:
    async def enter(conn: Handshake) -> User:
        return User(f"{conn.params['region']} {conn.params['tenant']}")

    app = Starlette(
        routes=[Mount("/t/{tenant}", Channels([me], connect=enter, longpoll=LongPoll(path="/poll/{region}")))]
    )
    client = await Poller(app, "/t/acme/poll/eu").open()
    await client.post(["1", "1", "me", "phx_join", {}])
    assert (await client.poll()).frames[0][4]["response"] == {"you": "eu acme"}
    assert (await Poller(app, "/t/acme/longpoll").request("GET")()).status == 404


def test_a_path_must_begin_with_a_slash() -> None:
    with pytest.raises(ValueError, match=r"LongPoll\(path='longpoll'\): it must begin with a slash"):
        channels(longpoll=LongPoll(path="longpoll"))


async def test_connect_is_asked_once_for_a_session_and_sees_its_first_request() -> None:
    asked: list[tuple[str, str, str]] = []

    async def enter(conn: Handshake) -> User:
        asked.append((cast("str", conn.params["user"]), conn.headers["x-device"], conn.cookies["session"]))
        return User(asked[-1][0])

    client = Poller(Channels([me], connect=enter, longpoll=True), user="ann")
    client.token = (await client.request("GET", x_device="phone", cookie="session=s")()).json["token"]
    await client.post(["1", "1", "me", "phx_join", {}])
    assert (await client.poll()).frames[0][4]["response"] == {"you": "ann"}
    assert asked == [("ann", "phone", "s")]


@pytest.mark.parametrize("status", [401, 403, 429])
async def test_a_client_that_is_refused_is_told_403_whatever_the_status(status: int) -> None:
    async def enter(conn: Handshake) -> User:
        raise ConnectError("no", status)

    app = Channels([me], connect=enter, longpoll=True)
    assert (await Poller(app).request("GET")()).json == {"status": 403}
    assert counts(app) == {"connect_refused": 1}


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_a_page_that_may_not_connect_is_told_403_whatever_it_asks(method: str) -> None:
    app = channels(check_origin=["https://ours.example"])
    for origin, refused in (("https://evil.example", True), ("https://ours.example", False)):
        answer = await Poller(app).request(method, origin=origin, host="ours.example")()
        assert answer.status == 200
        assert (answer.body == b'{"status":403}') is refused


async def test_connect_sees_the_auth_token_if_it_is_on() -> None:
    for on, seen in ((True, "secret"), (False, "None")):

        async def enter(conn: Handshake) -> User:
            return User(str(conn.auth_token))

        client = Poller(Channels([me], connect=enter, auth_token=on, longpoll=True))
        client.token = (await client.request("GET", x_phoenix_authtoken="secret")()).json["token"]
        await client.post(["1", "1", "me", "phx_join", {}])
        assert (await client.poll()).frames[0][4]["response"] == {"you": seen}


async def test_an_unknown_version_is_refused() -> None:
    assert (await Poller(channels(), vsn="3.0.0").request("GET")()).json == {"status": 403}


async def test_a_connect_that_raises_is_an_error_that_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def enter(conn: Handshake) -> User:
        raise RuntimeError("a secret")

    app = Channels([me], connect=enter, longpoll=True)
    answer = await Poller(app).request("GET")()
    assert (answer.status, answer.body) == (500, b"")
    assert counts(app) == {"connect_crashed": 1}
    assert "a secret" in caplog.text


async def test_a_malformed_query_is_an_error_for_every_request_that_needs_one() -> None:
    app = channels()
    for method in ("GET", "POST"):
        client = Poller(app, "/longpoll?a=%ff&")
        assert (await client.request(method)()).status == 400
    assert counts(app) == {"connect_refused": 2}


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH", "TRACE"])
async def test_other_methods_are_errors(method: str) -> None:
    answer = await Poller(channels()).request(method)()
    assert (answer.status, answer.body) == (400, b"")


async def test_a_browser_may_ask_from_a_page_of_any_origin() -> None:
    client = Poller(channels())
    answer = await client.request("OPTIONS", access_control_request_headers="x-phoenix-longpoll-token, content-type")()
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["access-control-allow-headers"] == "x-phoenix-longpoll-token, content-type"
    assert answer.headers["access-control-allow-methods"] == "get, post, options"
    answers = [await client.request("GET")(), await client.request("POST")()]
    answers.append(await Poller(channels(), "/longpoll?a=%ff&").request("GET")())
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["cache-control"] == "no-store"


async def test_the_token_may_come_in_a_header_which_wins() -> None:
    client, other = await Poller(channels()).open(), Poller(channels())
    token = client.token
    assert token is not None
    client.token = "other"
    request = client.request("POST", msgspec.json.encode(BEAT), x_phoenix_longpoll_token=token)
    assert (await request()).json == {"status": 200}
    assert (await client.request("GET", x_phoenix_longpoll_token=token)()).frames == [BEATEN]
    other.token = token  # which the other channels do not know
    assert await other.post(BEAT) == 410


async def test_tokens_cannot_be_guessed() -> None:
    app = channels()
    tokens = [(await Poller(app).open()).token or "" for _ in range(20)]
    secrets = {token.rpartition(".")[2] for token in tokens}
    assert len(secrets) == 20
    assert {len(secret) for secret in secrets} == {43}  # 256 bits
    for guess in ("", tokens[0][:-1], tokens[0].rpartition(".")[0], tokens[0].upper(), tokens[0] + "\n"):
        client = Poller(app)
        client.token = guess
        assert await client.post(BEAT) == 410
    assert not counts(app)


# Messages of the client.


async def test_without_the_content_type_of_a_batch_the_body_is_one_message() -> None:
    client = await Poller(channels()).open()
    for headers in ({}, {"content_type": "application/json"}, {"content_type": "text/plain"}):
        request = client.request("POST", msgspec.json.encode(BEAT)[:20], msgspec.json.encode(BEAT)[20:], **headers)
        assert (await request()).json == {"status": 200}
        assert (await client.poll()).frames == [BEATEN]


async def test_parameters_of_the_content_type_mean_nothing() -> None:
    client = await Poller(channels()).open()
    body = msgspec.json.encode(BEAT)
    request = client.request("POST", body + b"\r\n" + body, content_type="Application/X-NDJSON; charset=utf-8")
    assert (await request()).json == {"status": 200}
    assert (await client.poll()).frames == [BEATEN, BEATEN]


async def test_version_1_works_one_message_at_a_time() -> None:
    client = await Poller(channels(), vsn="1.0.0").open()
    beat: dict[str, Any] = {"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "1"}
    assert (await client.request("POST", msgspec.json.encode(beat))()).json == {"status": 200}
    answer: dict[str, Any] = {
        "topic": "phoenix",
        "event": "phx_reply",
        "payload": {"status": "ok", "response": {}},
        "ref": "1",
    }
    assert (await client.poll()).frames == [answer]


async def test_a_client_sends_bytes() -> None:
    client = await Poller(channels()).open()
    await client.join("room:a")
    assert await client.post(binary("2", "reverse", b"\x00\x01\xff")) == 200
    assert (await client.poll()).frames[0][4] == {"status": "ok", "response": {"reversed": "ff0100"}}


async def test_bytes_do_not_reach_a_client_and_whoever_pushes_them_is_told() -> None:
    client = await Poller(channels()).open()
    await client.join("room:a")
    await client.post(["1", "2", "room:a", "bytes", {}])
    error = "this transport cannot send binary payloads to the client"
    assert (await client.poll()).frames[0][4] == {"status": "ok", "response": {"error": error}}


async def test_a_broadcast_of_bytes_reaches_the_others_and_is_counted() -> None:
    app = channels()
    poller = await Poller(app).open()
    await poller.join("room:a")
    async with connect(app) as client:
        joined = await client.join("room:a")
        await poller.post(["1", "2", "room:a", "broadcast_bytes", {}], BEAT)
        assert await joined.receive("bytes") == b"\x00\xff"
    assert (await poller.poll()).frames == [BEATEN]
    assert counts(app) == {"inexpressible_broadcast": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "malformed binary push"),
        (b"{nope", "line 2 of a batch is neither JSON nor base64"),
        (b"[nope", "no version 2 message"),
        (b"[1,2]", "no version 2 message"),
        (b'["\xff"]', "not UTF-8"),
        (b"!!!!", "line 2 of a batch is neither JSON nor base64"),
        (b"AAA", "line 2 of a batch is neither JSON nor base64"),
        (base64.b64encode(b"\x01\x00"), "malformed binary push"),
        (b"[" * 40 + b"]" * 40, "no version 2 message"),
        (b"[" + b"[" * 40 + b"]" * 40 + b',null,"phoenix","heartbeat",{}]', "nested too deeply"),
        (b'[null,"1","phoenix","heartbeat",{"x":"' + b"x" * 2_000 + b'"}]', "a message of over 2000 bytes"),
    ],
)
async def test_what_is_malformed_is_answered_400_and_the_session_lives(
    line: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = channels(limits=Limits(message_bytes=2_000))
    client = await Poller(app).open()
    body = b"\n".join([msgspec.json.encode(BEAT), line, msgspec.json.encode(BEAT)])
    answer = await client.request("POST", body, content_type="application/x-ndjson")()
    assert answer.status == 400
    told = msgspec.json.decode(answer.body)
    assert told["status"] == 400
    assert reason in told["reason"]
    assert reason in caplog.text
    assert (await client.poll()).frames == [BEATEN]  # what came before is handled, what comes after is not
    assert counts(app) == {"malformed_message": 1}
    assert await client.post(BEAT) == 200


async def test_a_body_that_is_no_text_is_malformed() -> None:
    client = await Poller(channels()).open()
    assert (await client.request("POST", b"\xff")()).status == 400
    assert await client.post(BEAT) == 200


async def test_a_serializer_that_fails_does_not_end_the_session(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(V2):
        def decode(self, frame: Any) -> Any:
            if "heartbeat" not in frame:
                raise KeyError("a bug")
            return super().decode(frame)

    serializers: list[Serializer] = [Failing()]
    client = await Poller(channels(serializers=serializers)).open()
    answer = await client.request("POST", b"[1]")()
    assert (answer.status, msgspec.json.decode(answer.body)["reason"]) == (400, "the serializer failed")
    assert "a bug" in caplog.text
    assert await client.post(BEAT) == 200


async def test_a_batch_has_a_hundred_lines_and_what_is_beyond_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    app = channels()
    client = await Poller(app).open()
    beats: list[list[Any]] = [[None, str(n), "phoenix", "heartbeat", {}] for n in range(103)]
    assert await client.post(*beats[:100], b"") == 200  # a newline at the very end is nothing
    assert not counts(app)
    assert [frame[1] for frame in (await client.poll()).frames] == [str(n) for n in range(100)]
    assert await client.post(*beats) == 200
    assert len((await client.poll()).frames) == 100
    assert counts(app) == {"batch_too_long": 3}
    assert "3 lines of a batch were ignored: it may have 100" in caplog.text


@pytest.mark.parametrize("headers", [{"content_length": "2001"}, {}])
async def test_a_body_that_is_too_big_is_refused(headers: dict[str, str]) -> None:
    app = channels(longpoll=LongPoll(body_bytes=2_000))
    client = await Poller(app).open()
    answer = await client.request("POST", b"[" * 1_000, b"[" * 1_000, b"[", b"[" * 1_000, **headers)()
    assert answer.status == 400
    assert msgspec.json.decode(answer.body) == {"status": 400, "reason": "a body of over 2000 bytes"}
    assert counts(app) == {"body_too_big": 1}
    assert await client.post(BEAT) == 200


async def test_a_client_that_goes_in_the_middle_of_its_body_has_said_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "starlette_channels")
    app = channels()
    client = await Poller(app).open()
    request = client.request("POST", b"[null")
    request.unfinished = True
    request.gone.set()
    await request()
    assert "The client was gone before its answer" in caplog.text
    assert await client.post(BEAT) == 200
    assert (await client.poll()).frames == [BEATEN]


async def test_the_messages_of_two_requests_are_not_mixed() -> None:
    heard: list[int] = []
    gate = anyio.Event()

    @channel("slow")
    async def slow(socket: Socket[Any], payload: Any) -> None:
        pass

    @slow.on("note")
    async def note(socket: Socket[Any], payload: int) -> None:
        heard.append(payload)
        await gate.wait()

    app = Channels([slow], longpoll=True, limits=Limits(backlog=2))
    client = await Poller(app).open()
    await client.join("slow")
    async with anyio.create_task_group() as tasks:
        for number in (0, 10):
            notes = [["1", None, "slow", "note", number + n] for n in range(5)]
            tasks.start_soon(client.post, *notes)
            await anyio.wait_all_tasks_blocked()
        gate.set()
    await until(lambda: len(heard) == 10)
    assert heard == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
