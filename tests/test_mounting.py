"""Where the channels can be put, and what they answer to plain HTTP."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from starlette_channels import Channels, Limits, Reply, Socket, channel
from starlette_channels.testing import HandshakeRefused, connect

pytestmark = pytest.mark.anyio


@channel("room:*")
async def room(socket: Socket[Any], payload: Any) -> None:
    pass


@room.on("echo")
async def echo(socket: Socket[Any], payload: Any) -> Any:
    return payload


@room.on("app")
async def state(socket: Socket[Any], payload: Any) -> dict[str, Any]:
    return {"name": socket.app.state.name}


def the_app_itself(channels: Channels[Any]) -> tuple[ASGIApp, str]:
    return channels, ""


def mounted_in_starlette(channels: Channels[Any]) -> tuple[ASGIApp, str]:
    return Starlette(routes=[Mount("/socket", app=channels)]), "/socket"


def mounted_at_the_root(channels: Channels[Any]) -> tuple[ASGIApp, str]:
    return Starlette(routes=[Mount("/", app=channels)]), ""


def mounted_in_fastapi(channels: Channels[Any]) -> tuple[ASGIApp, str]:
    app = FastAPI()
    app.mount("/socket", channels)
    return app, "/socket"


def below_nested_routers(channels: Channels[Any]) -> tuple[ASGIApp, str]:
    inner = Router(routes=[Mount("/socket", app=channels)])
    outer = Router(routes=[Mount("/v1", app=inner)])
    return Starlette(routes=[Mount("/api", app=outer)]), "/api/v1/socket"


def below_middleware(channels: Channels[Any]) -> tuple[ASGIApp, str]:
    return Starlette(routes=[Mount("/socket", app=channels)], middleware=[Middleware(GZipMiddleware)]), "/socket"


def below_a_root_path(channels: Channels[Any]) -> tuple[ASGIApp, str]:
    app = Starlette(routes=[Mount("/socket", app=channels)])

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": "/prefix"}, receive, send)

    return server, "/prefix/socket"


PLACES = [
    the_app_itself,
    mounted_in_starlette,
    mounted_at_the_root,
    mounted_in_fastapi,
    below_nested_routers,
    below_middleware,
    below_a_root_path,
]


def http(app: ASGIApp) -> httpx.AsyncClient:
    """Return a client for the HTTP side of an app."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://testserver")


async def status(app: ASGIApp, mount: str = "", path: str = "/websocket") -> int:
    """Return how a WebSocket is refused."""
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(app, mount, path=path):
            pass
    return caught.value.status


@pytest.mark.parametrize("place", PLACES)
async def test_the_websocket_and_the_client_are_served_wherever_the_channels_are(place: Any) -> None:
    channels = Channels([room])
    app, mount = place(channels)
    async with connect(app, mount) as client, http(app) as browser:
        joined = await client.join("room:a")
        assert await joined.push("echo", {"n": 1}) == Reply("ok", {"n": 1})
        channels.broadcast("room:a", "news", {})
        assert await joined.receive("news") == {}
        assert (await browser.get(f"{mount}/channels.js")).status_code == 200
        assert (await browser.get(f"{mount}/websocket")).status_code == 400


@pytest.mark.parametrize("place", PLACES)
async def test_other_paths_are_not_found(place: Any) -> None:
    app, mount = place(Channels([room]))
    async with http(app) as browser:
        for path in (
            "/",
            "/websocket/x",
            "/websocket/",
            "/Websocket",
            "/channels",
            "/channels.js/x",
            "/x/channels.js",
        ):
            assert (await browser.get(f"{mount}{path}")).status_code == 404
    for path in ("/", "/websocket/x", "/websocket/", "/Websocket", "/longpoll", "/channels.js"):
        assert await status(app, mount, path) in (403, 404)  # a router of Starlette closes, we answer


async def test_the_path_of_the_websocket_can_be_chosen() -> None:
    channels = Channels([room], path="/live/{region}")
    async with connect(channels, path="/live/eu") as client:
        await client.join("room:a")
    assert await status(channels) == 404
    with pytest.raises(ValueError, match="must begin with a slash"):
        Channels([room], path="websocket")


async def test_handlers_reach_the_application_that_the_channels_are_mounted_in() -> None:
    channels = Channels([room])
    inner = Starlette(routes=[Mount("/socket", app=channels)])
    outer = Starlette(routes=[Mount("/inner", app=inner)])
    inner.state.name, outer.state.name = "inner", "outer"
    async with connect(outer, "/inner/socket") as client:
        assert (await (await client.join("room:a")).push("app")).payload == {"name": "inner"}
    async with connect(channels) as client:
        joined = await client.join("room:a")
        joined.send("app")  # there is no application: the handler raises
        await joined.receive("phx_error")


async def test_a_route_can_announce_to_a_topic() -> None:
    channels = Channels([room])

    async def announce(request: Request) -> JSONResponse:
        channels.broadcast("room:a", "announcement", await request.json())
        return JSONResponse({})

    app = Starlette(routes=[Mount("/socket", app=channels), Route("/announce", announce, methods=["POST"])])
    async with connect(app, "/socket") as client, http(app) as browser:
        joined = await client.join("room:a")
        await browser.post("/announce", json={"text": "hi"})
        assert await joined.receive("announcement") == {"text": "hi"}


