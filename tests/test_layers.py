"""The layers of the package, read from its files: who imports whom, and what else."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import starlette_channels

ROOT = Path(starlette_channels.__file__).parent
PACKAGE = ROOT.name

LAYERS = [
    {
        "annotations",
        "arguments",
        "assigns",
        "auth_tokens",
        "brokers",
        "brokers.engine",
        "brokers.gaps",
        "brokers.mesh",
        "brokers.names",
        "brokers.number_ranges",
        "brokers.options",
        "brokers.sender_clocks",
        "brokers.worker",
        "callables",
        "close_codes",
        "deadlines",
        "event_names",
        "frames",
        "metrics",
        "params",
        "paths",
        "presence",
        "presence.clocks",
        "slow",
        "topics",
        "transports",
        "transports.early",
        "transports.handshake_log",
        "transports.sessions",
        "transports.sweeper",
        "transports.turns",
        "transports.turnstile",
        "uptime",
        "workers",
    },
    {
        "brokers.addresses",
        "brokers.command_log",
        "brokers.interests",
        "brokers.nats",
        "brokers.zenoh_keys",
        "buckets",
        "commands",
        "drain",
        "exceptions",
        "presence.deltas",
        "presence.timing",
        "transports.closing",
        "transports.intake",
        "transports.suspicion",
    },
    {"adapters", "brokers.zenoh", "limits", "mishaps", "presence.roster", "tokens"},
    {"brokers.reports", "cancellation", "conversions", "encoding", "identities", "presence.state"},
    {"brokers.redis", "messages", "presence.replica", "segments", "tasks"},
    {
        "brokers.envelope",
        "brokers.redis_cluster",
        "brokers.redis_sentinel",
        "confirmations",
        "handshake",
        "log_context",
        "parameters",
        "payloads",
        "presence.desks",
        "presence.metas",
        "presence.wire",
        "protocol",
        "refusals",
        "rejections",
        "serializers",
        "sockets",
        "spawner",
        "testing",
        "transports.batches",
        "transports.outbox",
        "transports.outlet",
        "waker",
    },
    {
        "brokers.outbox",
        "brokers.receiver",
        "handlers",
        "headers",
        "hub",
        "logs",
        "origins",
        "transports.bodies",
        "transports.silence",
        "watch",
    },
    {"brokers.life", "channels", "expiry", "inbox", "signals", "transport", "transports.pulse"},
    {"actors", "brokers.relay", "definitions"},
    {"exchange", "publisher"},
    {"broker", "cli"},
    {"__main__", "links", "presence.publisher", "presence.tracked", "service"},
    {"arrivals", "drainer", "pages", "presence.replication", "senders", "speakers"},
    {"members", "presence.presence"},
    {"endings", "readiness"},
    {"connection"},
    {"admission", "transports.lane", "transports.longpoll", "transports.websocket"},
    {"polling", "transports.handshaking"},
    {"endpoint", "transports.uvicorn"},
    {"__init__"},
]
"""A module imports from the layers above it only, never from its own and never from below."""

PURE = {
    *(
        "adapters",
        "annotations",
        "auth_tokens",
        "conversions",
        "brokers.envelope",
        "brokers.gaps",
        "brokers.command_log",
        "brokers.names",
        "brokers.number_ranges",
        "brokers.sender_clocks",
        "buckets",
        "deadlines",
        "drain",
        "event_names",
        "frames",
        "headers",
        "identities",
    ),
    *("messages", "origins", "parameters", "params", "payloads", "protocol", "refusals", "serializers", "topics"),
    *("presence.clocks", "presence.deltas", "presence.replica", "presence.roster", "presence.state"),
    *("presence.timing", "presence.wire"),
    "transports.batches",
}
"""They know no event loop, no clock and no socket."""

REQUIRED = {"anyio", "msgspec", "starlette"}
"""What is imported at run time, beside the standard library; uvicorn is required for users, not by the code."""

WITH_UVICORN = {
    *(("frames", "websockets"), ("transports.handshaking", "websockets")),
    *(("transports.handshaking", "uvicorn"), ("transports.uvicorn", "uvicorn"), ("cli", "uvicorn"), ("cli", "click")),
}
"""What `uvicorn[standard]`, which is required, brings; only the fast lane and the command line make use of it."""

EXTRAS = {
    ("brokers.nats", "nats"),
    ("brokers.redis", "redis"),
    ("brokers.redis_cluster", "redis"),
    ("brokers.redis_sentinel", "redis"),
    ("brokers.zenoh", "zenoh"),
    ("brokers.zenoh_keys", "zenoh"),
    ("tokens", "itsdangerous"),
}
"""What an extra of the package brings, for a module that is imported only by those who want it."""

IF_THERE = {("cancellation", "trio"), ("tasks", "trio"), ("waker", "trio"), ("transports.turns", "trio")}
"""What a module imports in a function, when it is certain to be installed."""

MAX_LINES = 600


class Import(NamedTuple):
    """One import in a file: of what, where, whether only for Pythons before 3.13, and whether in a function."""

    name: str
    line: int
    backport: bool
    deferred: bool


def layer(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if module in layer)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts) if parts[-1] != "__init__" or len(parts) == 1 else ".".join(parts[:-1])


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path) -> Iterator[Import]:
    """All imports of a file, those in functions and those for type checkers included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and is_version_check(node)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    old = {id(node) for check in checks for branch in check.orelse for node in ast.walk(branch)}
    deferred = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        for name in imported_names(node):
            yield Import(name, getattr(node, "lineno", 0), id(node) in old, id(node) in deferred)


