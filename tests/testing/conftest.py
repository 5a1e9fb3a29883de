from __future__ import annotations

from collections.abc import Iterator

import pytest

from steppe.testing import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """One pool of processes and one compiled network for all tests."""
    with Lab(timeout=60) as lab:
        yield lab