async def test_one_channels_mounted_twice_is_one_and_one_channel_in_two_channels_is_two() -> None:
    one, two = Channels([room]), Channels([room])
    app = Starlette(routes=[Mount("/a", app=one), Mount("/b", app=one), Mount("/c", app=two)])
    async with connect(app, "/a") as a, connect(app, "/b") as b, connect(app, "/c") as c:
        rooms = [await client.join("room:a") for client in (a, b, c)]
        one.broadcast("room:a", "news", {"n": 1})
        two.broadcast("room:a", "news", {"n": 2})
        assert [await joined.receive("news") for joined in rooms] == [{"n": 1}, {"n": 1}, {"n": 2}]
        assert (one.statistics().connections, two.statistics().connections) == (2, 1)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_the_websocket_path_takes_only_get(method: str) -> None:
    async with http(Channels([room])) as browser:
        answer = await browser.request(method, "/websocket")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


async def test_a_get_without_upgrade_is_told_to_upgrade_and_connect_is_not_asked() -> None:
    async def enter(conn: object) -> None:
        raise AssertionError("connect was asked")

    async with http(Channels([room], connect=enter)) as browser:
        answer = await browser.get("/websocket")
        assert (answer.status_code, answer.text) == (400, "This is for WebSockets")
        assert answer.headers["upgrade"] == "websocket"
        # An upgrade that comes as HTTP means that the server has no WebSocket library.
        answer = await browser.get("/websocket", headers={"Upgrade": "websocket"})
        assert answer.status_code == 400
        assert "uvicorn[standard]" in answer.text


@pytest.mark.parametrize(("module", "name"), [("channels", "Socket"), ("presence", "Presence")])
@pytest.mark.parametrize(("suffix", "kind"), [("js", "javascript"), ("d.ts", "")])
async def test_the_client_is_served_with_its_type_and_not_sent_twice(
    module: str, name: str, suffix: str, kind: str
) -> None:
    file = f"{module}.{suffix}"
    async with http(Channels([room])) as browser:
        answer = await browser.get(f"/{file}")
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        assert f"export class {name}" in answer.text
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["cache-control"] == "no-cache"
        head = await browser.head(f"/{file}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == answer.headers["content-length"]
        again = await browser.get(f"/{file}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await browser.post(f"/{file}")).status_code in (404, 405)


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncGenerator[None]:
    """Run the lifespan of an app as a server does."""
    to_app, from_server = anyio.create_memory_object_stream[Message](2)
    to_server, from_app = anyio.create_memory_object_stream[Message](2)

    async def run() -> None:
        await app({"type": "lifespan", "state": {}}, from_server.receive, to_server.send)

    with to_app, from_server, to_server, from_app:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await to_app.send({"type": "lifespan.startup"})
            assert await from_app.receive() == {"type": "lifespan.startup.complete"}
            yield
            await to_app.send({"type": "lifespan.shutdown"})
            assert await from_app.receive() == {"type": "lifespan.shutdown.complete"}


@pytest.mark.parametrize("alone", [True, False])
async def test_the_end_of_the_lifespan_closes_connections_with_1012(alone: bool) -> None:
    channels = Channels([room])
    app = channels if alone else Starlette(routes=[Mount("/socket", app=channels)], lifespan=channels.lifespan)
    mount = "" if alone else "/socket"
    async with connect(app, mount) as one, connect(app, mount) as two:
        joined = await one.join("room:a")
        async with running(app):
            assert await one.heartbeat() == Reply("ok", {})
        assert await one.closed() == await two.closed() == 1012
        assert await joined.received_nothing()
        assert channels.statistics().connections == 0
    async with running(app), connect(app, mount) as again:  # the same application may be started once more
        await again.join("room:a")


async def test_the_lifespan_waits_for_handlers_and_terminate_but_not_for_ever(virtual_clock: object) -> None:
    ends: list[str] = []

    @channel("slow:*")
    async def slow(socket: Socket[Any], payload: Any) -> None:
        pass

    @slow.on("wait")
    async def wait(socket: Socket[Any], seconds: float) -> None:
        await anyio.sleep(seconds)
        ends.append(f"waited {seconds:g}")

    @slow.terminate
    async def terminate(socket: Socket[Any], reason: str) -> None:
        await anyio.sleep(1)
        ends.append(f"{socket.subtopic} {reason}")

    channels = Channels([slow], limits=Limits(shutdown_seconds=3))
    async with connect(channels) as client:
        (await client.join("slow:a")).send("wait", 2)
        (await client.join("slow:b")).send("wait", 1000)
        await client.heartbeat()
        start = anyio.current_time()
        async with channels.lifespan():
            pass
        assert sorted(ends) == ["a draining", "b draining", "waited 2"]
        assert anyio.current_time() - start == pytest.approx(4)  # pyright: ignore[reportUnknownMemberType]
        assert await client.closed() == 1012
