"""Real ASGI servers, run as processes of their own, that tests can stop, kill and start again on the same port."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import HOST, free_port

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Kind:
    """A way to serve an application: a name for test ids, and the command line of a Python module."""

    name: str
    command: str

    def __str__(self) -> str:
        return self.name


def uvicorn(ws: str, *options: str, name: str = "") -> Kind:
    """Uvicorn with one of its websocket implementations, or ours."""
    common = f"uvicorn {{app}} --host {HOST} --port {{port}} --no-access-log --ws {ws}"
    return Kind(f"uvicorn-{name or ws}", " ".join([common, *options]))


def hypercorn(worker: str) -> Kind:
    """Hypercorn with its asyncio or trio worker, in one process (`-w 0`), so that signals reach the worker itself."""
    return Kind(
        f"hypercorn-{worker}", f"hypercorn {{app}} --bind {HOST}:{{port}} -k {worker} -w 0 --graceful-timeout 1"
    )


UVICORN = uvicorn("websockets-sansio")
UVICORN_WSPROTO = uvicorn("wsproto")
FAST_LANE = uvicorn("starlette_channels.transports.uvicorn:FastLane", name="fast-lane")
SLICED_HTTP = "--http starlette_channels.transports.uvicorn:SlicedHTTP"
RUNNER = uvicorn("starlette_channels.transports.uvicorn:FastLane", SLICED_HTTP, name="runner")
"""The fast lane with the HTTP of `starlette-channels run`, which hands upgrade requests to it at once."""
HYPERCORN = hypercorn("asyncio")
HYPERCORN_TRIO = hypercorn("trio")
GRANIAN = Kind("granian", f"granian {{app}} --interface asgi --host {HOST} --port {{port}} --workers-kill-timeout 1")


class ServerFailed(Exception):
    """The server did not come up; the text holds its log."""


class Server:
    """One application served by a process of its own.

    `stop` asks and then insists, `kill` is a power cut; after either, `start` brings the server back on the same port.
    """

    def __init__(self, kind: Kind, app: str, *, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.app = app
        self.log = log
        # The environment of this process goes on to the server, and with it what coverage needs to measure there, too.
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        """Base of the server's HTTP addresses, without a slash at its end."""
        return f"http://{HOST}:{self.port}"

    @property
    def ws(self) -> str:
        """Base of the server's websocket addresses, without a slash at its end."""
        return f"ws://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server (for granian, of the parent of its worker)."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self, *, seconds: float = 30.0) -> None:
        """Start the server and wait until it accepts connections; raise `ServerFailed` if it takes longer."""
        assert self._process is None, "the server is running already"
        command = self.kind.command.format(app=self.app, port=self.port).split()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + seconds
        while not accepts(self.port):
            ended, late = self._process.poll() is not None, time.monotonic() > deadline
            if ended or late:
                self.kill()
                raise ServerFailed(f"{self.kind} {'ended' if ended else 'did not answer'} at its start\n{self.tail()}")
            time.sleep(0.02)
        if self._process.poll() is not None:  # then it was somebody else who answered
            self.kill()
            raise ServerFailed(f"{self.kind} ended at its start\n{self.tail()}")

    def stop(self, *, grace: float = 3.0) -> bool:
        """Ask the server to end (SIGTERM), kill it after `grace` seconds, and tell whether it ended by itself.

        Hypercorn 0.18 waits for ever for websockets that are still open, hence the limit.
        """
        if self._process is None:
            return True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.kill()

    def wait(self, seconds: float) -> None:
        """Wait until the server ends by itself; raise `subprocess.TimeoutExpired` if it does not."""
        assert self._process is not None, "the server is not running"
        self._process.wait(seconds)

    def kill(self) -> None:
        """End the server and its workers at once (SIGKILL), as a crash of the machine would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # a session of its own, so a group of its own
            self._process.wait()
            self._process = None

    def tail(self, lines: int = 60) -> str:
        """The last lines of what the server wrote."""
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join([f"--- {self.kind}, port {self.port}, the end of {self.log.name}:", *text[-lines:]])


@contextlib.contextmanager
def serve(app: str, kind: Kind = UVICORN, *, environment: Mapping[str, str] | None = None) -> Generator[Server]:
    """Serve `app`, given as import string, while the block runs; an exception in it gets the server's log as a note."""
    with tempfile.TemporaryDirectory(prefix="server-") as folder:
        server = Server(kind, app, log=Path(folder, "server.log"), environment=environment)
        server.start()
        try:
            yield server
        except BaseException as error:
            error.add_note(server.tail())
            raise
        finally:
            server.stop()


def accepts(port: int) -> bool:
    """Whether anybody accepts TCP connections on the port."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((HOST, port)) == 0
