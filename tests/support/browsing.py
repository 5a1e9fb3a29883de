"""A real Chromium for the report's tests: the one that is installed, headless, in a profile of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def executable() -> str | None:
    """Return the path of the installed browser; STEPPE_CHROMIUM names another."""
    found = [os.environ.get("STEPPE_CHROMIUM"), *map(shutil.which, NAMES)]
    return next((path for path in found if path), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser, or skip the test with the reason."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    path = executable()
    if path is None:
        pytest.skip("no Chromium is installed; name one in STEPPE_CHROMIUM")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


class Visit:
    """A page that is open, and all that it said and asked for."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def compare(self, mode: str, where: int = 0) -> None:
        """Turn the switch, of the table (0) or of the curves (1), by keyboard and mouse alike."""
        self.page.locator(f'input[data-name="compare"][value="{mode}"]').nth(where).check()

    def column(self, key: str) -> list[str]:
        """Return the shown table's column as text, its first line in each cell."""
        script = """key => {
            const table = document.querySelector('.mode:not([hidden]) table');
            const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.dataset.key === key);
            return [...table.tBodies[0].rows].map(row => row.cells[at].innerText.trim().split('\\n')[0]);
        }"""
        found: list[str] = self.page.evaluate(script, key)
        return found
