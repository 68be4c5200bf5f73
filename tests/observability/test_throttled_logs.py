"""Logs are bounded: whatever a client can cause goes through one throttle, tracebacks and refusals included."""

import ast
import logging
import pkgutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import starlette_channels
from starlette_channels import Rate
from starlette_channels.observability.error_log import MOST_KINDS, ErrorLog
from starlette_channels.pubsub.hub import Hub
from starlette_channels.testing import Client, HandshakeRefused, connect
from starlette_channels.wire.messages import Gap
from tests.conftest import until
from tests.support.effort import IS_FULL
from tests.support.mishap_lab import Lab
from tests.support.polling import Poller

ROOT = Path(starlette_channels.__file__).parent

AT_START_UP = {
    ("channels.definition", "warning"),  # once for a handler of an event that never comes
    ("channels.checks", "warning"),  # once for a pattern that never matches
    ("endpoint", "warning"),  # once, if the lifespan is missing
    ("server.readiness", "warning"),  # once, if something is missing when the start is over
    ("pubsub.engines.redis", "warning"),  # for an option in an address, when it is read
    ("server.workers", "critical"),  # several workers without a broker: this process ends
    ("transports.asgi_websocket", "warning"),  # once, when daphne is the server
    ("server.drain", "warning"),  # once, when the server stops
}
"""What no client causes: lines of the start and of the end of a process."""

AROUND = {"observability.error_log", "connection.connection", "channels.channel_log", "server.drain"}
"""Where a level is a variable: the throttle, and lines about clients that are let in, which can be switched off."""

LOUD = {"warning", "warn", "error", "exception", "critical", "fatal"}

NO_LOGGERS = {"self", "attempt", "task", "waiter"}
"""Objects with an attribute of such a name that does not log."""

PRINTS = {"print", "print_exc", "print_exception", "stderr", "stdout", *LOUD}
"""Names that write past `logging`, and functions of `logging` itself."""

COMMAND_LINE = "cli"
"""A module that may print."""

TIMES = 60 if IS_FULL else 25
BURST = 20
"""Lines of one kind at once; then there is one every ten seconds."""

pytestmark = pytest.mark.one_loop


def most_lines(began: float) -> int:
    """How many lines of one kind there may be since then."""
    return BURST + 1 + int((time.monotonic() - began) / 10)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_no_module_logs_around_the_throttle() -> None:
    loud: list[tuple[str, str]] = []
    levelled: set[str] = set()
    modules = sorted(ROOT.rglob("*.py"))
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(value=of, attr=name) if ast.unparse(of) not in NO_LOGGERS:
                    if name in LOUD:
                        loud.append((module_of(path), name))
                    if name == "log":
                        levelled.add(module_of(path))
                    assert name not in PRINTS - LOUD, f"{path}:{node.lineno}"
                case ast.Name(id=name) if module_of(path) != COMMAND_LINE:
                    assert name not in PRINTS - {"error"}, f"{path}:{node.lineno}"
                case ast.ImportFrom(module="logging" | "warnings" | "sys" | "traceback", names=names):
                    assert not {one.name for one in names} & PRINTS, f"{path}:{node.lineno}"
                case _:
                    pass
    packages = pkgutil.walk_packages(starlette_channels.__path__)
    assert {module_of(path) for path in modules if path.stem != "__init__"} >= {
        one.name for one in packages if not one.ispkg
    }
    assert sorted(loud) == sorted(AT_START_UP), "each of them at one place"
    assert levelled == AROUND


def test_there_is_one_throttle() -> None:
    users = [path for path in ROOT.rglob("*.py") if "Meter(LINES)" in path.read_text(encoding="utf-8")]
    assert [module_of(path) for path in users] == ["observability.error_log"]


async def say(client: Client, event: str, payload: Any = None) -> None:
    """Join anew, and send an event."""
    client.send("1", "1", "lab:a", "phx_join", {})
    client.send("1", None, "lab:a", event, {} if payload is None else payload)
    await client.reply("1")


async def come_and_go(client: Client, topic: str, payload: Any) -> None:
    await (await client.join(topic, payload)).leave()


async def refused(lab: Lab, user: str) -> None:
    with pytest.raises(HandshakeRefused):
        async with connect(lab.channels, user=user):
            pass


