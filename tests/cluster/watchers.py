"""Clients of phoenix.js at all nodes, under node and in Chromium, and what its own `Presence` makes of all this."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeAlias, TypeVar

from playwright.sync_api import Browser, Page, Route

from tests.clients import node as nodejs
from tests.support.chromium import chromium
from tests.support.servers import Server

View: TypeAlias = list[list[str]]
"""Who is there, as somebody knows it: `[key, phx_ref]` of each."""

Result = TypeVar("Result")


class Watchers(Protocol):
    """One client at each node, which comes back whenever it is cut off."""

    async def look(self) -> list[View]:
        """Who is there, as each of them has it."""
        ...

    def close(self) -> None:
        """End them."""
        ...


class NodeWatchers:
    """Clients under node, all in one process."""

    def __init__(self, servers: Sequence[Server]) -> None:
        nodejs.install()
        urls = [f"{server.ws}/socket" for server in servers]
        self._process = subprocess.Popen(
            [nodejs.NODE, nodejs.HERE / "watch.mjs", *urls], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    async def look(self) -> list[View]:
        """Who is there, as each of them has it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        return json.loads(await asyncio.to_thread(self._process.stdout.readline))

    def close(self) -> None:
        """End them."""
        with self._process:
            self._process.kill()


class BrowserThread:
    """A Chromium in a thread of its own, because the tests' thread has an event loop already."""

    def __init__(self, executable: str) -> None:
        self._thread = ThreadPoolExecutor(1, "chromium")
        self._stack = contextlib.ExitStack()
        self.browser: Browser = self.do(lambda: self._stack.enter_context(chromium(executable))).result()

    def do(self, what: Callable[[], Result]) -> "Future[Result]":
        """Do something there."""
        return self._thread.submit(what)

    def close(self) -> None:
        """End it."""
        self.do(self._stack.close).result()
        self._thread.shutdown()


SCRIPTS = {
    "phoenix.mjs": nodejs.MODULES / "phoenix/priv/static/phoenix.mjs",
    "watcher.mjs": nodejs.HERE / "watcher.mjs",
}
WATCH = """async (url) => {
    const [phoenix, { watcher }] = await Promise.all([import("/phoenix.mjs"), import("/watcher.mjs")]);
    window.look = watcher(phoenix, url);
}"""


def _answer_with_script(route: Route) -> None:
    route.fulfill(path=SCRIPTS[route.request.url.rpartition("/")[2]])


class PageWatchers:
    """Pages in a browser, each from the address of its node."""

    def __init__(self, thread: BrowserThread, servers: Sequence[Server]) -> None:
        nodejs.install()
        self._thread = thread
        self._errors: list[str] = []
        self._context = thread.do(thread.browser.new_context).result()
        self._pages = thread.do(lambda: [self._open(server) for server in servers]).result()

    async def look(self) -> list[View]:
        """Who is there, as each of them has it."""
        return await asyncio.wrap_future(self._thread.do(self._look))

    def close(self) -> None:
        """End them."""
        self._thread.do(self._context.close).result()

    def _open(self, server: Server) -> Page:
        page = self._context.new_page()
        page.on("pageerror", lambda error: self._errors.append(str(error)))
        page.route("**/*.mjs", _answer_with_script)
        page.goto(f"{server.http}/page")
        page.evaluate(WATCH, f"{server.ws}/socket")
        return page

    def _look(self) -> list[View]:
        views = [page.evaluate("look()") for page in self._pages]
        assert self._errors == []
        return views
