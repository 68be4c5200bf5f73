"""The servers that are compared, and how each is started."""

from dataclasses import dataclass

from benchmarks import wires
from benchmarks.compiler import compiled

HOST = "127.0.0.1"
STOCK = "websockets-sansio"
FAST_LANE = "starlette_channels.transports.uvicorn:FastLane"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server under test; `requires` are the distributions that must be installed for it."""

    name: str
    title: str
    wire: wires.Wire = wires.PHOENIX
    app: str = ""
    ws: str = STOCK
    requires: tuple[str, ...] = ()

    def command(self, python: str, port: int) -> list[str]:
        """The command line: uvicorn with the settings of production, whatever the library."""
        served = ["--host", HOST, "--port", str(port), "--loop", "uvloop", "--http", "httptools", "--ws", self.ws]
        quiet = ["--no-access-log", "--log-level", "warning"]
        return [python, "-m", "uvicorn", f"benchmarks.apps.{self.app}:app", *served, *quiet]


class Floor(Server):
    """The cheapest server that the kernel permits, in C."""

    def command(self, python: str, port: int) -> list[str]:
        """The command line; the program is compiled first."""
        return [str(compiled("floor")), str(port)]


FLOOR = "floor"
OURS = "fast-lane"

SERVERS = [
    Floor(name=FLOOR, title="send() loop in C", wire=wires.FLOOR),
    Server(name=OURS, title="starlette_channels", app="channels_app", ws=FAST_LANE),
    Server(name="portable", title="starlette_channels, portable", app="channels_app"),
    Server(name="starlette", title="plain Starlette", app="starlette_app"),
    Server(name="litestar", title="Litestar", app="litestar_app", requires=("litestar",)),
    Server(
        name="socketio", title="python-socketio", app="socketio_app", wire=wires.SOCKETIO, requires=("python-socketio",)
    ),
    Server(name="django", title="Django Channels", app="django_app", requires=("channels", "django")),
]
