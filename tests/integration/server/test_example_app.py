"""The server side of example_app: its rooms, its private room, its HTTP routes. The page has tests of its own."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket

from example_app import app as chat
from example_app.history import LENGTH, History, Message
from starlette_channels.testing import Client, HandshakeRefused, Joined, JoinRefused, connect
from starlette_channels.wire.messages import Reply
from tests.support.servers import ROOT, Kind, serve

pytestmark = pytest.mark.anyio

STATIC = Path(chat.__file__).parent / "static"


@pytest.fixture(autouse=True)
def nothing_was_said() -> Generator[None]:
    yield
    chat.history.clear()


@asynccontextmanager
async def enter(name: str, topic: str = "room:lobby", payload: Any = None) -> AsyncGenerator[Joined]:
    """Connect under a name and join one room."""
    async with connect(chat.app, "/socket", name=name) as client:
        yield await client.join(topic, payload)


@asynccontextmanager
async def browser() -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(chat.app), base_url="http://chat") as http:
        yield http


async def refusal(client: Client, topic: str, payload: Any = None) -> Reply:
    with pytest.raises(JoinRefused) as refused:
        await client.join(topic, payload)
    return refused.value.reply


# ---- names


@pytest.mark.parametrize("name", ["A", "Ann", "Ann Lee", "Čiđ ☕", "a" * 24, "ñ" * 24])
async def test_a_name_of_one_to_24_characters_is_let_in(name: str) -> None:
    async with enter(name) as room:
        assert (await room.push("new_msg", {"body": "hello"})).payload["author"] == name


@pytest.mark.parametrize("name", ["", " ", " Ann", "Ann ", "Ann\n", "A\nnn", "a" * 25])
async def test_a_name_that_is_empty_too_long_or_has_spaces_around_it_is_refused(name: str) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        async with connect(chat.app, "/socket", name=name):
            pass
    assert refused.value.status == 403


@pytest.mark.parametrize("params", [{}, {"name": {"first": "Ann"}}, {"name": ["Ann"]}])
async def test_a_connection_whose_name_is_missing_or_no_text_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        async with connect(chat.app, "/socket", **params):
            pass
    assert refused.value.status == 403


# ---- rooms


async def test_the_first_to_join_a_room_finds_it_empty() -> None:
    async with enter("Ann") as room:
        assert room.reply == Reply("ok", {"messages": []})


async def test_a_newcomer_is_given_what_was_said_oldest_first() -> None:
    async with enter("Ann") as ann:
        first = await ann.push("new_msg", {"body": "one"})
        second = await ann.push("new_msg", {"body": "two"})
        async with enter("Bob") as bob:
            assert bob.reply.payload == {"messages": [first.payload, second.payload]}


async def test_a_room_remembers_its_last_50_messages() -> None:
    async with enter("Ann") as ann:
        for number in range(53):
            await ann.push("new_msg", {"body": str(number)})
        async with enter("Bob") as bob:
            assert [message["body"] for message in bob.reply.payload["messages"]] == [str(n) for n in range(3, 53)]


async def test_rooms_are_separate_and_share_one_connection() -> None:
    async with connect(chat.app, "/socket", name="Ann") as client, enter("Bob", "room:garden") as bob:
        lobby, garden = await client.join("room:lobby"), await client.join("room:garden")
        await bob.push("new_msg", {"body": "roses"})
        assert (await garden.receive("new_msg"))["body"] == "roses"
        assert await lobby.received_nothing("new_msg")
        async with enter("Cid") as newcomer:
            assert newcomer.reply.payload == {"messages": []}


@pytest.mark.parametrize("topic", ["room:cellar", "room:", "room:Lobby", "room:lobby:2"])
async def test_a_room_that_does_not_exist_cannot_be_joined(topic: str) -> None:
    async with connect(chat.app, "/socket", name="Ann") as client:
        assert await refusal(client, topic) == Reply("error", {"reason": "there is no such room"})


# ---- the private room


@pytest.mark.parametrize("payload", [{}, {"passphrase": ""}, {"passphrase": "Open Sesame"}, {"passphrase": "söchtes"}])
async def test_the_private_room_refuses_strangers_and_says_why(payload: dict[str, str]) -> None:
    async with connect(chat.app, "/socket", name="Eve") as client:
        assert await refusal(client, "room:attic", payload) == Reply("error", {"reason": "that is not the passphrase"})


async def test_after_a_refusal_the_right_passphrase_opens_the_private_room() -> None:
    async with connect(chat.app, "/socket", name="Ann") as client:
        await refusal(client, "room:attic", {"passphrase": "guess"})
        attic = await client.join("room:attic", {"passphrase": chat.PASSPHRASE})
        assert (await attic.push("new_msg", {"body": "psst"})).status == "ok"


async def test_who_was_refused_hears_nothing_of_the_private_room_and_cannot_speak_in_it() -> None:
    async with (
        connect(chat.app, "/socket", name="Eve") as eve,
        enter("Ann", "room:attic", {"passphrase": chat.PASSPHRASE}) as ann,
    ):
        await refusal(eve, "room:attic")
        eve.send("1", "99", "room:attic", "new_msg", {"body": "let me in"})
        assert await eve.reply("99") == Reply("error", {"reason": "unmatched topic"})
        await ann.push("new_msg", {"body": "psst"})
        assert await eve.received_nothing()
        assert [message.body for message in chat.history.latest("attic")] == ["psst"]


async def test_a_passphrase_that_is_no_text_is_refused() -> None:
    async with connect(chat.app, "/socket", name="Eve") as client:
        assert (await refusal(client, "room:attic", {"passphrase": 1})).status == "error"


# ---- messages


async def test_a_message_reaches_the_others_as_an_event_and_its_author_as_the_reply() -> None:
    async with enter("Ann") as ann, enter("Bob") as bob:
        reply = await ann.push("new_msg", {"body": "hello", "id": "0123456789abcdef"})
        message = reply.payload
        assert reply.status == "ok"
        assert await bob.receive("new_msg") == message
        assert await ann.received_nothing("new_msg")
        said = datetime.fromisoformat(message.pop("at"))
        assert abs(datetime.now(UTC) - said) < timedelta(minutes=1)
        assert message == {"author": "Ann", "body": "hello", "id": "0123456789abcdef"}


async def test_a_message_without_an_id_gets_one_of_its_own() -> None:
    async with enter("Ann") as ann:
        replies = [await ann.push("new_msg", {"body": "hello"}) for _ in range(2)]
        assert replies[0].payload["id"] != replies[1].payload["id"]


async def test_a_message_that_is_sent_again_is_said_once() -> None:
    async with enter("Ann") as ann, enter("Bob") as bob:
        first = await ann.push("new_msg", {"body": "hello", "id": "0123456789abcdef"})
        again = await ann.push("new_msg", {"body": "hello", "id": "0123456789abcdef"})
        assert again == first
        assert await bob.receive("new_msg") == first.payload
        assert await bob.received_nothing("new_msg")
        assert len(chat.history.latest("lobby")) == 1


@pytest.mark.parametrize("body", ["x", "ñ" * 2000, "<b>bold</b>", "two\nlines", "☕"])
async def test_a_message_of_one_to_2000_characters_is_taken_as_it_is(body: str) -> None:
    async with enter("Ann") as ann, enter("Bob") as bob:
        assert (await ann.push("new_msg", {"body": body})).payload["body"] == body
        assert (await bob.receive("new_msg"))["body"] == body


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"body": ""},
        {"body": " \n"},
        {"body": "x" * 2001},
        {"body": 7},
        {"body": None},
        {"body": "hi", "id": "short"},
        {"body": "hi", "id": "x" * 37},
        ["hi"],
    ],
    ids=str,
)
async def test_a_message_that_does_not_fit_is_refused_and_nobody_hears_of_it(payload: Any) -> None:
    async with enter("Ann") as ann, enter("Bob") as bob:
        reply = await ann.push("new_msg", payload)
        assert (reply.status, reply.payload["reason"]) == ("error", "invalid payload")
        assert await bob.received_nothing("new_msg")
        assert not chat.history.latest("lobby")
        assert (await ann.push("new_msg", {"body": "still here"})).status == "ok"


async def test_typing_is_shown_to_the_others_but_not_to_the_typist() -> None:
    async with enter("Ann") as ann, enter("Bob") as bob:
        ann.send("typing")
        assert await bob.receive("typing") == {"name": "Ann"}
        assert await ann.received_nothing("typing")


async def test_an_unknown_event_is_refused_and_the_room_goes_on() -> None:
    async with enter("Ann") as ann:
        assert await ann.push("dance") == Reply("error", {"reason": "unmatched event"})
        assert (await ann.push("new_msg", {"body": "hello"})).status == "ok"


# ---- who is there


def names(presences: dict[str, Any]) -> list[str]:
    return sorted(presences)


async def test_who_joins_a_room_is_told_who_is_in_it_and_the_others_are_told_of_the_newcomer() -> None:
    async with enter("Ann") as ann, enter("Cid", "room:garden"):
        assert names(await ann.receive("presence_state")) == ["Ann"]
        assert names((await ann.receive("presence_diff"))["joins"]) == ["Ann"]  # she was admitted when it happened
        async with enter("Bob") as bob:
            assert names(await bob.receive("presence_state")) == ["Ann", "Bob"]
            assert names((await ann.receive("presence_diff"))["joins"]) == ["Bob"]
        assert names((await ann.receive("presence_diff"))["leaves"]) == ["Bob"]


async def test_a_person_with_two_windows_is_one_person() -> None:
    async with enter("Ann"), enter("Ann") as again:
        state = await again.receive("presence_state")
        assert (names(state), len(state["Ann"]["metas"])) == (["Ann"], 2)


async def test_who_stands_before_the_private_room_does_not_see_who_is_in_it_and_is_not_seen() -> None:
    async with (
        connect(chat.app, "/socket", name="Eve") as eve,
        enter("Ann", "room:attic", {"passphrase": chat.PASSPHRASE}) as ann,
    ):
        await ann.receive("presence_state")
        assert names((await ann.receive("presence_diff"))["joins"]) == ["Ann"]
        await refusal(eve, "room:attic")
        assert await eve.received_nothing()
        assert await ann.received_nothing("presence_diff")


async def test_a_name_that_breaks_pages_is_refused() -> None:
    async with connect(chat.app, "/socket", name="constructor") as client:
        assert (await refusal(client, "room:lobby")).payload == {"reason": "that name is reserved"}


# ---- history


@pytest.mark.parametrize("file", [":memory:", "chat.sqlite"])
def test_the_history_keeps_the_latest_and_what_is_said_again_once(file: str, tmp_path: Path) -> None:
    where = file if file == ":memory:" else str(tmp_path / file)
    said = [Message("Ann", f"{number}") for number in range(LENGTH + 3)]
    with contextlib.closing(History(where)) as history:
        for message in said:
            assert history.add("lobby", message) is message
        assert history.add("lobby", Message("Ann", "again", said[-1].id)) == said[-1]
        assert history.add("garden", Message("Ann", "elsewhere", said[-1].id)).body == "elsewhere"
        assert history.latest("lobby") == said[3:]


def test_the_history_in_a_file_is_that_of_other_processes_and_of_the_next_start(tmp_path: Path) -> None:
    file = str(tmp_path / "chat.sqlite")
    with contextlib.closing(History(file)) as one, contextlib.closing(History(file)) as other:
        said = one.add("lobby", Message("Ann", "hello"))
        assert other.latest("lobby") == [said]
        assert other.add("lobby", Message("Ann", "again", said.id)) == said
    with contextlib.closing(History(file)) as later:
        assert later.latest("lobby") == [said]


# ---- over HTTP


async def test_an_announcement_reaches_everybody_in_its_room_and_stays_in_its_history() -> None:
    async with enter("Ann") as ann, enter("Bob", "room:garden") as bob, browser() as http:
        response = await http.post("/announce", json={"room": "lobby", "body": "Tea is ready"})
        message = await ann.receive("new_msg")
        assert response.status_code == 201
        assert response.json() == message
        assert (message["author"], message["body"]) == (None, "Tea is ready")
        assert await bob.received_nothing("new_msg")
        async with enter("Cid") as newcomer:
            assert newcomer.reply.payload == {"messages": [message]}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"room": "cellar", "body": "hi"}', 404),
        (b'{"room": "lobby"}', 422),
        (b'{"room": "lobby", "body": " "}', 422),
        (b'{"room": "lobby", "body": "%s"}' % (b"x" * 2001), 422),
        (b'{"room": 1, "body": "hi"}', 422),
        (b"[]", 422),
        (b"", 422),
        (b"{", 422),
        (b'{"room": "lobby", "body": "\xff"}', 422),
        (b'{"room": "lobby", "body": "hi", "more": ' + b"[" * 100_000, 422),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_an_announcement_that_does_not_fit_is_refused(content: bytes, status: int) -> None:
    async with enter("Ann") as ann, browser() as http:
        response = await http.post("/announce", content=content)
        assert response.status_code == status
        assert response.json()["error"]
        assert await ann.received_nothing("new_msg")


async def test_the_list_of_rooms_tells_the_page_what_to_show_and_which_room_is_private() -> None:
    async with browser() as http:
        rooms = (await http.get("/rooms")).json()
    assert [(room["id"], room["private"]) for room in rooms] == [
        ("lobby", False),
        ("garden", False),
        ("workshop", False),
        ("attic", True),
    ]
    assert all(room["title"] and room["about"] for room in rooms)


async def test_every_file_that_the_page_needs_is_served_from_here() -> None:
    texts = {file.name: file.read_text() for file in STATIC.iterdir()}
    needed = {"/", *re.findall(r'(?:src|href)="([^"#]+)"', texts["index.html"])}
    for name, text in texts.items():
        if name.endswith(".js"):
            needed |= {found.removeprefix(".") for found in re.findall(r'from "([^"]+)"', text)}
    assert {"/socket/channels.js", "chat.js", "/room.js", "chat.css"} <= needed
    async with browser() as http:
        for address in sorted(needed):
            response = await http.get(address)
            assert response.status_code == 200, address
            assert response.content, address


async def test_the_page_asks_nothing_of_other_hosts() -> None:
    for file in STATIC.iterdir():
        addresses = re.findall(r"https?://[^\"'\s)]+", file.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, file.name


# ---- running it


def test_python_m_example_app_serves_the_page_and_prints_its_address() -> None:
    with serve("", Kind("python -m example_app", "example_app --port {port}")) as server:
        assert "<title>Starling</title>" in httpx.get(server.http).text
        assert f"{server.http} " in server.tail()


def test_with_several_workers_it_does_not_matter_to_which_one_somebody_is_connected() -> None:
    with serve("", Kind("example_app --workers", "example_app --port {port} --workers 2")) as server:
        asyncio.run(meet(f"{server.ws}/socket/websocket?vsn=2.0.0&name=", [f"Person-{number}" for number in range(8)]))


async def meet(url: str, people: list[str]) -> None:
    """Let people come in, see each other, and hear what one of them says; who comes later can read it."""
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(30):
        clients = [await stack.enter_async_context(websocket(url + name)) for name in people]
        for client in clients:
            await client.send('["1", "1", "room:lobby", "phx_join", {}]')
        await asyncio.gather(*(sees(client, set(people)) for client in clients))
        await clients[0].send('["1", "2", "room:lobby", "new_msg", {"body": "hello"}]')
        await asyncio.gather(*(hears(client, "hello") for client in clients[1:]))
        late = await stack.enter_async_context(websocket(url + "Late"))
        await late.send('["1", "1", "room:lobby", "phx_join", {}]')
        joined = json.loads(await late.recv())[4]["response"]
        assert [message["body"] for message in joined["messages"]] == ["hello"]


async def sees(client: ClientConnection, people: set[str]) -> None:
    """Read until these people are there."""
    there: set[str] = set()
    while there != people:
        _, _, _, event, payload = json.loads(await client.recv())
        if event == "presence_state":
            there = set(payload)
        elif event == "presence_diff":
            there = (there | set(payload["joins"])) - set(payload["leaves"])


async def hears(client: ClientConnection, body: str) -> None:
    """Read until somebody says this."""
    while (frame := json.loads(await client.recv()))[3] != "new_msg":
        pass
    assert frame[4]["body"] == body


@pytest.mark.parametrize(("environment", "passphrase"), [({}, "open sesame"), ({"CHAT_PASSPHRASE": "abc"}, "abc")])
def test_the_passphrase_is_the_one_in_the_readme_or_that_of_the_environment(
    environment: dict[str, str], passphrase: str
) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "CHAT_PASSPHRASE"}
    program = [sys.executable, "-c", "from example_app.app import PASSPHRASE; print(PASSPHRASE)"]
    out = subprocess.run(program, env=inherited | environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == passphrase
    readme = (ROOT / "example_app" / "README.md").read_text()
    assert "`open sesame`" in readme
    assert "`CHAT_PASSPHRASE`" in readme
