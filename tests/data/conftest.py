"""A cache of its own for every test."""

import pytest

from steppe.data.sources import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPPE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def mapped_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache maps every data set, as it does large ones."""
    monkeypatch.setattr(cache, "SMALL", 0)
