"""A real Chromium, that of the system."""

import contextlib
import os
import shutil
from collections.abc import Generator

import pytest
from playwright.sync_api import Browser, sync_playwright

OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MISSING = "there is no Chromium: install the package chromium of your system"


def find() -> str | None:
    """Return where it is, if it is there, as it must be in CI."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None and os.environ.get("CI"):
        pytest.fail(MISSING)
    return executable


@contextlib.contextmanager
def chromium(executable: str) -> Generator[Browser]:
    """Run it while the block runs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        yield browser
        browser.close()