async def break_the_serializer(lab: Lab) -> None:
    async with connect(lab.channels) as client:
        client.send_frame("bug")
        await client.closed()


async def be_silent(lab: Lab) -> None:
    async with connect(lab.channels) as client:
        await client.closed()


async def stay_away(lab: Lab) -> None:
    before = lab.counts.get("session_expired", 0)
    await Poller(lab.channels).open()
    await until(lambda: lab.counts.get("session_expired", 0) > before)


async def post_nonsense(lab: Lab) -> None:
    poller = await Poller(lab.channels).open()
    assert (await poller.request("POST", b"nonsense")()).status == 400


async def refresh(client: Client, how: str) -> None:
    client.send(None, "3", "phoenix", "refresh", {"how": how})
    await client.reply("3")


async def ask(client: Client, payload: Any) -> None:
    client.send("1", "1", "lab:a", "phx_join", payload)
    await client.reply("1")


async def run_out_of_time(lab: Lab) -> None:
    before = lab.counts.get("handler_timeout", 0)
    async with connect(lab.channels) as client:
        (await client.join("lab:a")).send("wait")
        await until(lambda: lab.counts.get("handler_timeout", 0) > before)


async def track(lab: Lab, client: Client) -> None:
    before = lab.counts.get("fetch_failed", 0)
    joined = await client.join("lab:a")
    joined.send("track", {"key": "me"})
    await until(lambda: lab.counts.get("fetch_failed", 0) > before)
    await joined.leave()
    await until(lambda: lab.counts.get("fetch_failed", 0) > before + 1)


async def relay(client: Client, event: str, payload: Any) -> None:
    await say(client, "relay", {"event": event, "payload": payload})


async def go_beyond(lab: Lab, code: str, send: Callable[[], Awaitable[object]]) -> None:
    """Send until the rate is used up and one more was refused."""
    before = lab.counts.get(code, 0)
    while lab.counts.get(code, 0) == before:
        await send()


async def say_nowhere(client: Client) -> None:
    client.send(None, "1", "nowhere", "event", {})
    await client.reply("1")


async def join_another(client: Client) -> None:
    await ask(client, {})
    client.send("2", "2", "lab:b", "phx_join", {})
    await client.reply("2")


async def break_the_wire(lab: Lab, frame: str) -> None:
    async with connect(lab.channels) as client:
        client.send_frame(frame)
        await client.closed()


async def be_turned_away(lab: Lab, *, vsn: str = "2.0.0", **headers: str) -> None:
    with pytest.raises(HandshakeRefused):
        async with connect(lab.channels, vsn=vsn, headers=headers):
            pass


async def poll_from_elsewhere(lab: Lab) -> None:
    answer = await Poller(lab.channels).request("GET", sec_fetch_site="cross-site")()
    assert answer.json["status"] == 403


async def post_too_many_lines(lab: Lab) -> None:
    poller = await Poller(lab.channels).open()
    assert await poller.post(*[[None, "1", "phoenix", "heartbeat", {}]] * 4) == 200


async def go_on_beyond_the_rates(lab: Lab) -> None:
    async with connect(lab.channels) as client:
        for _ in range(10):
            client.send(None, "1", "nowhere", "event", {})
        assert await client.closed() == 1008


Deed = Callable[[Lab, Client], Awaitable[object]]

