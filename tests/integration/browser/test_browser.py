"""The page of example_app, and `channels.js` alone, in a real Chromium."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

from tests.clients import node
from tests.support.chromium import MISSING, chromium, find
from tests.support.servers import Server, serve

PATIENCE = 15_000  # milliseconds

Person = Callable[..., Page]


class Visits:
    """The contexts that a test opens, each a browser of its own, and what went wrong in them."""

    def __init__(self, browser: Browser, server: Server) -> None:
        self._browser = browser
        self._server = server
        self._contexts: list[BrowserContext] = []
        self.errors: list[str] = []
        self.expected = ""
        self.elsewhere: list[str] = []

    def page(self, **options: Any) -> Page:
        """Open an empty page, in the browser of somebody new."""
        context = self._browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._note_address(request.url))
        page.on("websocket", lambda socket: self._note_address(socket.url))
        return page

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not (self.expected and re.match(self.expected, message.text)):
            self.errors.append(message.text)

    def _note_address(self, url: str) -> None:
        if not url.startswith((f"{self._server.http}/", f"{self._server.ws}/", "data:")):
            self.elsewhere.append(url)

    def leave(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find()
    if executable is None:
        pytest.skip(MISSING)
    expect.set_options(timeout=PATIENCE)
    with chromium(executable) as browser:
        yield browser


@pytest.fixture
def server() -> Iterator[Server]:
    with serve("example_app.app:app", environment={"CHAT_PASSPHRASE": "open sesame"}) as server:
        yield server


@pytest.fixture
def visits(browser: Browser, server: Server) -> Iterator[Visits]:
    visits = Visits(browser, server)
    yield visits
    visits.leave()
    assert visits.errors == [], server.tail()
    assert visits.elsewhere == []


@pytest.fixture
def come_in(visits: Visits, server: Server) -> Person:
    """Open the chat's page as somebody new, and come in under a name."""

    def come_in(name: str, room: str = "lobby", **options: Any) -> Page:
        page = visits.page(**options)
        page.goto(f"{server.http}/#{room}")
        page.get_by_test_id("name-input").fill(name)
        page.get_by_test_id("enter").click()
        expect_online(page)
        for public in ("lobby", "garden", "workshop"):
            expect(page.get_by_test_id(f"room-{public}")).to_have_attribute("data-state", "joined")
        return page

    return come_in


def expect_online(page: Page) -> None:
    expect(page.get_by_test_id("connection")).to_have_attribute("data-state", "online")


def say(page: Page, text: str) -> None:
    page.get_by_test_id("message-input").fill(text)
    page.get_by_test_id("send").click()


def expect_said(page: Page, author: str, text: str) -> None:
    """A message of this author, once, and delivered."""
    message = page.get_by_test_id("message").filter(has=page.get_by_text(text, exact=True))
    expect(message).to_have_count(1)
    expect(message).to_have_attribute("data-author", author)
    expect(message).to_have_attribute("data-state", "sent")
    expect(message.locator("time")).to_have_count(1)


def test_two_people_chat(come_in: Person) -> None:
    ann, bob = come_in("Ann"), come_in("Bob")
    say(ann, "hello <b>there</b>")
    for page in (ann, bob):
        expect_said(page, "Ann", "hello <b>there</b>")
    say(bob, "grüße 🙂")
    for page in (ann, bob):
        expect_said(page, "Bob", "grüße 🙂")
    late = come_in("Cat")
    expect_said(late, "Ann", "hello <b>there</b>")
    expect_said(late, "Bob", "grüße 🙂")


def test_rooms_are_apart_and_count_what_is_unread(come_in: Person) -> None:
    ann, bob = come_in("Ann"), come_in("Bob", "garden")
    say(bob, "nice and green here")
    expect_said(bob, "Bob", "nice and green here")
    expect(ann.get_by_test_id("room-garden").get_by_test_id("unread")).to_contain_text("1")
    expect(ann.get_by_test_id("message")).to_have_count(0)
    ann.get_by_test_id("room-garden").click()
    expect_said(ann, "Bob", "nice and green here")
    expect(ann.get_by_test_id("room-garden").get_by_test_id("unread")).to_be_hidden()


