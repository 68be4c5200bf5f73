"""The real `phoenix` client from npm, and our `channels.js` in its place, under node against a real server."""

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.clients import node
from tests.support.servers import ROOT, Server, serve

CHANNELS_JS = ROOT / "starlette_channels" / "static" / "channels.js"
MODULES = {"phoenix": "phoenix", "channels.js": CHANNELS_JS.as_uri()}

# Over long-polling there are no heartbeats, bytes go one way only, and the end has another code.
NOT_POLLING = {"heartbeats", "binary", "kicked"}


def scenarios(file: str) -> list[str]:
    """The names of what a file of scenarios exports."""
    return re.findall(r"(?m)^export (?:async function|const) (\w+)", (node.HERE / file).read_text())


CASES = [
    *((module, "WebSocket", name) for module in MODULES for name in scenarios("scenarios.mjs")),
    *(("phoenix", "LongPoll", name) for name in scenarios("scenarios.mjs") if name not in NOT_POLLING),
    *(("phoenix", "LongPoll", name) for name in scenarios("longpoll.mjs")),
]


@pytest.fixture(scope="session", autouse=True)
def packages() -> None:
    node.install()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.clients.app:app") as server:
        yield server


def restarted(server: Server, *, kill: bool) -> None:
    if kill:
        server.kill()
    else:
        server.stop()
    server.start()


@pytest.mark.parametrize(("module", "transport", "scenario"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_client_cannot_tell_the_server_from_phoenix(
    module: str, transport: str, scenario: str, server: Server
) -> None:
    wishes = {
        "kill the server": server.kill,
        "start the server": server.start,
        "kill the server and start it again": lambda: restarted(server, kill=True),
        "stop the server and start it again": lambda: restarted(server, kill=False),
    }
    try:
        node.run("run.mjs", MODULES[module], f"{server.ws}/socket", transport, scenario, answer=wishes)
    except AssertionError as error:
        error.add_note(server.tail())
        server.kill()  # the next scenario gets a server in a state that is known
        server.start()
        raise


def test_the_unit_tests_of_channels_js_pass() -> None:
    tests = sorted(str(path) for path in (node.HERE / "channels_js").glob("*.test.*js"))
    assert tests
    command = [node.NODE, "--test", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_of_channels_js_are_those_of_its_code() -> None:
    types = node.HERE / "channels_js" / "types.ts"
    tsc = node.MODULES / "typescript" / "bin" / "tsc"
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck", "false"]
    command = [node.NODE, tsc, *options, types]
    done = subprocess.run(command, cwd=node.HERE, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lock_file_of_the_clients_names_no_registry() -> None:
    lock = node.LOCK.read_text()
    assert '"integrity"' in lock
    assert "resolved" not in lock
    assert "://" not in lock
