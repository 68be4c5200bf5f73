"""A site that knows its users by a cookie, with pages on any host name: `uvicorn tests.support.origin_app:app`.

`/guarded` checks origins, as it is by default; `/open` does not, to show that pages from elsewhere would get in.
`/polled` is for pages of `friend.localhost` and its own, and offers long-polling; `/figures` tells of its sessions.
"""

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Mount, Route

from starlette_channels import Channels, Handshake, Socket, channel


async def connect(conn: Handshake) -> str:
    return conn.session.get("name", "nobody")


@channel("me")
async def me(socket: Socket[str], payload: Any) -> dict[str, str]:
    return {"you_are": socket.assigns}


async def page(request: Request) -> HTMLResponse:
    return HTMLResponse('<!doctype html><link rel="icon" href="data:,"><title>a page</title>')


async def log_in(request: Request) -> HTMLResponse:
    request.session["name"] = request.path_params["name"]
    return await page(request)


polled = Channels([me], connect=connect, longpoll=True, check_origin=["//app.localhost", "//friend.localhost"])


async def figures(request: Request) -> JSONResponse:
    numbers = polled.statistics()
    return JSONResponse({"sessions": numbers.connections, "refused": numbers.counts.get("origin_refused", 0)})


app = Starlette(
    routes=[
        Route("/", page),
        Route("/login/{name}", log_in),
        Mount("/guarded", app=Channels([me], connect=connect)),
        Route("/figures", figures),
        Mount("/polled", app=polled),
        Mount("/open", app=Channels([me], connect=connect, check_origin=False)),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key="of this test")],
)
