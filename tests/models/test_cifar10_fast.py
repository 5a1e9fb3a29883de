"""The fast network: its whitening against its definition, its initialisation, and methods that train it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from steppe import models
from steppe.config import Data, Optim, Run, recipes
from steppe.core.schedules import TrainingProgress
from steppe.models.cifar10_fast import GlobalMaxPool, Whitening
from steppe.training import run as engine
from steppe.training.evaluation import to_model_format
from steppe.training.factories import make_model
from steppe.training.trainer import Trainer

TINY = Data(train=40, val=10, test=10, size=12, augment=("flip", "crop"), normalize="standard")
RUN = Run(
    model="cifar10-fast",
    dataset="synthetic",
    epochs=1,
    batch=20,
    data=TINY,
    optim=Optim(name="sgd", lr=0.01, nesterov=True, label_smoothing=0.2),
)


def patches(x: torch.Tensor) -> torch.Tensor:
    """Every 2x2 patch of every image as a row, written out."""
    rows = []
    for i in range(x.shape[2] - 1):
        for j in range(x.shape[3] - 1):
            rows.append(x[:, :, i : i + 2, j : j + 2].reshape(len(x), -1))
    return torch.cat(rows).double()


def test_projections_of_the_images_have_unit_variance_in_every_direction() -> None:
    torch.manual_seed(0)
    smooth = nn.functional.interpolate(torch.randn(60, 3, 5, 5), size=(10, 10), mode="bilinear")
    x = smooth + 0.1 * torch.randn(60, 3, 10, 10) + 0.5
    layer = Whitening(3)
    layer.learn(x)
    out = layer(x).detach().permute(0, 2, 3, 1).reshape(-1, 24).double()
    moments = out[:, :12].T @ out[:, :12] / len(out)
    values = torch.linalg.eigvalsh(patches(x).T @ patches(x) / len(patches(x)))
    assert torch.allclose(moments, torch.diag(values / (values + 5e-4)), atol=1e-4)
    assert torch.equal(out[:, 12:], -out[:, :12])


def test_directions_are_set_from_the_training_images_and_are_no_parameters() -> None:
    images = engine.load_data(RUN)
    with torch.random.fork_rng():
        net = make_model(RUN, images)
    first = next(m for m in net.modules() if isinstance(m, Whitening))
    assert all("directions" not in name for name, _ in net.named_parameters())
    x = images.train.x.double() / 255
    mean, deviation = (f(dim=(0, 2, 3))[:, None, None] for f in (x.mean, lambda dim: x.std(dim, correction=0)))
    again = Whitening(3)
    again.learn(((x - mean) / deviation).float())
    assert torch.allclose(first.directions, again.directions, rtol=1e-3, atol=1e-3)


def test_added_convolutions_start_as_the_identity() -> None:
    net = models.build("cifar10-fast", classes=10, channels=3, size=32)
    x = torch.randn(2, 64, 6, 6)
    assert torch.allclose(net.get_submodule("group2.conv1")(x)[:, :64], x, atol=1e-6)


def test_outputs_are_those_of_its_layers_written_out() -> None:
    torch.manual_seed(0)
    net = models.build("cifar10-fast", classes=10, channels=3, size=32).double()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p) * p.requires_grad
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 1_971_352
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    weights = net.state_dict()
    h = nn.functional.gelu(nn.functional.conv2d(x, weights["whiten.directions"], weights["whiten.bias"]))
    for group, half in ((g, half) for g in (1, 2, 3) for half in (1, 2)):
        h = nn.functional.conv2d(h, weights[f"group{group}.conv{half}.weight"], padding=1)
        h = nn.functional.max_pool2d(h, 2) if half == 1 else h
        mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), keepdim=True, correction=0)
        bias = weights[f"group{group}.bn{half}.bias"][:, None, None]
        h = nn.functional.gelu((h - mean) / (var + 1e-12).sqrt() + bias)
        running = net.get_submodule(f"group{group}.bn{half}")
    assert torch.allclose(net(x), h.amax((2, 3)) @ weights["head.weight"].T / 9, rtol=1e-10, atol=1e-10)
    assert torch.allclose(running.running_mean, 0.4 * mean.flatten(), atol=1e-10)


@pytest.mark.parametrize("name", ["sadt-v1", "esam", "pcl", "okdph"])
def test_methods_of_every_kind_train_it(name: str, tmp_path: Path) -> None:
    result = engine.train_run(dataclasses.replace(RUN, method=name), tmp_path, engine.load_data(RUN))
    assert result["status"] == "ok", result["message"]
    assert result["steps"] == 2
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["train_loss"] > 0 for line in lines)


def test_the_recipe_has_the_numbers_of_the_record() -> None:
    """In the record's own units: the sum of a batch's losses, decay per step, 476 steps."""
    run = recipes.load("cifar10-fast").choose([], {"dataset": "cifar10:somewhere"}).run()
    sum_lr, decay = 11.5 / 1024 / (1 + 1 / (1 - 0.85)), 0.0153 / (1 + 1 / (1 - 0.85))
    assert (run.model, run.epochs, run.batch) == ("cifar10-fast", 10, 1024)
    assert run.optim.lr == pytest.approx(1024 * sum_lr) and run.optim.rate_factors == {"norm": 64}
    assert run.optim.lr * run.optim.weight_decay == pytest.approx(decay)
    for step in range(477):
        rise = step / 109 if step < 109 else 1.0
        fall = (step - 109) / 367 if step >= 109 else 0.0
        assert run.optim.lr_at(step / 476) / run.optim.lr == pytest.approx(
            0.2 + 0.8 * rise if step < 109 else 1 - 0.93 * fall, abs=4e-3
        )
    for t in (0, 100, 475):
        now = TrainingProgress(t, t / 476, 1.0)
        assert 1 - run.method.alpha.at(now) == pytest.approx(0.95**5 * (t / 476) ** 3)


def test_the_recipe_trains_by_the_rules_of_the_record(tmp_path: Path) -> None:
    """Two epochs in float64: the record's update on the sum of the losses, its groups, rates and look-ahead."""
    choice = recipes.load("cifar10-fast").choose([], {"dataset": "synthetic"})
    few = {"epochs": 2, "batch": 20, "precision": "fp64", "data.train": 120, "data.val": 10, "data.test": 10}
    run = dataclasses.replace(choice, values=choice.values | few | {"data.size": 12}).run()
    images = engine.load_data(run)
    with torch.random.fork_rng():
        trainer = Trainer(run, tmp_path, images)
        net = models.build("cifar10-fast", classes=10, channels=images.channels, size=12).double()
        net.load_state_dict(trainer.net.state_dict())
        trainer.train(lambda _: None)
    biases = [m.bias for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    others = [p for p in net.parameters() if p.requires_grad and all(p is not b for b in biases)]
    scale, batch, total = 1024 * (1 + 1 / (1 - 0.85)), 20, 12
    lr, decay = 1.5 / batch, 0.0153 * 1024 / scale  # of the sum; at this batch the recipe's rate is not scaled
    groups = [{"params": biases, "lr": 64 * lr, "weight_decay": decay / (64 * lr)}]
    groups += [{"params": others, "lr": lr, "weight_decay": decay / lr}]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.85, nesterov=True)
    slow = {k: v.clone() for k, v in net.state_dict().items()}
    for step, data in enumerate(b for epoch in (1, 2) for b in trainer.loader.epoch(epoch)):
        share = step / total
        rate = 0.2 + 0.8 * share / 0.23 if share < 0.23 else 1 - 0.93 * (share - 0.23) / 0.77
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 64 * lr * rate, lr * rate
        x = to_model_format(data, others[0]).x
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), data.y, label_smoothing=0.2, reduction="sum").backward()
        optimizer.step()
        if (step + 1) % 5 == 0:
            for name, value in net.state_dict().items():
                if value.is_floating_point():
                    slow[name].lerp_(value, 1 - 0.95**5 * share**3)
                    value.copy_(slow[name])
    assert step + 1 == total
    for name, value in trainer.net.state_dict().items():
        assert torch.allclose(value.double(), net.state_dict()[name].double(), rtol=1e-7, atol=1e-9), name


def test_the_pool_over_all_positions_is_that_of_torch_also_where_maxima_are_equal() -> None:
    """On a GPU it has a deterministic gradient, unlike torch's; values and gradients are the same bits."""
    x = torch.randint(-2, 3, (4, 7, 2, 5)).relu().contiguous(memory_format=torch.channels_last)
    a, b = (x.float().requires_grad_() for _ in range(2))
    g, pools = torch.randn(4, 7, 1, 1), (nn.AdaptiveMaxPool2d(1)(a), GlobalMaxPool()(b))
    for pool in pools:
        pool.backward(g)
    assert torch.equal(*pools) and torch.equal(a.grad, b.grad)
