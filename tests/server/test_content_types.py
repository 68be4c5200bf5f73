"""Content types of the files that we serve: ours, whatever the machine's registry or `mime.types` says."""

import mimetypes
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

import starlette_channels
from example_app import app as chat
from starlette_channels import Channels

pytestmark = pytest.mark.anyio

EXPECTED = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".ts": "application/typescript; charset=utf-8",
}


def files(module: Any) -> list[Path]:
    """All files in the folder `static` beside a module."""
    found = sorted(path for path in (Path(module.__file__).parent / "static").iterdir() if path.is_file())
    assert found
    return found


CASES = [
    *((files(starlette_channels), "/socket", Starlette(routes=[Mount("/socket", app=Channels([]))])),),
    *((files(chat), "", chat.app),),
]
EACH = [pytest.param(app, f"{mount}/{path.name}", id=path.name) for paths, mount, app in CASES for path in paths]


@pytest.fixture(scope="module", params=["text/plain", "application/octet-stream", "video/mp2t"])
def registry(request: pytest.FixtureRequest) -> Generator[None]:
    """A machine that has content types of its own for all files, as the registry of many Windows machines has."""
    for suffix in (*EXPECTED, ".mjs"):
        mimetypes.add_type(request.param, suffix)
    yield
    mimetypes.init()


def http(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver")


@pytest.mark.parametrize(("app", "url"), EACH)
async def test_every_file_has_its_own_content_type_whatever_the_machine_says(
    app: ASGIApp, url: str, registry: None
) -> None:
    async with http(app) as browser:
        for answer in (await browser.get(url), await browser.head(url)):
            assert answer.status_code == 200
            assert answer.headers["content-type"] == EXPECTED[Path(url).suffix]
            assert answer.headers["x-content-type-options"] == "nosniff"
        part = await browser.get(url, headers={"Range": "bytes=0-9"})
        assert (part.status_code, part.headers["content-type"]) == (206, EXPECTED[Path(url).suffix])
        again = await browser.get(url, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, "content-type" in again.headers) == (304, False)
        assert again.headers["x-content-type-options"] == "nosniff"


async def test_the_page_of_the_example_is_html_whatever_the_machine_says(registry: None) -> None:
    async with http(chat.app) as browser:
        answer = await browser.get("/")
        assert answer.headers["content-type"] == EXPECTED[".html"]


async def test_answers_that_are_no_files_are_not_sniffed_either() -> None:
    async with http(Channels([])) as browser:
        for path in ("/websocket", "/nothing", "/channels.js/x"):
            assert (await browser.get(path)).headers["x-content-type-options"] == "nosniff"
