"""Engines that ask who is there: with a user, a password and a certificate, which may be wrong and become right."""

import contextlib
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.support.certificates import Certificate
from tests.support.engines import EngineServer, nats, running, valkey, zenoh_router
from tests.support.ports import HOST

USER = "chat"


@dataclass
class Guard:
    """What a server asks for and shows; it is read each time that the server starts."""

    password: str
    certificate: Certificate


@dataclass(frozen=True)
class GuardedEngine:
    """A server, and what stands before it."""

    servers: tuple[EngineServer, ...]
    address: str

    def url(self, password: str, ca: Path) -> str:
        """The address for a client, with its password and whom it believes."""
        return self.address.format(user=f"{USER}:{quote(password, safe='')}", port=self.servers[-1].port, ca=ca)

    def restart(self) -> None:
        for server in self.servers:
            server.restart()


@contextlib.contextmanager
def _redis(guard: Guard) -> Generator[GuardedEngine]:
    """Valkey as it comes from the package index has no TLS; a program of ours does that before it, as stunnel would."""

    def command(port: int, folder: Path) -> list[str]:
        users = folder / "users.acl"
        users.write_text(f"user default off\nuser {USER} on >{guard.password} allchannels +@all\n")
        return valkey(port, folder, "--aclfile", str(users))

    with running("redis", command) as server:

        def before(port: int, _: Path) -> list[str]:
            files = (str(guard.certificate.chain), str(guard.certificate.key))
            return [sys.executable, "-m", "tests.support.tls_door", str(port), str(server.port), *files]

        with running("rediss", before) as door:
            yield GuardedEngine((server, door), f"rediss://{{user}}@{HOST}:{{port}}/0?ssl_ca_certs={{ca}}")


@contextlib.contextmanager
def _nats(guard: Guard) -> Generator[GuardedEngine]:
    def command(port: int, folder: Path) -> list[str]:
        settings = {
            "tls": {"cert_file": str(guard.certificate.chain), "key_file": str(guard.certificate.key)},
            "authorization": {"user": USER, "password": guard.password},
        }
        return nats(port, folder, settings)

    with running("nats", command) as server:
        yield GuardedEngine((server,), f"tls://{{user}}@{HOST}:{{port}}?ca={{ca}}")


@contextlib.contextmanager
def _zenoh(guard: Guard) -> Generator[GuardedEngine]:
    def command(port: int, folder: Path) -> list[str]:
        users = folder / "users"
        users.write_text(f"{USER}:{guard.password}\n")
        settings = {
            "listen/endpoints": [f"tls/{HOST}:{port}"],
            "transport/link/tls/listen_certificate": str(guard.certificate.chain),
            "transport/link/tls/listen_private_key": str(guard.certificate.key),
            "transport/auth/usrpwd/user": "router",
            "transport/auth/usrpwd/password": guard.password,
            "transport/auth/usrpwd/dictionary_file": str(users),
        }
        return zenoh_router(port, folder, settings)

    with running("zenoh", command) as server:
        yield GuardedEngine((server,), f"zenoh+tls://{{user}}@{HOST}:{{port}}?ca={{ca}}")


GUARDED: dict[str, Callable[[Guard], contextlib.AbstractContextManager[GuardedEngine]]] = {
    "redis": _redis,
    "nats": _nats,
    "zenoh": _zenoh,
}
