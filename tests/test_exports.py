"""What the package promises: its names, documented, typed, and of one version."""

import ast
import importlib.metadata
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import starlette_channels
import starlette_channels.testing as kit

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(starlette_channels.__file__).parent

PROMISED = {
    "Broadcast",
    "Broker",
    "Channel",
    "Channels",
    "ChannelsError",
    "ConnectError",
    "Drain",
    "EndReason",
    "EventError",
    "ExpiredToken",
    "Expiry",
    "Gap",
    "Handshake",
    "InvalidPayload",
    "InvalidToken",
    "JoinError",
    "LaterReply",
    "Limits",
    "LogContext",
    "LogOptions",
    "LongPoll",
    "Payload",
    "Presence",
    "PresenceDiff",
    "PresenceError",
    "PresenceTiming",
    "ProtocolError",
    "PublishError",
    "Publisher",
    "Rate",
    "Reply",
    "Serializer",
    "SerializerError",
    "Socket",
    "Statistics",
    "V1",
    "V2",
    "WhenSlow",
    "channel",
    "latest_by_key",
}
KIT = {
    "Client",
    "ConnectionClosed",
    "HandshakeRefused",
    "ChannelCrashed",
    "JoinRefused",
    "Joined",
    "Received",
    "connect",
}


def test_the_package_exports_what_it_promises_and_nothing_else() -> None:
    assert set(starlette_channels.__all__) == PROMISED
    assert len(starlette_channels.__all__) == len(PROMISED)


def test_there_is_no_public_name_beside_them_but_modules() -> None:
    others = {name for name in vars(starlette_channels) if not name.startswith("_")} - PROMISED
    assert not {name for name in others if not inspect.ismodule(getattr(starlette_channels, name))}


def test_the_test_kit_has_its_names() -> None:
    public = {name for name, value in vars(kit).items() if getattr(value, "__module__", "") == kit.__name__}
    assert {name for name in public if not name.startswith("_")} == KIT


def public() -> Iterator[tuple[str, Any]]:
    """The public names, and the methods and properties that public classes define."""
    modules: list[tuple[ModuleType, set[str]]] = [(starlette_channels, PROMISED), (kit, KIT)]
    for module, names in modules:
        for name in sorted(names):
            value = getattr(module, name)
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                continue  # aliases of types: their text is in the source, see below
            yield name, value
            for attribute, member in vars(value).items() if inspect.isclass(value) else ():
                if attribute.startswith("_"):
                    continue
                if inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod):
                    yield f"{name}.{attribute}", member


PUBLIC = dict(public())


@pytest.mark.parametrize(("name", "value"), list(PUBLIC.items()), ids=list(PUBLIC))
def test_a_public_name_has_a_docstring_of_its_own(name: str, value: Any) -> None:
    text = value.__doc__
    assert text, f"{name} has no docstring"
    assert text.strip()[-1] in ".:`", f"the docstring of {name} is no sentence"
    assert not text.startswith(f"{name}("), f"{name} has only the docstring that was made for it"


@pytest.mark.parametrize("name", sorted(PROMISED | KIT | {"Tokens"}))
def test_a_public_name_is_in_a_table_of_the_api_page_with_its_purpose(name: str) -> None:
    page = (ROOT.parent / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{name}` \| \w.+ \|$", page, re.MULTILINE)
    assert re.search(rf"^\.\. auto\w+:: {name}\b", page, re.MULTILINE)


def documented_assignments(path: Path) -> set[str]:
    """The names in a file, and `Class.name` for fields, whose assignment is followed by a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [("", tree.body), *((f"{node.name}.", node.body) for node in tree.body if isinstance(node, ast.ClassDef))]
    documented: set[str] = set()
    for prefix, body in bodies:
        for node, after in pairwise(body):
            match node, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str())):
                    documented.add(prefix + name)
                case _:
                    pass
    return documented


@pytest.mark.parametrize(("module", "name"), [("channels/socket", "EndReason"), ("wire/messages", "Payload")])
def test_a_public_alias_has_a_docstring(module: str, name: str) -> None:
    assert name in documented_assignments(ROOT / f"{module}.py")


def fields_of(name: str) -> set[str]:
    """The public fields of what has that name, if it is a class that declares some."""
    value = getattr(starlette_channels, name)
    declared = inspect.get_annotations(value) if inspect.isclass(value) else ()
    return {f"{name}.{field}" for field in declared if not field.startswith("_")}


WITH_FIELDS = sorted(filter(fields_of, PROMISED - {"V1", "V2"}))  # `Serializer` documents what they have


def test_the_classes_with_fields_are_found() -> None:
    assert set(WITH_FIELDS) >= {"Drain", "Limits", "LogOptions", "LongPoll", "PresenceTiming", "Socket", "Statistics"}


@pytest.mark.parametrize("name", WITH_FIELDS)
def test_every_public_field_has_a_docstring(name: str) -> None:
    file = inspect.getfile(getattr(starlette_channels, name))
    assert fields_of(name) <= documented_assignments(Path(file))


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()


def test_there_is_one_version() -> None:
    version = starlette_channels.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", version)
    assert importlib.metadata.version("starlette-channels") == version, "install the package anew: its version is stale"
