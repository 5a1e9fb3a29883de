"""The public CIFAR-10 program restated: it is what the recipe says, learns, and resumes with the same bits."""

import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.restated import airbench94
from steppe import methods
from steppe.config import recipes
from steppe.core.schedules import TrainingProgress, value_at
from steppe.training.optimizers import learning_rate


def colours(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy images of two colours."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    return torch.randn(count, 3, 32, 32, generator=g) + 3 * torch.stack([y, -y, 1 - y], 1)[:, :, None, None], y


def trained(out: Path, epochs: float) -> dict:
    out.mkdir(exist_ok=True)
    options = Namespace(seed=1, batch=16, epochs=epochs, bf16=False)
    return airbench94.train(options, [*colours(48, 0), *colours(20, 1)], out)


def test_it_learns_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    whole = trained(tmp_path / "whole", 2.5)
    assert whole["steps"] == 8 and set(whole["test"]) == set(airbench94.VIEWS)
    losses = [float(text) for text in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0] - 0.3
    save = torch.save

    def stopped(content: dict, path: Path) -> None:
        if content["epoch"] == 2:
            raise KeyboardInterrupt
        save(content, path)

    monkeypatch.setattr(torch, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", 2.5)
    monkeypatch.undo()
    trained(tmp_path / "parts", 2.5)
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["net"] for name in ("whole", "parts")]
    assert all(map(torch.equal, states[0].values(), states[1].values()))


def test_the_recipe_has_its_settings() -> None:
    run = recipes.load("cifar10-fast").choose(["record"], {"dataset": "cifar10:x"}).run()
    total, optim = 480, run.optim
    rate = learning_rate(run, total)
    for step in range(total):
        assert rate(step / total) == pytest.approx(airbench94.LR * airbench94.rate_share(step, total), rel=0.01)
    alpha = methods.parse(run.label).alpha
    for step in range(5, total + 1, 5):
        now = TrainingProgress(step, step / total, 1.0)
        assert 1 - value_at(alpha, now) == pytest.approx(airbench94.average_weight(step, total), abs=1e-9)
    assert optim.lr * optim.weight_decay == pytest.approx(airbench94.DECAY)
    assert (optim.momentum, optim.nesterov, optim.label_smoothing) == (
        airbench94.MOMENTUM,
        True,
        airbench94.SMOOTHING,
    )
    assert optim.rate_factors == {"norm": airbench94.BIAS_FACTOR} and run.batch == airbench94.BATCH