DEEDS: dict[str, tuple[str, int, Deed]] = {
    "a handler that raises": ("channel_crashed", 1, lambda lab, client: say(client, "crash")),
    "a child that raises": ("channel_crashed", 1, lambda lab, client: say(client, "child")),
    "a join that raises": ("join_crashed", 1, lambda lab, client: ask(client, {"crash": 1})),
    "a join that is refused": ("join_refused", 1, lambda lab, client: ask(client, {"refuse": True})),
    "a refusal that cannot be sent": ("join_refused", 1, lambda lab, client: ask(client, {"refuse": 1})),
    "a payload that does not fit": ("invalid_payload", 1, lambda lab, client: ask(client, [])),
    "a connect that raises": ("connect_crashed", 1, lambda lab, client: refused(lab, "crash")),
    "a connect that refuses": ("connect_refused", 1, lambda lab, client: refused(lab, "refused")),
    "a terminate that raises": ("end_failed", 1, lambda lab, client: come_and_go(client, "lab:trap", {})),
    "a cleanup that raises": ("end_failed", 1, lambda lab, client: come_and_go(client, "lab:a", {"cleanup": 1})),
    "a refresh that raises": ("refresh_crashed", 1, lambda lab, client: refresh(client, "crash")),
    "a refresh that is refused": ("refresh_refused", 1, lambda lab, client: refresh(client, "no")),
    "a mailbox that is full": ("mailbox_overflow", 1, lambda lab, client: say(client, "overflow")),
    "a message without a handler": ("unmatched_info", 1, lambda lab, client: say(client, "info")),
    "an event without a handler": ("unmatched_event", 1, lambda lab, client: say(client, "nonsense")),
    "a broadcast that does not fit": (
        "inexpressible_broadcast",
        1,
        lambda lab, client: relay(client, "intercepted", {"no": "int"}),
    ),
    "a broadcast that no wire has": ("inexpressible_broadcast", 1, lambda lab, client: relay(client, "news", [1])),
    "a delivery that raises": ("delivery_failed", 1, lambda lab, client: relay(client, "bug", {})),
    "a serializer that raises": ("serializer_failed", 1, lambda lab, client: break_the_serializer(lab)),
    "a handler that takes too long": ("handler_timeout", 1, lambda lab, client: run_out_of_time(lab)),
    "a join that takes too long": ("join_timeout", 1, lambda lab, client: ask(client, {"wait": 1})),
    "a silent client": ("idle_timeout", 1, lambda lab, client: be_silent(lab)),
    "a poller that stays away": ("session_expired", 1, lambda lab, client: stay_away(lab)),
    "a malformed body": ("malformed_message", 1, lambda lab, client: post_nonsense(lab)),
    "a fetch that raises": ("fetch_failed", 2, lambda lab, client: track(lab, client)),
    "a topic without a channel": ("unmatched_topic", 1, lambda lab, client: say_nowhere(client)),
    "more channels than may be": ("too_many_channels", 1, lambda lab, client: join_another(client)),
    "messages beyond the rate": (
        "too_many_messages",
        1,
        lambda lab, client: go_beyond(lab, "too_many_messages", lambda: say_nowhere(client)),
    ),
    "joins beyond the rate": (
        "too_many_joins",
        1,
        lambda lab, client: go_beyond(lab, "too_many_joins", lambda: ask(client, {})),
    ),
    "messages far beyond the rate": ("flooding", 1, lambda lab, client: go_on_beyond_the_rates(lab)),
    "a malformed frame": ("malformed_message", 1, lambda lab, client: break_the_wire(lab, "{nope")),
    "a message that is too big": ("message_too_big", 1, lambda lab, client: break_the_wire(lab, "x" * 1_001)),
    "a page from elsewhere": (
        "origin_refused",
        1,
        lambda lab, client: be_turned_away(lab, origin="https://elsewhere.example"),
    ),
    "a page from elsewhere that polls": ("origin_refused", 1, lambda lab, client: poll_from_elsewhere(lab)),
    "a version that nobody speaks": ("connect_refused", 1, lambda lab, client: be_turned_away(lab, vsn="9.0.0")),
    "more connections than may be": ("too_many_connections", 1, lambda lab, client: be_turned_away(lab)),
    "a batch of too many lines": ("batch_too_long", 1, lambda lab, client: post_too_many_lines(lab)),
}
"""What a client does, what it is counted as, and how often each time."""

LIMITS: dict[str, dict[str, Any]] = {
    "a handler that takes too long": {"handler_seconds": 0.01},
    "a join that takes too long": {"handler_seconds": 0.01},
    "a silent client": {"idle_seconds": 0.01},
    "a poller that stays away": {"window_seconds": 0.01},
    "more channels than may be": {"channels": 1},
    "messages beyond the rate": {"message_rate": Rate(0.001, burst=1)},
    "joins beyond the rate": {"join_rate": Rate(0.001, burst=1)},
    "messages far beyond the rate": {"message_rate": Rate(0.001, burst=1), "refusal_rate": Rate(0.001, burst=1)},
    "a message that is too big": {"message_bytes": 1_000},
    "more connections than may be": {"connections": 1},
}


def code_in(line: logging.LogRecord, lab: Lab) -> str | None:
    """The code with which a line begins, if it begins with one."""
    first = next(iter(line.args if isinstance(line.args, tuple) else ()), None)
    return first if isinstance(first, str) and first in lab.counts else None