def test_one_sees_who_is_typing_until_the_message_is_there(come_in: Person) -> None:
    ann, bob = come_in("Ann"), come_in("Bob")
    bob.get_by_test_id("message-input").press_sequentially("I am")
    expect(ann.get_by_test_id("typing")).to_contain_text("Bob is typing")
    expect(bob.get_by_test_id("typing")).to_have_text("")
    bob.get_by_test_id("send").click()
    expect_said(ann, "Bob", "I am")
    expect(ann.get_by_test_id("typing")).to_have_text("")


def expect_people(page: Page, *names: str) -> None:
    """These people are in the room, by the list in its head and the number in the list of rooms."""
    expect(page.get_by_test_id("people")).to_contain_text("Just you" if len(names) == 1 else f"{len(names)} here")
    expect(page.get_by_test_id("person")).to_have_count(len(names))
    people = page.get_by_test_id("person").all()
    assert [person.get_attribute("data-name") for person in people] == list(names)


def test_one_sees_who_is_in_a_room_and_who_has_gone(come_in: Person) -> None:
    ann = come_in("Ann")
    expect_people(ann, "Ann")
    bob, cat = come_in("Bob"), come_in("Cat", "garden")
    for page in (ann, bob, cat):
        expect_people(page, "Ann", "Bob", "Cat")
        expect(page.get_by_test_id("room-lobby").get_by_test_id("room-people")).to_have_text("3")
    expect(ann.get_by_test_id("people-list")).to_be_hidden()
    ann.get_by_test_id("people").click()
    expect(ann.get_by_test_id("people-list")).to_be_visible()
    expect(ann.get_by_test_id("person").first).to_contain_text("you")
    bob.get_by_test_id("leave").click()
    cat.close()
    expect_people(ann, "Ann")


def test_who_is_in_the_private_room_is_seen_only_from_inside(come_in: Person) -> None:
    ann, bob = come_in("Ann", "attic"), come_in("Bob", "attic")
    ann.get_by_test_id("passphrase").fill("open sesame")
    ann.get_by_test_id("unlock").click()
    expect_people(ann, "Ann")
    expect(bob.get_by_test_id("people")).to_be_hidden()
    expect(bob.get_by_test_id("room-attic").get_by_test_id("room-people")).to_be_hidden()


def test_the_private_room_refuses_strangers(come_in: Person) -> None:
    ann, bob = come_in("Ann", "attic"), come_in("Bob", "attic")
    for page in (ann, bob):
        expect(page.get_by_test_id("locked")).to_be_visible()
        page.get_by_test_id("passphrase").fill("let me in")
        page.get_by_test_id("unlock").click()
        expect(page.get_by_test_id("refusal")).to_contain_text("not the passphrase")
        expect(page.get_by_test_id("message-input")).to_be_hidden()
    for page in (ann, bob):
        page.get_by_test_id("passphrase").fill("open sesame")
        page.get_by_test_id("unlock").click()
        expect(page.get_by_test_id("locked")).to_be_hidden()
    say(ann, "just the two of us")
    expect_said(bob, "Ann", "just the two of us")


def test_an_announcement_over_http_reaches_everybody_in_the_room(come_in: Person, server: Server) -> None:
    pages = [come_in("Ann"), come_in("Bob")]
    announcement = {"room": "lobby", "body": "We close at ten."}
    assert httpx.post(f"{server.http}/announce", json=announcement, trust_env=False).status_code == 201
    for page in pages:
        expect(page.get_by_test_id("announcement")).to_contain_text("We close at ten.")


@pytest.mark.parametrize("end", [Server.kill, Server.stop], ids=["killed", "stopped"])
def test_everybody_comes_back_when_the_server_is_started_again(
    end: Callable[[Server], object], come_in: Person, visits: Visits, server: Server
) -> None:
    # A browser writes every attempt that fails to the console, and nothing can keep it from doing so.
    visits.expected = "WebSocket connection to '[^']*' failed"
    pages = {name: come_in(name) for name in ("Ann", "Bob")}
    say(pages["Ann"], "before")
    expect_said(pages["Bob"], "Ann", "before")
    end(server)
    for page in pages.values():
        expect(page.get_by_test_id("connection")).to_have_attribute("data-state", "reconnecting")
    say(pages["Bob"], "written while nobody listened")
    server.start()
    for page in pages.values():
        expect_online(page)
        expect_said(page, "Bob", "written while nobody listened")
    for name, page in pages.items():
        say(page, f"{name} is back")
    for page in pages.values():
        expect_people(page, "Ann", "Bob")
        for name in pages:
            expect_said(page, name, f"{name} is back")


