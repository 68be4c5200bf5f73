"""Plain HTTP requests: the files of the JavaScript client, readiness, and errors for all else."""

from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from starlette_channels.connection.registry import Service
from starlette_channels.handshake.handshake import Handshake
from starlette_channels.handshake.origins import OriginCheck
from starlette_channels.handshake.paths import TransportPath, path_below_mount
from starlette_channels.handshake.refusal import Refused, log_refusal

JAVASCRIPT = "text/javascript; charset=utf-8"
TYPESCRIPT = "application/typescript; charset=utf-8"
CLIENT_FILES = {
    "channels.js": JAVASCRIPT,
    "channels.d.ts": TYPESCRIPT,
    "presence.js": JAVASCRIPT,
    "presence.d.ts": TYPESCRIPT,
    "shared.js": JAVASCRIPT,
}
"""Files and content types. `mimetypes` depends on the machine: its registry or `mime.types` may say that JavaScript is
plain text, and browsers do not run modules of that type."""

NOT_SNIFFED = {"x-content-type-options": "nosniff"}
UNCACHED = {"cache-control": "no-store"}


class Pages:
    """The responses to HTTP requests; `path` is that of the WebSocket."""

    def __init__(self, path: TransportPath, check_origin: OriginCheck, service: Service) -> None:
        self._path = path
        self._check_origin = check_origin
        self._service = service
        self._static = StaticFiles(directory=Path(__file__).parent.parent / "static")

    def readiness(self, has_started: Callable[[], bool]) -> Response:
        """Return 200 if a load balancer may send clients here, else 503."""
        if self._service.closing:
            return PlainTextResponse("draining", 503, {**UNCACHED, "retry-after": str(self._service.retry_after)})
        if not has_started():
            return PlainTextResponse("starting", 503, {**UNCACHED, "retry-after": "1"})
        return PlainTextResponse("ready", headers=UNCACHED)

    async def __call__(self, scope: Scope) -> Response:
        """Return the response to a request."""
        response = await self._answer(scope)
        response.headers.update(NOT_SNIFFED)
        return response

    async def _answer(self, scope: Scope) -> Response:
        name = path_below_mount(scope).removeprefix("/")
        if name in CLIENT_FILES and scope["method"] in ("GET", "HEAD"):
            response = await self._static.get_response(name, scope)
            if "content-type" in response.headers:  # an answer 304 has none
                response.headers["content-type"] = CLIENT_FILES[name]
            # Pages of other origins may import the client; after an upgrade of the server they get the new one.
            response.headers.update({"access-control-allow-origin": "*", "cache-control": "no-cache"})
            return response
        if self._path.match(scope) is None:
            return PlainTextResponse("Not Found", 404)
        if scope["method"] != "GET":
            return PlainTextResponse("Method Not Allowed", 405, {"allow": "GET"})
        try:
            self._check_origin(Handshake(scope, {}))
        except Refused as refusal:
            log_refusal(refusal, self._service.error_log)
            return PlainTextResponse(refusal.body, refusal.status)
        upgrading = "upgrade" in Headers(scope=scope)
        reason = "No WebSocket library: install uvicorn[standard]" if upgrading else "This is for WebSockets"
        # Both headers go together in HTTP/1.1, and neither is allowed in HTTP/2.
        headers = {"upgrade": "websocket", "connection": "upgrade"} if scope.get("http_version") == "1.1" else {}
        return PlainTextResponse(reason, 400, headers)
