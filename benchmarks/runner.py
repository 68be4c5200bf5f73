"""Starts servers and runs loads against them, one at a time: server on one core, load on another."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compiler import ROOT, compiled
from benchmarks.loads import Load, Measured, NoReport, Timing, parse
from benchmarks.machine import cores, take_precedence
from benchmarks.results import Sample
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.servers import FLOOR, HOST, Server


class ServerFailed(Exception):
    """The server did not come up; the text is the end of its log."""


@dataclass(frozen=True)
class Running:
    """A server that accepts connections."""

    server: Server
    pid: int
    port: int
    log: Path

    def tail(self) -> str:
        """The last lines of what it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


@contextlib.contextmanager
def serve(server: Server, python: str) -> Generator[Running]:
    """Run the server on its core while the block runs; raises `ServerFailed`."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        log = Path(folder, "server.log")
        with log.open("wb") as written:
            process = subprocess.Popen(
                server.command(python, port),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,
            )
        os.sched_setaffinity(process.pid, {cores()[0]})
        take_precedence(process.pid)
        running = Running(server, process.pid, port, log)
        try:
            wait_until_it_accepts(running, process)
            yield running
        finally:
            # There is nothing to be said to clients that are gone: killing spares the time that a farewell takes.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_it_accepts(running: Running, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    """Return when the server accepts connections; raise `ServerFailed` if it ends or takes too long."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex((HOST, running.port)) == 0:
                return
        time.sleep(0.02)  # a server gives no sign but its open port
    raise ServerFailed(f"{running.server.name} did not start\n{running.tail()}")


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def command(load: Load, running: Running, timing: Timing) -> list[str]:
    """The load generator's command line."""
    wire = running.server.wire
    address = f"ws://{HOST}:{running.port}{wire.path.replace('{topic}', load.topic)}"
    where = ["--url", address, "--server-pid", str(running.pid), "--cpu", str(cores()[1])]
    return [str(compiled("wsload")), *where, *load.options(wire, timing)]


def apply(load: Load, running: Running, timing: Timing) -> Measured:
    """Put a load on a server and return the report; raises `NoReport`."""
    try:
        done = subprocess.run(
            command(load, running, timing), stdout=subprocess.PIPE, text=True, timeout=timing.bound, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoReport(f"no report after {timing.bound:.0f} seconds") from None
    return parse(done.stdout)


@contextlib.contextmanager
def kept_busy(load: Load, running: Running, timing: Timing) -> Generator[list[Measured]]:
    """Keep a load on a server while the block runs; its report is in the list afterwards.

    It yields its core to the load that is measured.
    """
    longer = Timing(warmup=0, window=timing.warmup + timing.window + 3)
    reports: list[Measured] = []
    with subprocess.Popen(["nice", *command(load, running, longer)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()  # comes when everybody has joined
            yield reports
            rest, _ = process.communicate(timeout=longer.bound)
            reports.append(parse(first + rest))
        except subprocess.TimeoutExpired:
            raise NoReport(f"no report after {longer.bound:.0f} seconds") from None
        finally:
            process.kill()


def measure(scenario: Scenario, server: Server, python: str, timing: Timing) -> Sample:
    """Run one server under one scenario, once. What goes wrong is in the sample, and more of it on stderr."""
    measured: Measured | None = None
    beside: list[Measured] = []
    try:
        with serve(server, python) as running, contextlib.ExitStack() as stack:
            if scenario.beside is not None:
                beside = stack.enter_context(kept_busy(scenario.beside, running, timing))
            measured = apply(scenario.load, running, timing)
            stack.close()
            fault = next((one.fault for one in (measured, *beside) if one.fault), "")
            if fault:
                print(running.tail(), file=sys.stderr)
    except (NoReport, ServerFailed) as error:
        print(error, file=sys.stderr)
        fault = str(error).partition("\n")[0]  # a log may name folders, which are nobody's business
    return Sample(
        scenario=scenario.name,
        server=server.name,
        measured=measured,
        beside=beside[0] if beside else None,
        fault=fault,
    )


def plan(scenarios: Sequence[Scenario], servers: Sequence[Server]) -> list[tuple[Scenario, Server]]:
    """What to run: every server under every scenario, in turn.

    A scenario with a reference needs the floor under that one, and not under its own.
    """
    floors = [server for server in servers if server.name == FLOOR]
    references = {scenario.reference for scenario in scenarios} - {scenario.name for scenario in scenarios}
    extra = [(scenario, floor) for scenario in SCENARIOS for floor in floors if scenario.name in references]
    pairs = [(scenario, server) for scenario in scenarios for server in servers]
    return [*extra, *((one, server) for one, server in pairs if one.has_floor or server.name != FLOOR)]
