"""The app that the conformance scenarios are played against: `uvicorn tests.conformance.app:app`. See channels.md.

The channel Realtime, which no scenario uses, is left out.
"""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from urllib.parse import unquote

import anyio
import msgspec
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from starlette_channels import Channel, Channels, ConnectError, Limits, LongPoll
from starlette_channels.handshake.admission import Connect
from starlette_channels.pubsub.broker import Broker
from tests.conformance.lab import lab
from tests.conformance.room import room
from tests.conformance.rosters import presence, roster
from tests.conformance.session import SLOWNESS, Session, connector, socket_id

FORBIDDEN = {"bad": ConnectError(), "limited": ConnectError(), "denied": ConnectError()}
REFUSE = connector(FORBIDDEN)
REFUSE_IN_DETAIL = connector({**FORBIDDEN, "limited": ConnectError("slow down", 429)})

LABS = {"lab:first": "red", "lab:*": "blue", "exact": None, "prefix*": "green"}
LIMITS = Limits(message_bytes=10_000_000, header_bytes=None)  # as much as in Phoenix

ROUTES: list[Channel[Any]] = [room, presence, roster, *(lab(pattern, color) for pattern, color in LABS.items())]

ORIGINS = (
    *("https://ok.example", "//any.example", "//*.wild.example"),
    *("//port.example:8081", "https://tls.example:8443"),
)

BROKER = Broker()  # one for all mounts, so that what is broadcast reaches the clients of each


def socket(
    channels: Sequence[Channel[Session]] = ROUTES, connect: Connect[Session] = REFUSE, **options: Any
) -> Channels[Session]:
    """What is mounted, with the options in which one mount differs from another."""
    options = {"check_origin": False, "longpoll": True, "limits": LIMITS, **options}
    return Channels(channels, connect=connect, socket_id=socket_id, broker=BROKER, **options)


MOUNTS = {
    "/socket": socket(connect=REFUSE_IN_DETAIL),
    "/origin": socket(check_origin=ORIGINS),
    "/short": socket(
        limits=replace(LIMITS, idle_seconds=1.0 * SLOWNESS), longpoll=LongPoll(window_seconds=1.0 * SLOWNESS)
    ),
    "/limits": socket([room], limits=Limits(channels=3, message_bytes=4096)),
    "/auth": socket(subprotocols=["sip"], auth_token=True),
    "/proto": socket(subprotocols=["chat", "sip"], longpoll=False),
    "/t/{tenant}": socket(path="/ws/{region}", longpoll=LongPoll(path="/lp")),
}


async def answer(request: Request) -> Response:
    """The HTTP routes. They look at the path as it came: a segment may hold an encoded slash."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    segments = [unquote(part) for part in raw.partition(b"?")[0].decode("ascii").split("/") if part]
    match request.method, segments:
        case "GET", []:
            pass
        case "POST", ["disconnect", user_id]:
            BROKER.broadcast(f"users_socket:{user_id}", "disconnect", {})
        case "POST", ["broadcast", topic, event]:
            BROKER.broadcast(topic, event, msgspec.json.decode(await request.body() or b"{}", type=dict[str, Any]))
        case _:
            return PlainTextResponse("not found", 404)
    return PlainTextResponse("ok")


async def no_route(scope: Scope, receive: Receive, send: Send) -> None:
    """Whatever is no mount. Starlette's own answer to a websocket would be 403."""
    if scope["type"] == "http":
        await (await answer(Request(scope, receive)))(scope, receive, send)
    else:
        await PlainTextResponse("not found", 404)(scope, receive, send)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    """Hold the tasks that outlive their channels, and close what is open at the end."""
    async with anyio.create_task_group() as tasks, contextlib.AsyncExitStack() as stack:
        for channels in MOUNTS.values():
            await stack.enter_async_context(channels.lifespan(app))
        app.state.tasks = tasks
        yield
        tasks.cancel_scope.cancel()


app = Starlette(routes=[Mount(path, app=channels) for path, channels in MOUNTS.items()], lifespan=lifespan)
app.router.default = no_route
app.router.redirect_slashes = False
app.state.broadcast = BROKER.broadcast
