"""A real Chromium for the report's tests: the installed one, headless, with a new profile."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser that STEPPE_CHROMIUM names or that is installed; skip the test without one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    paths = [os.environ.get("STEPPE_CHROMIUM"), *map(shutil.which, NAMES)]
    path = next((path for path in paths if path), None)
    if path is None:
        pytest.skip("no Chromium is installed; name one in STEPPE_CHROMIUM")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


class Visit:
    """An open page, the messages of its console and the addresses that it requested."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def compare(self, mode: str, where: int = 0) -> None:
        """Use the switch of the table (0) or of the curves (1)."""
        self.page.locator(f'input[data-name="compare"][value="{mode}"]').nth(where).check()

    def column(self, key: str) -> list[str]:
        """Return the visible table's column as text, the first line of each cell."""
        script = """key => {
            const table = document.querySelector('.mode:not([hidden]) table');
            const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.dataset.key === key);
            return [...table.tBodies[0].rows].map(row => row.cells[at].innerText.trim().split('\\n')[0]);
        }"""
        texts: list[str] = self.page.evaluate(script, key)
        return texts
