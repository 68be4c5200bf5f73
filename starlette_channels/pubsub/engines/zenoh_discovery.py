"""Zenoh discovery: a folder in which the processes of one application on one machine find each other.

Only their user can enter it. Each process has a socket there, and a claim: a file that is locked while the process
runs, so that dead processes are detected. There is no leader.
"""

import contextlib
import fcntl
import hashlib
import os
import random
import stat
import tempfile
from pathlib import Path
from typing import IO

_CLAIM = ".claim"
ID_DIGITS = 12


MAX_PATH = 100
"""Maximal length of the path of a socket, in bytes; systems allow 104 or more, with a zero at the end."""


def mesh_folder(name: str | None) -> Path:
    """Return the folder of an application, by its name, or by the working directory if it has none.

    Raises `PermissionError` if other users can write to it, and `ValueError` if its path is too long for a socket.
    """
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    name = _hashed(os.fsencode(Path.cwd())) if name is None else name if len(name) <= 16 else _hashed(name.encode())
    parent = Path(base, f"channels-{os.getuid()}")
    for folder in (parent, parent / name):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{folder} must be a folder that belongs to this user, and closed to all others")
    if len(os.fsencode(parent / name)) > MAX_PATH - 2 * ID_DIGITS:
        raise ValueError(
            f"{parent / name} is too long for sockets in it: set XDG_RUNTIME_DIR to a folder near the root"
        )
    return parent / name


def _hashed(name: bytes) -> str:
    return hashlib.blake2b(name, digest_size=6).hexdigest()


class Claim:
    """Membership of a process in the mesh, until it is closed or the process dies."""

    def __init__(self, folder: Path) -> None:
        self.id: str = f"{random.randrange(16 ** (ID_DIGITS - 1), 16**ID_DIGITS):x}"  # Zenoh allows no leading zero
        self._folder = folder
        self._path = folder / f"{self.id}{_CLAIM}"
        draft = folder / f"{self.id}.draft"
        self._file: IO[bytes] = draft.open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        draft.rename(self._path)  # it is visible only when locked

    @property
    def socket(self) -> Path:
        """Path of the socket of this process."""
        return self._socket_of(self.id)

    def others(self) -> dict[str, Path]:
        """Return the sockets of the other processes by id, and remove the files of dead ones.

        Of two processes that start at the same time, at least one finds the other.
        """
        ids = [path.name.removesuffix(_CLAIM) for path in self._folder.glob(f"*{_CLAIM}")]
        return {one: self._socket_of(one) for one in ids if one != self.id and self._lives(one)}

    def close(self) -> None:
        """Leave the mesh."""
        self._remove(self.id)
        self._file.close()

    def _socket_of(self, one: str) -> Path:
        return self._folder / f"{one}.sock"

    def _lives(self, one: str) -> bool:
        try:
            with (self._folder / f"{one}{_CLAIM}").open("rb") as claim:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove(one)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def _remove(self, one: str) -> None:
        for suffix in (".sock", ".sock.lock", _CLAIM):
            with contextlib.suppress(FileNotFoundError):
                (self._folder / f"{one}{suffix}").unlink()
