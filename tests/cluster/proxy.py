"""A network between a node and its engine that tests can cut, and let hang."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Generator
from typing import Any
from weakref import WeakSet

from tests.support.ports import HOST, free_port

CHUNK = 65_536


class Network:
    """An event loop in a thread, for all proxies."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies")
        self._thread.start()

    def do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Do something there, and wait until it is done."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def close(self) -> None:
        """End what is going on."""
        self.do(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Proxy:
    """A way to a port. Bytes pass in both directions while it is open."""

    def __init__(self, network: Network, to: int) -> None:
        self.port = free_port()
        self._network = network
        self._to = to
        self._open = asyncio.Event()
        self._hears = asyncio.Event()
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._all_writers: WeakSet[asyncio.StreamWriter] = WeakSet()
        network.do(self._listen())

    def close(self) -> None:
        """Be no way any more."""
        self._network.do(self._close())

    @contextlib.contextmanager
    def hanging(self) -> Generator[None]:
        """Let nothing pass, and lose nothing: as when packets do not arrive, and are sent again."""
        self._network.do(self._hang())
        try:
            yield
        finally:
            self._network.do(self._go_on())

    @contextlib.contextmanager
    def cut(self) -> Generator[None]:
        """Break all connections, lose what is on its way, and let nobody connect anew."""
        self._network.do(self._cut())
        try:
            yield
        finally:
            self._network.do(self._go_on())

    @contextlib.contextmanager
    def deaf(self) -> Generator[None]:
        """Let nothing pass from the node to its engine, while what the engine sends still comes."""
        self._network.do(self._deafen())
        try:
            yield
        finally:
            self._network.do(self._go_on())

    async def _listen(self) -> None:
        self._open.set()
        self._hears.set()
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        for writer in tuple(self._all_writers):  # one that closes may have something left that nobody reads
            writer.transport.abort()

    async def _hang(self) -> None:
        self._open.clear()

    async def _deafen(self) -> None:
        self._hears.clear()

    async def _cut(self) -> None:
        self._is_cut = True
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _go_on(self) -> None:
        self._is_cut = False
        self._open.set()
        self._hears.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            if self._is_cut:
                writer.transport.abort()
                return
            there, back = await asyncio.open_connection(HOST, self._to)
            with contextlib.closing(back):
                self._writers |= {writer, back}
                self._all_writers |= {writer, back}
                try:
                    await asyncio.gather(self._pump(reader, back, self._hears), self._pump(there, writer))
                finally:
                    self._writers -= {writer, back}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event | None = None
    ) -> None:
        while data := await reader.read(CHUNK):
            await self._open.wait()
            if passes is not None:
                await passes.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionError("one side has closed")