def test_it_works_on_a_phone(come_in: Person) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    ann, bob = come_in("Ann", **phone), come_in("Bob", "workshop")
    assert ann.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(ann.get_by_test_id("room-workshop")).not_to_be_in_viewport()
    ann.get_by_test_id("menu").tap()
    ann.get_by_test_id("room-workshop").tap()
    expect(ann.get_by_test_id("room-title")).to_have_text("Workshop")
    expect(ann.get_by_test_id("room-workshop")).not_to_be_in_viewport()
    ann.get_by_test_id("message-input").fill("from my pocket " + "and a long way round " * 20 + "x" * 200)
    ann.get_by_test_id("send").tap()
    expect(bob.get_by_test_id("message")).to_contain_text("from my pocket")
    expect(ann.get_by_test_id("send")).to_be_in_viewport()
    assert ann.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_it_is_dark_where_the_system_is(come_in: Person) -> None:
    colors: list[list[float]] = []
    for scheme in ("light", "dark"):
        page = come_in(scheme, color_scheme=scheme)
        colors.append(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number)"))
    light, dark = (sum(color[:3]) for color in colors)
    assert light > 3 * 200
    assert dark < 3 * 80


CHANNELS_JS = """async () => {
    const { Socket } = await import("/socket/channels.js");
    const socket = new Socket("/socket", { params: { user: "ann" } });
    socket.connect();
    const room = socket.channel("room:page");
    const heard = new Promise((resolve) => room.on("said", resolve));
    const joined = await room.join();
    const answer = await room.push("say", { body: "from a page" });
    const bytes = await room.push("bytes", Uint8Array.from([1, 2, 255]).buffer);
    const refused = await room.push("refuse", {}).catch(({ status, response }) => ({ status, response }));
    const stranger = await socket.channel("room:private").join().catch(({ response }) => response);
    return { joined, answer, heard: await heard, bytes: [...new Uint8Array(bytes)], refused, stranger };
}"""


@pytest.fixture
def plain_server() -> Iterator[Server]:
    with serve("tests.clients.app:app") as server:
        yield server


def test_a_blank_page_needs_only_channels_js(browser: Browser, plain_server: Server) -> None:
    visits = Visits(browser, plain_server)
    page = visits.page()
    page.goto(plain_server.http)
    assert page.evaluate(CHANNELS_JS) == {
        "joined": {"you": "ann", "topic": "room:page", "tags": None},
        "answer": {"body": "from a page"},
        "heard": {"user": "ann", "body": "from a page"},
        "bytes": [255, 2, 1],
        "refused": {"status": "error", "response": {"reason": "not today"}},
        "stranger": {"reason": "unauthorized"},
    }
    visits.leave()
    assert visits.errors == []
    assert visits.elsewhere == []


REFUSALS = """async () => {
    const { Socket } = await import("/socket/channels.js");
    let token = "expired";
    const socket = new Socket("/socket", { params: () => ({ user: "ann", token }), reconnectAfterMs: () => 20 });
    const told = [], codes = [];
    socket.onClose(({ code }) => codes.push(code));
    socket.onRefused(async (refusal) => {
        told.push(refusal);
        token = told.length < 3 ? "expired" : "fresh";
    });
    socket.connect();
    await socket.channel("room:page").join();
    socket.disconnect();
    const strict = new Socket("/socket", { params: { user: "ann", token: "expired" }, reconnectAfterMs: () => 20 });
    let attempts = 0;
    strict.onClose(() => attempts++);
    strict.onRefused(({ code }) => code !== 4401);
    const join = strict.channel("room:page").join();
    strict.connect();
    const rejected = await join.catch(({ status, reason }) => ({ status, reason }));
    await new Promise((resolve) => setTimeout(resolve, 200));
    const silent = new Socket("/socket", { params: { user: "" } });
    const [refused, refusedOverHttp] = [[], new Promise((resolve) => silent.onClose(({ code }) => resolve(code)))];
    silent.onRefused((refusal) => refused.push(refusal));
    silent.connect();
    return { told, codes: codes.slice(0, 3), rejected, attempts, overHttp: await refusedOverHttp, refused };
}"""


def test_a_page_can_tell_a_refusal_with_a_code_from_a_dead_network(browser: Browser, plain_server: Server) -> None:
    visits = Visits(browser, plain_server)
    visits.expected = "WebSocket connection to '[^']*' failed: Error during WebSocket handshake"
    page = visits.page()
    page.goto(plain_server.http)
    refusal = {"code": 4401, "reason": "expired token"}
    assert page.evaluate(REFUSALS) == {
        "told": [refusal] * 3,
        "codes": [4401] * 3,
        "rejected": {"status": "refused", "reason": "expired token"},
        "attempts": 1,
        "overHttp": 1006,
        "refused": [],
    }
    visits.leave()
    assert visits.errors == []


SHARED = """async () => {
    const { Socket, Presence } = await import("/socket/channels.js");
    const socket = new Socket("/socket", { params: { user: "ann" } });
    socket.connect();
    const [one, two] = [socket.shared("room:page"), socket.shared("room:page", { other: true })];
    const heard = [];
    one.on("said", ({ body }) => heard.push(`one: ${body}`));
    two.on("said", ({ body }) => heard.push(`two: ${body}`));
    const joined = [await one.join(), await two.join()];
    await one.push("say", { body: "both" });
    one.leave();
    await two.push("say", { body: "the second" });
    const states = [one.state, two.state];
    const [first, second] = [socket.channel("room:page"), socket.channel("room:page")];
    await first.join();
    await second.join();
    return { joined, heard, states, after: [two.state, first.state, second.state] };
}"""


def test_parts_of_a_page_share_a_channel_and_mistakes_are_in_the_console(
    browser: Browser, plain_server: Server
) -> None:
    visits = Visits(browser, plain_server)
    page = visits.page()
    page.goto(plain_server.http)
    ann = {"you": "ann", "topic": "room:page", "tags": None}
    assert page.evaluate(SHARED) == {
        "joined": [ann, ann],
        "heard": ["one: both", "two: both", "two: the second"],
        "states": ["closed", "joined"],
        "after": ["closed", "closed", "joined"],
    }
    visits.leave()
    assert [text.partition(" ")[0] for text in visits.errors] == ['socket.shared("room:page"):', *['"room:page"'] * 2]


WHO_AM_I = """(socket) => new Promise((resolve) => {
    const connection = new WebSocket(`${socket}/websocket?vsn=2.0.0`);
    connection.onopen = () => connection.send('["1", "1", "me", "phx_join", {}]');
    connection.onmessage = (message) => resolve(JSON.parse(message.data)[4].response.you_are);
    connection.onclose = () => resolve("refused");
})"""


@pytest.fixture
def site() -> Iterator[Server]:
    with serve("tests.support.origin_app:app") as server:
        yield server


def test_a_page_from_elsewhere_cannot_connect_with_the_cookies_of_a_user(browser: Browser, site: Server) -> None:
    """The other page is of the same site, so that the browser sends even cookies that are `SameSite=lax` along."""
    ours, theirs = f"chat.shop.localhost:{site.port}", f"evil.shop.localhost:{site.port}"
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(f"http://{ours}/login/ann")
        assert page.evaluate(WHO_AM_I, f"ws://{ours}/guarded") == "ann"
        page.goto(f"http://{theirs}/")
        assert page.evaluate(WHO_AM_I, f"ws://{ours}/open") == "ann", "without the check the page would be Ann"
        assert page.evaluate(WHO_AM_I, f"ws://{ours}/guarded") == "refused"
        assert page.evaluate(WHO_AM_I, f"ws://{theirs}/guarded") == "nobody"
    assert f"'origin http://{theirs}, host {ours}'" in site.tail()


IMAGES = """(url) => Promise.all([...Array(10)].map((_, n) => new Promise((resolve) => {
    const image = new Image();
    image.onload = image.onerror = resolve;
    image.src = `${url}&n=${n}`;
})))"""
NO_CORS = """(url) => fetch(url, { mode: "no-cors", credentials: "include" }).then(() => null)"""
FRAME = """(url) => new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.onload = resolve;
    frame.src = url;
    document.body.append(frame);
})"""
FETCH = """(url) => fetch(url).then((answer) => answer.json()).then(({ status }) => status, () => "unreadable")"""
XHR = """(url) => new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("GET", url);
    request.onload = () => resolve(JSON.parse(request.responseText).status);
    request.send();
})"""


def test_only_scripts_of_admitted_pages_open_sessions_of_long_polling(browser: Browser, site: Server) -> None:
    """What browsers really send: an `Origin` only where a script may read the answer, or changes something."""

    def sessions() -> int:
        return httpx.get(f"{site.http}/figures", trust_env=False).json()["sessions"]

    poll = f"http://app.localhost:{site.port}/polled/longpoll?vsn=2.0.0"
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(f"http://app.localhost:{site.port}/login/ann")
        for elsewhere in ("evil.app.localhost", "evil.localhost"):  # of the same site, and of another one
            page.goto(f"http://{elsewhere}:{site.port}/")
            for how in (IMAGES, NO_CORS, FRAME, FETCH):
                page.evaluate(how, poll)
                assert sessions() == 0, (elsewhere, how)
            with page.expect_navigation():
                page.evaluate("(url) => { location = url; }", poll)
            assert sessions() == 0, elsewhere
        for number, (ours, how) in enumerate([("app", FETCH), ("app", XHR), ("friend", FETCH), ("friend", XHR)], 1):
            page.goto(f"http://{ours}.localhost:{site.port}/")
            assert page.evaluate(how, poll) == 410, ours
            assert sessions() == number


PHOENIX_JS = """async (url) => {
    const { Socket, LongPoll } = await import("/phoenix.mjs");
    const socket = new Socket(url, { params: { user: "ann" }, longPollFallbackMs: 400 });
    const room = socket.channel("room:proxy");
    window.heard = [];
    room.on("said", ({ body }) => heard.push(body));
    window.say = (body) => new Promise((resolve) => room.push("say", { body }).receive("ok", resolve));
    window.way = () => socket.transport === LongPoll ? "long-poll" : "WebSocket";
    socket.connect();
    await new Promise((resolve) => room.join().receive("ok", resolve));
}"""


@pytest.fixture
def phoenix_page(browser: Browser, plain_server: Server) -> Iterator[Callable[..., Page]]:
    """Opens tabs of one browser, in which the real phoenix.js has joined a room, with its fallback switched on."""
    node.install()
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    context.route("**/phoenix.mjs", lambda route: route.fulfill(path=node.MODULES / "phoenix/priv/static/phoenix.mjs"))

    def page(mount: str = "/socket", *, host: str = "127.0.0.1", swallowed: bool = False) -> Page:
        page = context.new_page()
        if swallowed:  # the WebSocket opens, and nothing that is sent arrives anywhere
            page.route_web_socket("**/websocket*", lambda route: None)
        page.goto(f"http://{host}:{plain_server.port}/")
        page.evaluate(PHOENIX_JS, f"{plain_server.ws}{mount}")
        return page

    yield page
    context.close()


@pytest.mark.parametrize(
    "blocked",
    [
        pytest.param({"swallowed": True}, id="swallowed"),
        pytest.param({"mount": "/polled"}, id="refused"),
        pytest.param({"mount": "/polled", "host": "localhost"}, id="refused, page of another origin"),
    ],
)
def test_phoenix_js_falls_back_to_long_polling_when_no_websocket_gets_through_and_returns(
    blocked: dict[str, Any], phoenix_page: Callable[..., Page]
) -> None:
    behind_the_proxy, outside = phoenix_page(**blocked), phoenix_page()
    assert (behind_the_proxy.evaluate("way()"), outside.evaluate("way()")) == ("long-poll", "WebSocket")
    for page, body in ((behind_the_proxy, "from behind"), (outside, "from outside")):
        assert page.evaluate("(body) => say(body)", body) == {"body": body}
    for page in (behind_the_proxy, outside):
        page.wait_for_function("heard.length === 2")
        assert page.evaluate("heard") == ["from behind", "from outside"]
    behind_the_proxy.close()
    returned = phoenix_page()
    assert returned.evaluate("way()") == "WebSocket"
    assert returned.evaluate("say('back again')") == {"body": "back again"}
    outside.wait_for_function("heard.includes('back again')")
