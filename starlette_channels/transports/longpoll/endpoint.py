"""The long-poll endpoint at `<mount>/longpoll`: requests of clients, and their responses.

Responses of the protocol are HTTP 200; the status of the protocol is in the body.
Source: Phoenix's `transports/long_poll.ex`.
"""

import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from starlette_channels.connection.registry import Service
from starlette_channels.exceptions import ProtocolError
from starlette_channels.handshake.admission import Admission
from starlette_channels.handshake.handshake import Handshake
from starlette_channels.handshake.paths import TransportPath
from starlette_channels.handshake.refusal import Refused, log_refusal
from starlette_channels.transports.longpoll.batches import is_batch
from starlette_channels.transports.longpoll.bodies import Bodies, BodyRefused, RequestBody
from starlette_channels.transports.longpoll.sessions import Sessions
from starlette_channels.transports.longpoll.transport import LongPoll, LongPollTransport
from starlette_channels.wire.messages import Frame
from starlette_channels.wire.nodes import TooManyNodes

logger: logging.Logger = logging.getLogger("starlette_channels.transport")

TOKEN_HEADER = "x-phoenix-longpoll-token"

ANY_ORIGIN = {"access-control-allow-origin": "*"}
"""Pages of any origin may read the responses: a session requires its token, and cookies are not used."""

ADVICE = (
    "A long-poll session of another process was asked for: several processes need sticky sessions, so let the proxy "
    "send all requests of a client to the same one"
)

HEADERS = {**ANY_ORIGIN, "cache-control": "no-store"}
JSON = "application/json; charset=utf-8"


class Unsent(Exception):
    """The client was gone before the response was sent."""


class LongPolling:
    """Opens sessions, and passes further requests on to them."""

    def __init__(self, options: LongPoll, service: Service, admission: Admission) -> None:
        self.path: TransportPath = TransportPath(options.path, "LongPoll(path")
        self._options = options
        self._limits = service.limits
        self._error_log = service.error_log
        self._bodies = Bodies(options.held_bytes)
        self._admission = admission
        self._sessions: Sessions[LongPollTransport] = Sessions()

    async def __call__(self, scope: Scope, variables: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request; `variables` are the variables of its path."""
        try:
            await self._answer(HTTPExchange(scope, receive, send), variables)
        except Refused as refusal:
            log_refusal(refusal, self._error_log)
            await refuse(refusal)(scope, receive, send)
        except (Unsent, ClientDisconnect) as error:
            logger.debug("The client was gone before its answer: %r", error.__cause__ or error)

    async def _answer(self, exchange: "HTTPExchange", variables: Mapping[str, Any]) -> None:
        handshake = self._admission.begin(exchange.scope, variables)
        if exchange.method == "OPTIONS":
            await exchange.send(preflight(exchange))
        elif exchange.method not in ("GET", "POST"):
            await exchange.send(Response(status_code=400))
        else:
            session = self._find(handshake)
            if exchange.method == "POST":
                await exchange.send(await self._post(exchange, session))
            elif session is not None:
                await session.poll(exchange.gone, exchange.answer_with(session.token))
            else:
                await self._open(exchange, handshake)

    def _find(self, handshake: Handshake) -> LongPollTransport | None:
        token = handshake.headers.get(TOKEN_HEADER) or handshake.params.get("token")
        session = self._sessions.find(token)
        if session.is_here if session is not None else not self._sessions.is_foreign(token):
            return session
        self._error_log.note("foreign_session", logger, ADVICE)
        return None

    async def _open(self, exchange: "HTTPExchange", handshake: Handshake) -> None:
        with self._admission.pending() as pending:
            connect = await self._admission.admit_session(pending, handshake)
            session = LongPollTransport(self._options, self._limits, self._error_log, self._sessions, connect)
        await exchange.answer_with(session.token)(410)

    async def _post(self, exchange: "HTTPExchange", session: LongPollTransport | None) -> Response:
        if session is None:
            return render(410)
        is_in_lines = is_batch(exchange.headers.get("content-type", ""))
        body = RequestBody(self._bodies, self._options.batch_lines if is_in_lines else None)
        try:
            session.check_announced(body, exchange.announced)
            async with aclosing(exchange.stream()) as chunks:
                status = await session.take(body, chunks)
            return render(status)
        except TooManyNodes as error:
            return self._refuse_body(BodyRefused(400, error.code, str(error)))
        except ProtocolError as error:
            return self._refuse_body(BodyRefused(400, "malformed_message", str(error)))
        except BodyRefused as refused:
            return self._refuse_body(refused)
        finally:
            self._bodies.release(body)

    def _refuse_body(self, refused: BodyRefused) -> Response:
        self._error_log.note(refused.code, logger, "A batch was refused with %d: %s", refused.status, refused)
        response = render(refused.status, refused.status, reason=str(refused))
        if refused.seconds is not None:
            response.headers["retry-after"] = str(max(1, math.ceil(refused.seconds)))
        return response


class HTTPExchange(Request):
    """A request, and the `send` for its response."""

    @property
    def announced(self) -> int:
        """The content-length; 0 if there is none."""
        length = self.headers.get("content-length", "")
        return int(length[:20]) if length.isdecimal() else 0

    async def gone(self) -> None:
        """Wait until the client has disconnected."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def send(self, response: Response) -> None:
        """Send the response; raises `Unsent` if the server raises."""
        try:
            await response(self.scope, self.receive, self._send)
        except Exception as error:  # its type depends on the server
            raise Unsent from error

    def answer_with(self, token: str) -> Callable[..., Coroutine[Any, Any, None]]:
        """Return a function that answers a poll."""

        async def answer(status: int, frames: Iterable[Frame] = ()) -> None:
            await self.send(render(status, token=token, messages=list(frames)))

        return answer


def render(status: int, true_status: int = 200, **fields: Any) -> Response:
    """Return a response of the protocol."""
    return Response(msgspec.json.encode({"status": status, **fields}), true_status, HEADERS, JSON)


def refuse(refusal: Refused) -> Response:
    """Return the response to a refused client: status 403 of the protocol for most reasons.

    Errors, and temporary refusals, are HTTP statuses. A close code is sent with its reason beside the status;
    phoenix.js reads the status only.
    """
    if refusal.close is not None:
        return render(403, code=refusal.close, reason=refusal.body)
    if refusal.status == 400 or refusal.headers or refusal.status >= 500:
        return Response(status_code=refusal.status, headers={**HEADERS, **refusal.headers})
    return render(403)


def preflight(request: Request) -> Response:
    """Return the response to a CORS preflight request."""
    headers = {
        **ANY_ORIGIN,
        "access-control-allow-headers": request.headers.get("access-control-request-headers", ""),
        "access-control-allow-methods": "get, post, options",
        "access-control-max-age": "3600",
    }
    return Response(headers=headers)
