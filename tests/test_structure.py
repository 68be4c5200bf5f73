"""The structure of the package, read from its files: which folder imports which, and what else."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import starlette_channels

ROOT = Path(starlette_channels.__file__).parent
PACKAGE = ROOT.name
TESTS = Path(__file__).parent

FOLDERS: dict[str, set[str]] = {
    "base": set(),
    "wire": {"base"},
    "observability": {"base", "wire"},
    "runtime": {"base", "observability"},
    "pubsub": {"base", "wire", "observability", "runtime"},
    "channels": {"base", "wire", "observability", "runtime", "pubsub"},
    "connection": {"base", "wire", "observability", "runtime", "pubsub", "channels"},
    "presence": {"base", "wire", "observability", "runtime", "pubsub", "channels"},
    "handshake": {"base", "wire", "observability", "runtime", "pubsub", "channels", "connection"},
    "transports": {"base", "wire", "observability", "runtime", "pubsub", "channels", "connection", "handshake"},
    "server": {"base", "runtime", "pubsub", "connection", "presence", "handshake", "transports"},
}
"""What the modules of a folder may import beside those of their own. Modules that are in none may import anything."""

BASE = {"arguments", "close_codes", "exceptions", "limits", "rates"}
"""The modules beside the folders that all others may import."""

MAX_FILES_AT_THE_ROOT = 12

PURE = {
    "connection.identities",
    "connection.refusals",
    "handshake.auth_token",
    "handshake.origins",
    "observability.redaction",
    "presence.codec",
    "presence.crdt.clock",
    "presence.crdt.delta",
    "presence.crdt.index",
    "presence.crdt.state",
    "presence.timing",
    "presence.tracker",
    "pubsub.relay.channel_names",
    "pubsub.relay.command_log",
    "pubsub.relay.envelope",
    "pubsub.relay.number_ranges",
    "pubsub.relay.sender_clocks",
    "pubsub.relay.sequence",
    "rates",
    "runtime.deadlines",
    "transports.longpoll.batches",
    "transports.uvicorn_lane.frames",
    "wire.annotations",
    "wire.conversions",
    "wire.event_names",
    "wire.headers",
    "wire.messages",
    "wire.payloads",
    "wire.protocol",
    "wire.pydantic_adapters",
    "wire.query",
    "wire.serializers",
    "wire.topics",
}
"""They know no event loop, no clock and no socket."""

REQUIRED = {"anyio", "msgspec", "starlette"}
"""What is imported at run time, beside the standard library; uvicorn is required for users, not by the code."""

WITH_UVICORN = {
    *(("transports.uvicorn_lane.frames", "websockets"), ("transports.uvicorn_lane.upgrade_request", "websockets")),
    *(
        ("transports.uvicorn_lane.handshake", "uvicorn"),
        ("transports.uvicorn_lane.http_slices", "uvicorn"),
        ("transports.uvicorn_lane.uvicorn_websocket", "uvicorn"),
        ("cli", "uvicorn"),
        ("cli", "click"),
    ),
}
"""What `uvicorn[standard]`, which is required, brings; only the fast lane and the command line make use of it."""

EXTRAS = {
    ("pubsub.engines.nats", "nats"),
    ("pubsub.engines.redis", "redis"),
    ("pubsub.engines.redis_cluster", "redis"),
    ("pubsub.engines.redis_sentinel", "redis"),
    ("pubsub.engines.zenoh", "zenoh"),
    ("pubsub.engines.zenoh_keys", "zenoh"),
    ("tokens", "itsdangerous"),
}
"""What an extra of the package brings, for a module that is imported only by those who want it."""

IF_THERE = {
    ("runtime.cancellation", "trio"),
    ("runtime.tasks", "trio"),
    ("runtime.timers", "trio"),
    ("runtime.turn_budget", "trio"),
}
"""What a module imports in a function, when it is certain to be installed."""

MAX_LINES = 600

PLAIN = {"top", "base", "wire", "runtime", "observability", "pubsub", "channels", "connection"} | {
    *("presence", "handshake", "transports", "server"),
}
"""The folders whose docstrings are checked for riddles; "top" and "base" are the modules beside the folders."""

RIDDLE = re.compile(
    r"(What|Who|Whoever|Whatever|Which|So many|So long) "
    r"|.*\b(nobody|somebody|whoever|say goodbye|in vain|as good as|hang up|lets? go of)\b",
    re.IGNORECASE | re.DOTALL,
)
"""The beginning of a relative clause where a noun belongs, which is the word to search for; and metaphors."""


class Import(NamedTuple):
    """One import in a file: of what, where, whether only for Pythons before 3.13, and whether in a function."""

    name: str
    line: int
    backport: bool
    deferred: bool


def folder(module: str) -> str:
    """The folder that a module belongs to; "top" for those that may import anything."""
    first, _, rest = module.partition(".")
    if rest or first in FOLDERS:
        return first
    return "base" if first in BASE else "top"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts) if parts[-1] != "__init__" or len(parts) == 1 else ".".join(parts[:-1])


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a file."""
    return list(ast.walk(ast.parse(source(path))))


@cache
def imports(path: Path) -> list[Import]:
    """All imports of a file, those in functions and those for type checkers included."""
    checks = [node for node in nodes(path) if isinstance(node, ast.If) and is_version_check(node)]
    old = [branch for check in checks for branch in check.orelse]
    functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        Import(name, node.lineno, is_inside(node, old), is_inside(node, functions))
        for node in nodes(path)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_names(node)
    ]


