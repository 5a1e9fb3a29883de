"""The fast network: its whitening against its definition, its initialisation, and methods that train it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from steppe import models
from steppe.config import Data, Optim, Run, recipes
from steppe.models.cifar10_fast import GlobalMaxPool, Whitening
from steppe.training import run as engine
from steppe.training.factories import make_model

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


def test_the_recipe_is_this_network_with_a_short_schedule() -> None:
    run = recipes.load("cifar10-fast").choose([], {"dataset": "cifar10:somewhere", "method": "sadt-v1"}).run()
    assert (run.model, run.epochs, run.batch, run.optim.lr) == ("cifar10-fast", 10, 1024, 1.5)
    assert run.optim.lr_at(0.23) == pytest.approx(1.5, rel=0.15)
    assert run.optim.lr_at(0) == 0.3 and run.optim.lr_at(1) == pytest.approx(0.105)


def test_the_pool_over_all_positions_is_that_of_torch_also_where_maxima_are_equal() -> None:
    """On a GPU it has a deterministic gradient, unlike torch's; values and gradients are the same bits."""
    x = torch.randint(-2, 3, (4, 7, 2, 5)).relu().contiguous(memory_format=torch.channels_last)
    a, b = (x.float().requires_grad_() for _ in range(2))
    g, pools = torch.randn(4, 7, 1, 1), (nn.AdaptiveMaxPool2d(1)(a), GlobalMaxPool()(b))
    for pool in pools:
        pool.backward(g)
    assert torch.equal(*pools) and torch.equal(a.grad, b.grad)
