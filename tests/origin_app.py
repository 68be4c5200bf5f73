"""A site that knows its users by a cookie, with pages on any host name: `uvicorn tests.origin_app:app`.

`/guarded` checks origins, as it is by default; `/open` does not, to show that pages from elsewhere would get in.
"""

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse
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


app = Starlette(
    routes=[
        Route("/", page),
        Route("/login/{name}", log_in),
        Mount("/guarded", app=Channels([me], connect=connect)),
        Mount("/open", app=Channels([me], connect=connect, check_origin=False)),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key="of this test")],
)
