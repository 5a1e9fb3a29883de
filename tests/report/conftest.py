"""Synthetic comparisons on disk, and the browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browsing import chromium
from support.recorded import Folder, grid


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return an empty folder to build in."""
    return Folder(tmp_path)


@pytest.fixture
def full(folder: Folder) -> Folder:
    """Return the folder of nine methods and three seeds, written."""
    grid(folder)
    folder.write()
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser
