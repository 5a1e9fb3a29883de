"""Synthetic comparisons on disk, each in a folder of its test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.recorded import Folder, grid


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return an empty folder to build in."""
    return Folder(tmp_path)


@pytest.fixture
def double(folder: Folder) -> Folder:
    """Return the folder of nine methods on two data sets, written."""
    for dataset in ("digits", "cifar10"):
        grid(folder, dataset)
    folder.write()
    return folder


@pytest.fixture
def full(folder: Folder) -> Folder:
    """Return the folder of nine methods and three seeds, written."""
    grid(folder)
    folder.write()
    return folder
