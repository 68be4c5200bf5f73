"""`python -m starlette_channels run`: uvicorn, with the settings that suit channels and all of its own options."""

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import anyio
import click
import httpx
import pytest
import uvicorn

from starlette_channels.cli import SETTINGS, main
from tests.fuzzing.wire import SECONDS, Address, Wire, opened, text
from tests.integration.server import test_servers
from tests.integration.server.test_servers import (
    answers,
    are_stopped,
    come_back,
    the_story,
    the_story_ends,
    with_option,
)
from tests.support.ports import HOST, free_port
from tests.support.servers import ROOT, Kind, Server, serve

certificate = test_servers.certificate  # the fixture

PATIENT = f"--timeout-worker-healthcheck {SECONDS:.0f}"
"""uvicorn kills a worker that does not answer it for five seconds, and the tests stop one for as long as it takes."""

RUNNER = Kind("runner", f"starlette_channels run {{app}} --host {HOST} --port {{port}}")
PLAIN = Kind("uvicorn", RUNNER.command.replace("starlette_channels run", "uvicorn"))
CHAT, ROOMS = "tests.fuzzing.mounts:mounted", "tests.support.runner_app:app"
ROOM = "/socket/websocket?vsn=2.0.0"
ALONE = ROOM.removeprefix("/socket")
FAST, PORTABLE = "Channels take the fast lane", "Channels are served through receive and send"
APART = "2 workers would share no broker"

run = main.commands["run"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# ---- the chat


@pytest.mark.anyio
async def test_a_chat_takes_the_fast_lane_and_survives_a_restart() -> None:
    with serve(CHAT, RUNNER) as server:
        where = Address(server.port)
        clients = await the_story(where, "/socket")
        assert server.log.read_text().count(f"INFO:     {FAST}\n") == 1
        assert await are_stopped(server, clients) == {1012}
        await come_back(server, where, "/socket")


@pytest.mark.anyio
@pytest.mark.parametrize("option", ["--http h11 --loop asyncio", "--reload --reload-dir docs --workers 2"])
async def test_a_chat_works_with_options_of_uvicorn(option: str) -> None:
    with serve(CHAT, with_option(RUNNER, option)) as server:
        await the_story_ends(Address(server.port), "/socket")
        log = server.log.read_text()
        assert FAST in log
        assert APART not in log


@pytest.mark.anyio
async def test_a_chat_works_over_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    trusting = ssl.create_default_context(cafile=str(cert))
    with serve(CHAT, with_option(RUNNER, f"--ssl-certfile {cert} --ssl-keyfile {key}")) as server:
        await the_story_ends(Address(server.port, tls=trusting), "/socket")
        assert FAST in server.log.read_text()


@pytest.mark.anyio
async def test_an_application_may_come_from_a_factory_elsewhere_and_log_in_its_own_way(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text("from tests.support.runner_app import make\n")
    (tmp_path / "env").write_text("SOME_NAME=some value\n")
    kind = with_option(RUNNER, f"--factory --app-dir {tmp_path} --env-file {tmp_path / 'env'}")
    with serve("elsewhere:make", kind) as server:
        await the_story_ends(Address(server.port), "/socket")
        log = server.log.read_text()
        assert f"the app's own log: {FAST}\n" in log
        assert log.count(FAST) == 1


# ---- several workers


async def process_behind(client: Wire) -> int:
    await client.join("room:1")
    return (await client.call("1", "2", "room:1", "process"))["response"]["id"]


@contextlib.asynccontextmanager
async def clients_of_two_workers(server: Server) -> AsyncGenerator[tuple[Wire, Wire]]:
    async with opened(Address(server.port), ALONE) as ann:
        first = await process_behind(ann)
        os.kill(first, signal.SIGSTOP)  # so the next client has to be the other worker's
        try:
            async with opened(Address(server.port), ALONE) as bob:
                second = await process_behind(bob)
                os.kill(first, signal.SIGCONT)
                assert first != second
                yield ann, bob
        finally:
            os.kill(first, signal.SIGCONT)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("command", "environment"),
    [(f"{RUNNER.command} --workers 2 {PATIENT}", {}), (f"{PLAIN.command} {PATIENT}", {"WEB_CONCURRENCY": "2"})],
    ids=["runner", "plain uvicorn"],
)
async def test_clients_of_two_workers_hear_each_other(command: str, environment: dict[str, str]) -> None:
    kind = Kind("two workers", f"{command} --factory")
    with serve("tests.support.workers_app:together", kind, environment=environment) as server:
        async with clients_of_two_workers(server) as (ann, bob):
            while True:  # joins do not wait for the way to the other worker
                ann.send(text("1", None, "room:1", "tell"))
                assert json.loads(await ann.receive())[3:] == ["told", {}]
                with anyio.move_on_after(0.1):
                    assert json.loads(await bob.receive())[3:] == ["told", {}]
                    break


@pytest.mark.anyio
async def test_workers_that_need_not_hear_each_other_may_be_apart() -> None:
    kind = Kind("two workers", f"{PLAIN.command} --workers 2 {PATIENT} --factory")
    with serve("tests.support.workers_app:apart", kind) as server:
        async with clients_of_two_workers(server) as (ann, _):
            assert (await ann.call("1", "3", "room:1", "process"))["status"] == "ok"
        assert APART not in server.log.read_text()


@pytest.mark.parametrize(
    "command",
    [
        f"{RUNNER.command} --workers 2 --factory",
        "gunicorn {app}() -k uvicorn_worker.UvicornWorker --bind 127.0.0.1:{port} -w 2 --preload",
        "gunicorn {app}() -k uvicorn_worker.UvicornWorker --bind 127.0.0.1:{port} -w 2",
        "hypercorn {app}() --bind 127.0.0.1:{port} -w 2 -k trio",
    ],
    ids=lambda command: command.replace("{", "").replace("}", ""),
)
def test_several_workers_without_a_broker_are_refused_with_the_fix(command: str) -> None:
    program = [sys.executable, "-m", *command.format(app="tests.support.workers_app:alone", port=free_port()).split()]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert APART in done.stderr
    assert 'such as Channels(..., broker="zenoh://"), which needs no server' in done.stderr
    # No traceback of ours: gunicorn has one of its own when the second worker fails while it stops for the first.
    assert not re.search(r'File ".*starlette_channels/(\w+/)*\w+\.py"', done.stderr)


# ---- settings


def settings(command: click.Command, *arguments: str) -> dict[str, Any]:
    """What a command line comes to."""
    return command.make_context("name", [CHAT, *arguments]).params


def test_only_the_settings_that_are_listed_differ_from_those_of_uvicorn() -> None:
    theirs, ours = settings(uvicorn.main), settings(run)
    assert ours.keys() == theirs.keys()
    assert {name: value for name, value in ours.items() if value != theirs[name]} == SETTINGS


def test_each_setting_is_on_the_page_about_deployment_and_in_the_help() -> None:
    page = (ROOT / "docs" / "guides" / "deployment.md").read_text()
    text = run.get_help(run.make_context("name", [CHAT]))
    for name, value in SETTINGS.items():
        option = "--" + name.replace("_", "-")
        assert f"| `{option} {str(value).lower() if value is False else value}` |" in page
        assert f"\n  {option} " in text.partition("Options:")[0]
        assert f"[default:{value}]" in "".join(text.split())


@pytest.mark.parametrize("from_environment", [False, True])
def test_what_the_user_says_wins(from_environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"ws": "wsproto", "http": "h11", "ws_per_message_deflate": True, "backlog": 7}
    assert wanted.keys() == SETTINGS.keys()
    arguments: list[str] = []
    for name, value in wanted.items():
        if from_environment:
            monkeypatch.setenv(f"UVICORN_{name.upper()}", str(value))
        else:
            arguments += ["--" + name.replace("_", "-"), str(value)]
    assert settings(run, *arguments) == settings(uvicorn.main) | wanted


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "ws", "transport"),
    [(PLAIN, SETTINGS["ws"], FAST), (RUNNER, "websockets-sansio", PORTABLE)],
    ids=["plain uvicorn, fast lane", "runner, sansio"],
)
async def test_the_log_says_once_how_channels_are_served_whoever_starts_the_server(
    kind: Kind, ws: str, transport: str, tmp_path: Path
) -> None:
    config = tmp_path / "log.json"
    config.write_text(LOG_CONFIG)
    with serve(ROOMS, with_option(kind, f"--ws {ws} --log-config {config}")) as server:
        for _ in range(2):
            async with opened(Address(server.port), ROOM) as client:
                await client.join("room:1")
        log = server.log.read_text()
        assert log.count(f"starlette_channels.transport: {transport}") == 1
        assert log.count("starlette_channels.transport: Channels") == 1


LOG_CONFIG = """{
    "version": 1,
    "disable_existing_loggers": false,
    "formatters": {"plain": {"format": "%(name)s: %(message)s"}},
    "handlers": {"all": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"level": "INFO", "handlers": ["all"]}
}"""


# ---- the end, and mistakes


@contextlib.contextmanager
def on_a_unix_socket(command: str, path: Path) -> Generator[subprocess.Popen[bytes]]:
    """A server of the chat that listens there."""
    program = [sys.executable, "-m", *command.split(), CHAT, "--uds", str(path)]
    with path.with_suffix(".log").open("w+b") as log:
        process = subprocess.Popen(program, cwd=ROOT, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + SECONDS
            while not answers(path):
                assert process.poll() is None, log.read()
                assert time.monotonic() < deadline, log.read()
                time.sleep(0.02)
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.mark.anyio
@pytest.mark.parametrize("command", ["uvicorn", "starlette_channels run"])
async def test_a_server_on_a_unix_socket_that_is_told_to_stop_ends_as_uvicorn_does(
    command: str, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with on_a_unix_socket(command, path) as process:
        clients = await the_story(Address(unix=str(path)), "/socket")
        process.terminate()
        assert {(await client.closed()).code for client in clients} == {1012}
        for client in clients:
            await client.discard()
        assert await asyncio.to_thread(process.wait, SECONDS) == -signal.SIGTERM


def outcome(*command: str) -> tuple[int, str]:
    """The exit code of a module that ends by itself, and the last line of what it said."""
    program = [sys.executable, "-m", *command]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["nowhere:app"], [CHAT, "--nonsense"]], ids=" ".join)
def test_mistakes_are_answered_as_uvicorn_does(arguments: list[str]) -> None:
    code, said = outcome("starlette_channels", "run", *arguments)
    assert (code, said) == outcome("uvicorn", *arguments)
    assert code != 0


@pytest.mark.anyio
async def test_an_application_without_channels_is_served_without_a_word_about_them() -> None:
    with serve("tests.support.runner_app:plain", RUNNER) as server:
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(server.http)).text == "hello"
        assert "hannels" not in server.log.read_text()


def test_the_command_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="starlette-channels")
    assert script.load() is main