def imported_names(node: ast.AST) -> list[str]:
    """The modules that a node imports, in full; `from package import module` means the module too."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(origin), level=0):
            inner = [f"{origin}.{alias.name}" for alias in node.names]
            return [origin, *(name for name in inner if name.removeprefix(f"{PACKAGE}.") in FILES)]
        case ast.ImportFrom():
            raise AssertionError(f"line {node.lineno}: a relative import")
        case _:
            return []


def is_version_check(node: ast.AST) -> bool:
    """Whether a node is `if sys.version_info >= (3, n)`, with n at most 13; its `else` is for older Pythons."""
    match node:
        case ast.If(
            test=ast.Compare(
                left=ast.Attribute(value=ast.Name(id="sys"), attr="version_info"),
                ops=[ast.GtE()],
                comparators=[ast.Tuple(elts=[ast.Constant(value=3), ast.Constant(value=int(minor))])],
            )
        ):
            return minor <= 13
        case _:
            return False


def test_every_module_has_its_place_and_every_place_its_module() -> None:
    placed = [module for layer in LAYERS for module in layer]
    assert sorted(placed) == sorted(FILES)


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_from_the_layers_above_it(module: str) -> None:
    for found in imports(FILES[module]):
        where = f"{FILES[module].name}:{found.line} imports {found.name}"
        assert found.name != PACKAGE, f"{where}: import from the module that defines it"
        if found.name.startswith(f"{PACKAGE}."):
            assert layer(found.name.removeprefix(f"{PACKAGE}.")) < layer(module), f"{where}, which is not above it"


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_what_the_package_requires(module: str) -> None:
    for found in imports(FILES[module]):
        top = found.name.partition(".")[0]
        if top == PACKAGE or top in sys.stdlib_module_names:
            continue
        where = f"{FILES[module].name}:{found.line} imports {found.name}"
        if top == "typing_extensions":
            assert found.backport, f"{where}, but not in the `else` of `if sys.version_info >= (3, 13)` or earlier"
        elif (module, top) in IF_THERE:
            assert found.deferred, f"{where}, but not in a function"
        else:
            assert top in REQUIRED or (module, top) in WITH_UVICORN | EXTRAS, f"{where}, which is no dependency"


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_knows_no_event_loop_no_clock_and_no_socket(module: str) -> None:
    tops = {found.name.partition(".")[0] for found in imports(FILES[module])}
    assert not tops & {"anyio", "asyncio", "trio", "time", "datetime", "socket", "threading", "starlette", "random"}
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))


@pytest.mark.parametrize("module", FILES)
def test_no_file_is_too_long(module: str) -> None:
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES
