"""Training with deterministic algorithms: they are on while a run trains, and what has none is named."""

import os
from pathlib import Path

import pytest
import torch
from support.tiny_steppe import tiny

from steppe import InputError, hardware, models
from steppe.config import Data, Run
from steppe.training.run import load_data, train_run


def test_a_deterministic_run_uses_such_algorithms_only_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the processor its records are those of a run without; cuBLAS has its setting before the first product."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    data = Data(train=32, test=10, size=12)
    records = []
    for deterministic in (False, True):
        run = Run(method="sam", model="tiny", epochs=1, batch=16, data=data, deterministic=deterministic)
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
        enabled: list[bool] = []
        folder = tmp_path / run.digest()
        train_run(run, folder, load_data(run), lambda _, on=enabled: on.append(_flags()))
        assert enabled and set(enabled) == {deterministic} and not _flags()
        records.append((folder / "metrics.jsonl").read_text())
    assert records[0] == records[1]
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


def _flags() -> bool:
    return torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic


LACKS, LATE = "no_such_backward_cuda does not have a deterministic implementation, but", "CuBLAS (CUDA >= 10.2)"
CASES = [
    (LACKS, "no_such_backward_cuda has no"),
    (f"{LATE} CUBLAS_WORKSPACE_CONFIG=:4096:8", "start it with CUBLAS"),
]


@pytest.mark.parametrize(("message", "line"), CASES)
def test_an_operation_without_a_deterministic_algorithm_is_named(message: str, line: str) -> None:
    with pytest.raises(InputError, match=line), hardware.deterministic(True):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="another"), hardware.deterministic(True):
        raise RuntimeError("another error")
    assert not torch.are_deterministic_algorithms_enabled()
