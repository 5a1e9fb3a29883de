"""Runs with several optimizers, with schedule-free ones, and with classes of the user."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from support.interrupted import assert_same_run, fit, stopped
from torch import nn

from steppe import InputError, models
from steppe.config import Data, Optim, Run, user_code
from steppe.core.optimizers.joint import JointOptimizer
from steppe.data.loader import evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.training.export import export
from steppe.training.factories import make_optimizer
from steppe.training.run import load_data
from steppe.training.trainer import Trainer

DATA = Data(train=100, test=60, size=18)


def run(method: str = "sam", **options) -> Run:
    return Run(method=method, epochs=3, batch=50, data=DATA, optim=Optim(**options))


@pytest.fixture(scope="module")
def images():
    return load_data(run())


MUON = {"name": "muon+adamw", "lr": 1e-3, "schedule": "wsd", "decay": "matrices", "layer_decay": 0.9}
FREE = {"name": "schedulefree-adamw", "lr": 5e-3, "schedule": "constant"}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), [("sam", MUON), ("rwp", FREE)], ids=["muon", "schedule-free"])
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(tmp_path, images, method, options):
    pytest.importorskip("schedulefree")
    whole = fit(run(method, **options), tmp_path / "a", images)
    stopped(run(method, **options), tmp_path / "b", images, epoch=2)
    assert_same_run(whole, fit(run(method, **options), tmp_path / "b", images))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["best", "last"])
def test_exported_weights_of_a_schedule_free_run_evaluate_as_reported(tmp_path, images, which):
    pytest.importorskip("schedulefree")
    config = run("sam", **FREE | {"name": "schedulefree-sgd", "lr": 0.3})
    result, folder = fit(config, tmp_path, images)
    export(folder, tmp_path / "flat", which=which)
    net = models.build(config.model, classes=len(images.classes), channels=images.channels, size=images.size)
    net.load_state_dict(load_file(tmp_path / "flat" / "model.safetensors"))
    normalize = Normalizer.of(config.data.normalize, images.train)
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(net.eval()(b.x), b.y, reduction="sum")
            for b in evaluation_batches(images.test, 500, normalize)
        ]
    assert float(sum(losses)) / len(images.test) == pytest.approx(result["test"][which]["loss"], rel=1e-4)


def test_each_optimizer_has_its_parameters_settings_and_rate(images):
    settings = {"muon.ns_steps": 3, "adamw.betas": [0.8, 0.95], "adamw.lr": 5e-4}
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    joint = make_optimizer(run(**MUON | {"settings": settings, "layer_decay": 1.0}), net)
    assert isinstance(joint, JointOptimizer) and [type(o).__name__ for o in joint.optimizers] == ["Muon", "AdamW"]
    muon, matrices, vectors = joint.param_groups
    assert muon["params"] == [net[0].weight] and muon["ns_steps"] == 3 and "lr_scale" in muon
    assert matrices["params"] == [net[2].weight] and matrices["betas"] == (0.8, 0.95)
    assert (matrices["lr_scale"], vectors["lr_scale"], vectors["weight_decay"]) == (0.5, 0.5, 0.0)
    alone = make_optimizer(run(name="torch.optim:NAdam", settings={"momentum_decay": 0.01}), net)
    assert alone.param_groups[0]["momentum_decay"] == 0.01
    for options, message in (
        ({"name": "torch.optim:NoSuch"}, "give an importable module:Class"),
        ({"name": "torch.optim:SGD", "settings": {"lr": "a"}}, "optim.settings has lr=a; give a number"),
        ({"name": "torch.optim:Optimizer"}, "refuses its settings"),
        ({"name": "torch.optim:Optimizer", "lr": 0.1}, "optim.lr is 0.1 and torch.optim:Optimizer takes none"),
        ({"name": "math:sqrt"}, "code that only a file names"),
        ({"name": "torch.optim:Rprop", "weight_decay": 0.1}, "takes none"),
        ({"settings": {"betaz": 1}}, "unknown setting of adam 'betaz'; did you mean 'betas'"),
    ):
        with pytest.raises(InputError, match=message):
            make_optimizer(run(**options), net)


def test_a_rate_that_would_change_nothing_is_refused():
    net = nn.Linear(6, 3)
    own = "rates:own"
    with user_code.registered({("optimizer", own): lambda parameters: torch.optim.SGD(parameters, lr=0.3)}):
        for lr in (Optim.lr, 0.3):
            (group,) = make_optimizer(run(name=own, lr=lr), net).param_groups
            assert group.get("lr_scale", 1.0) * lr == pytest.approx(0.3)
        with pytest.raises(
            InputError, match="optim.lr is 0.7 and optimizer rates:own has its own learning rate, 0.3"
        ):
            make_optimizer(run(name=own, lr=0.7), net)
    any_setting = lambda parameters, **settings: torch.optim.SGD(parameters, **settings)  # noqa: E731
    with user_code.registered({("optimizer", own): any_setting}):
        assert make_optimizer(run(name=own, lr=0.7), net).param_groups[0]["lr"] == 0.7


def test_a_class_with_a_rate_of_its_own_keeps_it_under_a_schedule():
    class Own(torch.optim.SGD):
        def __init__(self, params, gamma=0.5):
            super().__init__(params, lr=gamma)

    class Any(torch.optim.SGD):
        def __init__(self, params, **settings):
            super().__init__(params, **({"lr": 0.5} | settings))

    net = nn.Linear(6, 3)
    for cls, options, rate in (
        (Own, {}, 0.5),
        (Own, {"settings": {"gamma": 0.2}}, 0.2),
        (Any, {}, 0.5),
        (Any, {"lr": 0.3}, 0.3),
    ):
        with user_code.registered({("optimizer", "rates:own"): cls}):
            optimizer = make_optimizer(run(name="rates:own", **options), net)
        base = options.get("lr", Optim.lr)
        trainer = SimpleNamespace(lr_at=lambda share, base=base: base / 2, share=0.5, optimizer=optimizer)
        assert Trainer._set_lr(trainer) == optimizer.param_groups[0]["lr"] == pytest.approx(rate / 2)


@pytest.mark.slow
def test_an_export_imports_no_optimizer_of_the_user(tmp_path, images, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_optimizer.py").write_text("from torch.optim import RMSprop\nclass Own(RMSprop):\n    pass\n")
    monkeypatch.syspath_prepend(str(folder))
    with user_code.registered({("optimizer", "own_optimizer:Own"): user_code.load("own_optimizer:Own")}):
        _, record = fit(run("plain", name="own_optimizer:Own+adamw", lr=1e-3), tmp_path, images)
    Path(folder / "own_optimizer.py").write_text("raise SystemExit('imported')\n")
    sys.modules.pop("own_optimizer")
    export(record, tmp_path / "flat")
    assert "own_optimizer" not in sys.modules


def test_factors_of_the_rate_leave_the_decay_of_a_step():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    with torch.no_grad():
        net[1].bias += 0.5
    lr, decay, factors = 0.1, 0.02, {"norm": 64, "1.bias": 0.5, "last:1": 10}
    optimizer = make_optimizer(run(name="sgd", lr=lr, momentum=0, weight_decay=decay, lr_factors=factors), net)
    Trainer._set_lr(SimpleNamespace(lr_at=lambda share: lr, share=0.0, optimizer=optimizer))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net(torch.randn(4, 6).double()).square().sum().backward()
    optimizer.step()
    for name, p in net.named_parameters():
        factor = {"1.weight": 64, "1.bias": 32, "2.weight": 10, "2.bias": 10}.get(name, 1)
        after = before[name] - lr * factor * p.grad - lr * decay * before[name]
        assert torch.allclose(p.detach(), after, rtol=1e-12, atol=1e-14), name
    with pytest.raises(InputError, match="optim.lr_factors has hedd=2 and no trainable parameter is that"):
        make_optimizer(run(name="sgd", lr_factors={"hedd": 2}), net)
    joint = make_optimizer(run(**MUON | {"lr_factors": {"bias": 3}}), net)
    assert {g["lr_scale"] for g in joint.param_groups if any(p is net[0].bias for p in g["params"])} == {
        3 * 0.9**2
    }