@pytest.mark.anyio
@pytest.mark.parametrize("deed", DEEDS)
async def test_what_a_client_does_again_and_again_is_counted_each_time_and_logged_a_few_times(
    deed: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "starlette_channels")
    code, each, do = DEEDS[deed]
    lab = Lab(**LIMITS.get(deed, {}))
    began = time.monotonic()
    async with connect(lab.channels) as client:
        for times in range(1, TIMES + 1):
            await do(lab, client)
            await until(lambda times=times: lab.counts.get(code, 0) >= times * each)
    assert lab.counts[code] == TIMES * each + (deed == "a silent client")  # the one that is connected all the time
    plain = ("Connected", "Disconnected")
    lines = [one for one in caplog.records if not one.message.startswith(plain) and ": joined," not in one.message]
    kinds = Counter((one.msg.partition(" (and %d")[0], one.exc_info is None, code_in(one, lab)) for one in lines)
    assert kinds
    assert max(kinds.values()) <= most_lines(began)
    assert len(lines) <= 3 * most_lines(began)


@pytest.mark.anyio
async def test_a_handler_that_crashes_all_the_time_does_not_hide_the_first_tracebacks_of_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab, began = Lab(), time.monotonic()
    async with connect(lab.channels) as client:
        for _ in range(TIMES):
            await say(client, "crash")
        await say(client, "crash_too")
        await say(client, "child")
    assert caplog.text.count("ZeroDivisionError: in a handler") <= most_lines(began)
    assert caplog.text.count("ZeroDivisionError: in another handler") == 1
    assert caplog.text.count("ZeroDivisionError: in a child") == 1


def test_the_next_traceback_says_how_many_there_were_not(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    error_log = ErrorLog(Counter(), lambda: now)
    logger = logging.getLogger("starlette_channels.channel")
    for _ in range(TIMES):
        error_log.note("channel_crashed", logger, "ended", cause=raised("one"))
    now = 10.0
    error_log.note("channel_crashed", logger, "ended", cause=raised("one"))
    assert len(caplog.records) == 21
    assert caplog.records[-1].message == f"ended (and {TIMES - 20} like it that were not logged)"
    assert caplog.records[-1].exc_info is not None


def raised(name: str) -> Exception:
    """An exception out of a function of this name, as an application might make them by the thousand."""
    names: dict[str, Any] = {"__name__": "application"}
    exec(f"def {name}():\n    raise ValueError", names)
    try:
        names[name]()
    except ValueError as error:
        frames = error.__traceback__
        return error.with_traceback(None if frames is None else frames.tb_next)
    raise AssertionError


def test_however_many_functions_raise_lines_and_memory_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    error_log = ErrorLog(counts, lambda: 0.0)
    logger = logging.getLogger("starlette_channels.channel")
    for number in range(2 * MOST_KINDS):
        error_log.note("channel_crashed", logger, "ended", cause=raised(f"function_{number}"))
    assert counts == {"channel_crashed": 2 * MOST_KINDS}
    assert len(caplog.records) == MOST_KINDS + 20


@pytest.mark.anyio
async def test_what_is_not_logged_is_not_formatted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "starlette_channels")
    lab, began = Lab(), time.monotonic()
    parameters = lab.channels._service.parameters  # pyright: ignore[reportPrivateUsage]
    calls = 0

    def show(body: object) -> str:
        nonlocal calls
        calls += 1
        return "shown"

    monkeypatch.setattr(parameters, "show", show)
    async with connect(lab.channels) as client:
        for _ in range(10 * TIMES):
            await ask(client, {"refuse": True})
    assert 1 <= calls <= 4 * most_lines(began)  # each of pytest's handlers formats a line anew


@pytest.mark.anyio
async def test_gaps_by_the_thousand_whose_handling_fails_are_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    hub = Hub(anyio.lowlevel.current_token().native_token, ErrorLog(counts))

    class Deaf:
        def deliver(self, publication: object) -> None:
            raise ZeroDivisionError

        def miss(self, gap: Gap) -> None:
            raise ZeroDivisionError

    hub.subscribe("room:a", Deaf())
    for _ in range(TIMES):
        hub.miss(Gap("room:a", 1, "somebody"))
    assert counts == {"delivery_failed": TIMES}
    assert len(caplog.records) == 20
