"""The devices of these tests, and their limit of time.

Each test runs on the processor, so that it is known to work, and on a GPU if there is one; there with all methods.
``make gpu`` runs them on the GPU only, in this order: methods, commands, graphs, resuming, the suite. With
STEPPE_GPU_SECONDS the tests that would begin later are skipped; with STEPPE_GPU_PART=0/4 a quarter of all runs.
"""

import os
import time
from collections.abc import Iterator

import pytest
import torch

from steppe import methods
from steppe.config.run import WORKSPACE

os.environ.setdefault(*WORKSPACE)
ON_GPU = torch.cuda.is_available()
DEVICES = ([] if ON_GPU and os.environ.get("STEPPE_GPU_ONLY") else ["cpu"]) + (["cuda"] if ON_GPU else [])
FEW = ("sam", "esam", "ema", "kdcl")  # on the processor: a perturbation, a choice of samples, a mean, two networks
_BEGAN = time.monotonic()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = set(metafunc.fixturenames) & {"name", "device"}
    if names == {"name", "device"} and not any(
        m.name == "parametrize" for m in metafunc.definition.iter_markers()
    ):
        cases = [(d, n) for d in DEVICES for n in (methods.names() if d == "cuda" else FEW)]
        metafunc.parametrize(("device", "name"), cases)
    elif "device" in names:
        metafunc.parametrize("device", DEVICES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if "/gpu/" in str(item.path)]
    for item in ours:
        item.add_marker(pytest.mark.slow)
    if part := os.environ.get("STEPPE_GPU_PART"):
        number, parts = map(int, part.split("/"))
        items[:] = ours[number::parts]


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    # only `make gpu` sets a limit, and counts what it skipped in the table that it writes
    limit = float(os.environ.get("STEPPE_GPU_SECONDS", "inf"))
    if time.monotonic() - _BEGAN > limit:
        pytest.skip(f"{limit:.0f} s are over")
    yield
    if ON_GPU:
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def _on_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPU from what runs on the processor."""
    if request.node.callspec.params.get("device") == "cpu" and ON_GPU:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
