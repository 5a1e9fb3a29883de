from __future__ import annotations

from collections.abc import Iterator

import pytest

from steppe.testing import CheckContext


@pytest.fixture(scope="session")
def lab() -> Iterator[CheckContext]:
    """One pool of processes and one compiled network for all tests."""
    with CheckContext(timeout=60) as lab:
        yield lab
