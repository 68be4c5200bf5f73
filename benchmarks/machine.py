"""The machine of a benchmark: its kind, its cores, installed versions and permissions."""

import contextlib
import os
import platform
import resource
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks.results import Machine

DISTRIBUTIONS = ("starlette-channels", "starlette", "uvicorn", "uvloop", "httptools", "websockets", "msgspec")
PRIORITY = -10
ASK = """\
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
versions = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        versions[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(versions))
"""


class Unfit(Exception):
    """The machine cannot run the benchmark; the text says what is missing."""


def cores() -> tuple[int, int]:
    """Choose the cores of server and load; raises `Unfit` if there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise Unfit("the benchmark needs two cores: one for the server, one for the load")
    return usable[0], usable[1]


def permit_files(wanted: int) -> bool:
    """Raise the limit of open files for this process and its children; return whether it is permitted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most == wanted
    return True


def take_precedence(pid: int) -> None:
    """Give a process and its children precedence over other programs, if it is permitted.

    Where Linux shares its cores fairly between sessions, it is the session's priority that counts.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, PRIORITY)
        Path(f"/proc/{pid}/autogroup").write_text(str(PRIORITY))


def installed(python: str, names: set[str]) -> dict[str, str]:
    """Return the version of an interpreter and of some distributions installed for it."""
    command = [python, "-c", ASK, *DISTRIBUTIONS, *sorted(names)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise Unfit(f"{python} cannot be used: {done.stderr.decode(errors='replace')}")
    return msgspec.json.decode(done.stdout, type=dict[str, str])


def kind() -> Machine:
    """Describe the kind of the machine, without anything that identifies it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=models[0] if models else platform.machine(),
        cores=os.cpu_count() or 0,
        memory_gb=round(memory / 2**30),
        system=f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
    )


def today() -> str:
    """Return the date for the results."""
    return datetime.now(UTC).date().isoformat()
