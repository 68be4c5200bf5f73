"""uvicorn's own WebSocket protocol, for the applications beside channels that are served by the same process.

It takes over the connection of a running call, if the application turns out not to be channels: from then on `receive`
and `send` of the call are those of uvicorn's object.
"""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from starlette_channels.transports.uvicorn_lane.access_log import install_log_filter
from starlette_channels.transports.uvicorn_lane.early_data import EarlyBytes


class UvicornWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's protocol object, for a request already read and a running call of the application.

    Handshakes are logged without their query, as it may contain a token, and not at all with `--no-access-log`.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        early: EarlyBytes,
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        install_log_filter(self.logger, access_log=config.access_log)
        self._early = early
        self._outcome: asyncio.Future[Any] | None = loop.create_future()
        self.app: Any = self._wait_for_the_call

    def begin(self, request: bytes, scope: Any, *, is_announced: bool) -> None:
        """Process the request for a running call; `is_announced` if that has received `websocket.connect` already.

        `scope` is that of the call, since middleware may have changed it.
        """
        super().data_received(request)
        self.scope = scope
        if is_announced:
            self.queue.get_nowait()

    def finish(self, result: object, error: BaseException | None) -> None:
        """End the call; uvicorn handles its result or error."""
        if self._outcome is None or self._outcome.done():  # the server has cancelled the task that waits for it
            return
        if error is None:
            self._outcome.set_result(result)
        elif isinstance(error, asyncio.CancelledError):
            self._outcome.cancel()
        else:
            self._outcome.set_exception(error)

    async def _wait_for_the_call(self, scope: object, receive: object, send: object) -> Any:
        assert self._outcome is not None
        try:
            return await self._outcome
        finally:
            # Both refer back to this object; an error does so by the frames of its traceback.
            self._outcome = self.app = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the loss of the connection, and remove the cycle of scope, extension and protocol."""
        super().connection_lost(exc)
        self.__dict__.pop("scope", None)

    def data_received(self, data: bytes) -> None:
        """Handle data; before the handshake is complete, keep a bounded part of early TLS data."""
        if self.handshake_complete:
            super().data_received(data)
        else:
            self._early.add(data)

    async def send(self, message: Any) -> None:
        """Send a message of the application, and read from the client when the handshake is accepted.

        uvicorn 0.54 does not mark a refused handshake as complete.
        """
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True
        elif message["type"] == "websocket.accept":
            self.loop.call_soon(self._listen)

    def _listen(self) -> None:
        if self.transport.is_closing():
            return
        if self._early.is_too_much:
            self.transport.abort()
            return
        self.transport.resume_reading()
        if early := self._early.take():
            self.data_received(early)