def is_inside(node: ast.stmt, others: Sequence[ast.stmt]) -> bool:
    return any(one.lineno <= node.lineno <= (one.end_lineno or 0) for one in others)


def imported_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that a node imports, in full; `from package import module` means the module too."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(origin), level=0):
            inner = [f"{origin}.{alias.name}" for alias in node.names]
            return [origin, *(name for name in inner if name.removeprefix(f"{PACKAGE}.") in FILES)]
        case ast.ImportFrom():
            raise AssertionError(f"line {node.lineno}: a relative import")


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


def imports_of_the_package(module: str) -> Iterator[Import]:
    for found in imports(FILES[module]):
        assert found.name != PACKAGE, f"{module}, line {found.line}: import from the module that defines it"
        if found.name.startswith(f"{PACKAGE}."):
            yield found._replace(name=found.name.removeprefix(f"{PACKAGE}."))


def test_a_module_imports_only_from_the_folders_below_its_own() -> None:
    wrong = [
        f"{module}, line {found.line}: {folder(module)} may not import {found.name}"
        for module in FILES
        for found in imports_of_the_package(module)
        if folder(module) != "top" and folder(found.name) not in {folder(module), *FOLDERS[folder(module)]}
    ]
    assert wrong == []


def test_no_two_modules_import_each_other_by_whatever_way() -> None:
    imported = {module: {found.name for found in imports_of_the_package(module)} - {module} for module in FILES}
    TopologicalSorter(imported).prepare()  # raises CycleError, which names them


def test_folders_depend_on_each_other_in_one_direction() -> None:
    TopologicalSorter(FOLDERS).prepare()


def test_the_root_has_few_files() -> None:
    assert len([module for module in FILES if "." not in module and module not in FOLDERS]) <= MAX_FILES_AT_THE_ROOT


def test_no_two_types_have_the_same_name() -> None:
    found = Counter(name for path in FILES.values() for node in nodes(path) for name in type_names(node))
    assert [name for name, number in found.items() if number > 1] == []


def type_names(node: ast.AST) -> list[str]:
    """The type that a node defines: a class, or an alias."""
    match node:
        case ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="TypeAlias")):
            return [name]
        case _:
            return []


def test_engines_are_imported_by_name_from_their_own_folder_only() -> None:
    by_name = {
        (module, ast.unparse(node.args[0]))
        for module, path in FILES.items()
        for node in nodes(path)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
    }
    assert by_name == {("pubsub.engines.url", f"f'{PACKAGE}.pubsub.engines.{{name}}'")}


def test_unit_tests_are_in_folders_of_the_same_names() -> None:
    folders = {path.name for path in TESTS.iterdir() if any(path.glob("test_*.py"))}
    assert folders - {"integration"} <= FOLDERS.keys()


def test_docstrings_of_tests_cite_only_documents_that_are_in_the_repository_or_public() -> None:
    """A file must be there; a part, by its number or sign, must be one of an RFC."""
    documents = [*TESTS.parent.glob("*.md"), *(TESTS.parent / "docs").rglob("*.md"), *TESTS.glob("conformance/*.md")]
    here = {path.name for path in documents}
    citation = r"[\w-]+\.md\b|§|\b(?:part|section|chapter) \d|\bissues? (?:#|\d|part)|\binventory\b"
    wrong = [
        f"{path.relative_to(TESTS)}: {cited}"
        for path in TESTS.rglob("*.py")
        if re.search(citation, source(path))  # which is quicker than to parse all
        for node in nodes(path)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for text in [ast.get_docstring(node) or ""]
        for cited in re.findall(citation, text)
        if cited not in here and not (cited == "§" and "RFC" in text)
    ]
    assert wrong == []


def test_a_module_imports_only_what_the_package_requires() -> None:
    wrong = [
        f"{path.name}:{found.line} imports {found.name}: {why}"
        for module, path in FILES.items()
        for found in imports(path)
        for why in what_is_wrong_with(module, found)
    ]
    assert wrong == []


def what_is_wrong_with(module: str, found: Import) -> list[str]:
    """Why a module may not import something from outside, if it may not."""
    top = found.name.partition(".")[0]
    if top == PACKAGE or top in sys.stdlib_module_names:
        return []
    if top == "typing_extensions":
        return [] if found.backport else ["only in the `else` of `if sys.version_info >= (3, 13)` or earlier"]
    if (module, top) in IF_THERE:
        return [] if found.deferred else ["only in a function"]
    return [] if top in REQUIRED or (module, top) in WITH_UVICORN | EXTRAS else ["it is no dependency"]


def test_a_pure_module_knows_no_event_loop_no_clock_and_no_socket() -> None:
    outside = {"anyio", "asyncio", "trio", "time", "datetime", "socket", "threading", "starlette", "random"}
    for module in sorted(PURE):
        assert not {found.name.partition(".")[0] for found in imports(FILES[module])} & outside, module
        waits = [node for node in nodes(FILES[module]) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
        assert waits == [], module


def test_no_file_is_too_long() -> None:
    lines = {module: len(source(path).splitlines()) for module, path in FILES.items()}
    assert {module: number for module, number in lines.items() if number > MAX_LINES} == {}


def test_docstrings_begin_with_a_noun_or_a_verb_and_have_no_riddles() -> None:
    found = [
        f"{module}, line {node.lineno}: {node.value.value.strip()}"
        for module in FILES
        if folder(module) in PLAIN
        for node in nodes(FILES[module])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if RIDDLE.match(node.value.value.strip())
    ]
    assert found == []
