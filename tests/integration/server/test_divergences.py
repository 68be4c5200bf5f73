"""What our server does where `tests/conformance/divergences.md` allows it to differ from what was recorded."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.play import Outcomes, play_on
from tests.conformance.selection import DIFFERENT, FAST_LANE_ONLY, SCENARIOS, SERVER_DECIDES, SERVERS
from tests.support.servers import FAST_LANE, Kind

V2 = {"vsn": "2.0.0"}


def connect(name: str = "a", path: str = "/socket/websocket", status: int = 101) -> dict[str, Any]:
    return {"connect": name, "path": path, "params": V2, "status": status}


def join(topic: str) -> list[dict[str, Any]]:
    answer: list[Any] = ["1", "1", topic, "phx_reply", {"status": "ok", "response": {}}]
    return [{"send": "a", "json": ["1", "1", topic, "phx_join", {}]}, {"expect": "a", "frames": [answer]}]


def recorded(name: str, step: int) -> dict[str, Any]:
    """A step as it was recorded."""
    return SCENARIOS[name]["steps"][step]


def plain_get(token: str) -> dict[str, Any]:
    return {"http": "GET", "path": "/socket/websocket", "params": {**V2, "token": token}, "status": 400}


def echo(topic: str, text: str, response: object) -> list[dict[str, Any]]:
    answer = ["1", "2", topic, "phx_reply", {"status": "ok", "response": response}]
    return [
        {"send": "a", "text": f'["1", "2", "{topic}", "echo", {text}]'},
        {"expect": "a", "frames": [answer]},
    ]


def opened(path: str = "/socket/longpoll") -> dict[str, Any]:
    answer: dict[str, Any] = {"status": 410, "token": "$token1", "messages": []}
    return {"http": "GET", "path": path, "params": V2, "status": 200, "json": answer}


def posted(name: str, step: int, status: int) -> dict[str, Any]:
    """A POST as it was recorded, and the true status that it has here."""
    return {key: value for key, value in recorded(name, step).items() if key != "json"} | {"status": status}


def fetched(*frames: list[Any], path: str = "/socket/longpoll") -> dict[str, Any]:
    return {"poll": path, "params": {**V2, "token": "$token1"}, "frames": list(frames)}


BEAT: list[Any] = [None, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}]

OURS: dict[str, list[dict[str, Any]]] = {
    # `connect` would answer 403 to "bad", 429 to "limited" and 500 to "raise".
    "handshake/no-upgrade": [plain_get(token) for token in ("", "bad", "limited", "raise")],
    "handshake/other-methods": [
        {"http": method, "path": "/socket/websocket", "params": {**V2, "token": "raise"}, "status": 405}
        for method in ("POST", "PUT", "OPTIONS")
    ],
    "handshake/other-methods-more": [
        {"http": method, "path": "/socket/websocket", "status": 405} for method in ("DELETE", "HEAD", "PATCH")
    ],
    "handshake/path-slashes": [
        connect("a", "/socket/websocket/", status=404),
        connect("b", "/socket//websocket", status=404),
    ],
    # Were pings counted, the connection would end 1000 ms after the last one.
    "idle-timeout/ping-counts": [
        connect(path="/short/websocket"),
        *([{"sleep": 250}, {"ping": "a", "data": "x"}] * 2),
        {"closed": "a", "code": 1002, "max_ms": 850},
    ],
    "malformed/binary-not-utf8-echo": [
        connect(),
        *join("room:malformed-binary-not-utf8-echo"),
        recorded("malformed/binary-not-utf8-echo", 3),
        {"closed": "a", "code": 1011},
    ],
    "long-poll/batch-bad-base64": [opened(), posted("long-poll/batch-bad-base64", 1, 400), fetched(BEAT)],
    "long-poll/malformed": [
        opened("/short/longpoll"),
        posted("long-poll/malformed", 1, 400),
        {**recorded("long-poll/malformed", 2), "json": {"status": 200}},
        fetched(BEAT, path="/short/longpoll"),
    ],
    "long-poll/malformed-batch": [
        opened("/short/longpoll"),
        posted("long-poll/malformed-batch", 1, 400),
        fetched(BEAT, path="/short/longpoll"),
    ],
    "long-poll/slow-join": [
        opened("/short/longpoll"),
        {**recorded("long-poll/slow-join", 1), "json": {"status": 200}},
        fetched(
            ["1", "1", "lab:long-poll-slow-join", "phx_reply", {"status": "ok", "response": {"slept": 1500}}],
            path="/short/longpoll",
        ),
    ],
    "subprotocol/auth-token-junk": [{**recorded("subprotocol/auth-token-junk", 0), "status": 403}],
    "v2-json/duplicate-keys": [
        connect(),
        *join("room:keys"),
        *echo("room:keys", '{"a": 1, "b": 2, "a": 3}', {"a": 3, "b": 2}),
    ],
    "join-leave/close-codes": [connect(), {"close": "a", "code": 4000, "reply": 4000}],
    "malformed/too-big-default": [connect(), {"send": "a", "text": "x" * 12_000_000}, {"closed": "a", "code": 1009}],
}


def harmless(name: str) -> list[dict[str, Any]]:
    """A broken frame of one client, as it was recorded, and then an echo of another, that was there before."""
    topic = f"room:{name}"
    broken = [step for step in SCENARIOS[name]["steps"] if "closed" not in step]
    quiet = [dict(step, connect="b") if "connect" in step else dict(step, send="b") for step in broken[:2]]
    steps = [connect(), *join(topic), *quiet, *echo(topic, '{"alive": true}', {"alive": True})]
    return [*steps, {"drop": "b"}]


HARMLESS = {f"harmless {name}": harmless(name) for name in sorted(SERVER_DECIDES)}


@pytest.fixture(scope="module")
def outcomes() -> Callable[[Kind], Outcomes]:
    """The outcomes on a kind of server, all played at the same time when it is first asked for."""
    scenarios = {name: {"steps": steps} for name, steps in (OURS | HARMLESS).items()}

    @functools.cache
    def of(kind: Kind) -> Outcomes:
        return play_on(kind, scenarios)

    return of


CASES = [
    pytest.param(kind, name, id=f"{kind}-{name}")
    for kind in SERVERS
    for name in OURS
    if kind is not FAST_LANE or name not in FAST_LANE_ONLY  # there it is as recorded
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_our_server_differs_from_phoenix_in_the_way_that_is_written_down(
    kind: Kind, name: str, outcomes: Callable[[Kind], Outcomes]
) -> None:
    assert outcomes(kind).wrong[name] is None, outcomes(kind).log


@pytest.mark.parametrize("kind", SERVERS, ids=str)
@pytest.mark.parametrize("name", HARMLESS)
def test_broken_frames_harm_nobody_else(kind: Kind, name: str, outcomes: Callable[[Kind], Outcomes]) -> None:
    """Whatever the server's library makes of them."""
    assert outcomes(kind).wrong[name] is None, outcomes(kind).log


def test_whatever_may_differ_everywhere_is_shown_here() -> None:
    assert set(DIFFERENT) | FAST_LANE_ONLY <= set(OURS)
