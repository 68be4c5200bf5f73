"""A channel whose clients are tracked, for the tests of presence."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette_channels import Broker, Channels, JoinError, Presence, PresenceError, Reply, Socket, channel
from starlette_channels.testing import Joined

if TYPE_CHECKING:
    import anyio


class Lobby:
    """Clients say who they are when they join, and are tracked under that name, or say "nobody" and are not."""

    def __init__(self, presence: Presence | None = None, broker: Broker | None = None) -> None:
        self.presence = presence or Presence()
        self.sockets: list[Socket[Any]] = []
        self.task: Callable[[Socket[Any]], object] = lambda socket: None
        self.gate: anyio.Event | None = None

        @channel("lobby:*")
        async def lobby(socket: Socket, payload: dict[str, Any]) -> None:
            self.sockets.append(socket)
            if "nobody" not in payload:
                self.presence.track(socket, payload["name"], payload.get("meta", {}))
            self.presence.push_state(socket)
            if "refuse" in payload:
                raise JoinError
            if self.gate is not None:
                await self.gate.wait()

        @lobby.on("do")
        async def do(socket: Socket, payload: dict[str, Any]) -> Reply:
            try:
                self.task(socket)
            except PresenceError as error:
                return Reply("error", {"reason": error.reason})
            return Reply("ok")

        self.lobby = lobby
        self.broker = broker or Broker()
        self.channels = Channels([lobby], broker=self.broker)

    async def do(self, room: Joined, task: Callable[[Socket[Any]], object]) -> Reply:
        """Let something be done in a handler of this client."""
        self.task = task
        return await room.push("do")


def shape(presences: dict[str, Any]) -> dict[str, Any]:
    """Presences without their refs, and without what is only the list around one meta."""
    return {
        key: [{name: value for name, value in meta.items() if name[:7] != "phx_ref"} for meta in presence["metas"]]
        for key, presence in presences.items()
    }


async def state(room: Joined) -> dict[str, Any]:
    """The next state, in short."""
    return shape(await room.receive("presence_state"))


async def diff(room: Joined) -> tuple[dict[str, Any], dict[str, Any]]:
    """The joins and leaves of the next diff, in short."""
    payload = await room.receive("presence_diff")
    assert set(payload) == {"joins", "leaves"}
    return shape(payload["joins"]), shape(payload["leaves"])
