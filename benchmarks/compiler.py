"""The programs in C: the load generator and the floor, compiled when they are needed and kept in a cache."""

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "benchmarks" / "native"
CACHE = ROOT / ".cache" / "benchmarks"
FLAGS = ("-O2", "-Wall")


class CannotCompile(Exception):
    """There is no C compiler, or it refuses our program; the text says which."""


@functools.cache
def compiled(name: str, *flags: str) -> Path:
    """The program made of `native/NAME.c`, with further flags of the compiler; raises `CannotCompile`."""
    source = SOURCES / f"{name}.c"
    program = CACHE / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if program.exists():
        return program
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise CannotCompile("the load generator needs a C compiler: install gcc, or name one in the variable CC")
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_name(f"{program.name}.{os.getpid()}")
    done = subprocess.run(
        [compiler, *FLAGS, *flags, "-o", unfinished, source], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotCompile(f"{source.name} could not be compiled, which needs Linux and glibc 2.35:\n{done.stderr}")
    unfinished.replace(program)  # others may be compiling the same
    return program
