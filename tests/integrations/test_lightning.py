"""A Lightning trainer with the callback: its own loop where the method is plain, a bound loop where it is not."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.many import farthest, smooth_net, together
from support.small import small_batch, small_net
from torch import Tensor, nn

import steppe

lightning = pytest.importorskip("lightning")

import torchmetrics  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from lightning.pytorch.plugins.environments import TorchElasticEnvironment  # noqa: E402

from steppe.integrations.lightning import SteppeCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


class Module(lightning.LightningModule):
    """A classifier that logs, counts its calls, and follows a schedule."""

    def __init__(self, net: nn.Module | None = None, as_dict: bool = False):
        super().__init__()
        self.net = small_net(dropout=0.0) if net is None else net
        self.accuracy = torchmetrics.MeanMetric()
        self.as_dict, self.calls = as_dict, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.calls += 1
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.accuracy(logits.argmax(1) == y)
        self.log("loss", loss, on_epoch=True, on_step=False)
        self.log_dict({"samples": float(len(y))}, on_epoch=True, on_step=False, reduce_fx="sum")
        self.log("accuracy", self.accuracy, on_epoch=True, on_step=False)
        return {"loss": loss, "extra": 1} if self.as_dict else loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9), "interval": "step"}]


def loader(count: int = 44, size: int = 8) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*small_batch(count=count)), size)


def fit(module: Any, *callbacks: Any, resume: Path | None = None, data: Any = None, **settings: Any) -> Any:
    quiet = {
        "enable_checkpointing": False,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    settings = {"max_epochs": 2, "accelerator": "cpu", "devices": 1} | quiet | settings
    trainer = lightning.Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module, data or loader(), ckpt_path=resume)
    return trainer


def weights(module: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in [*module.net.parameters(), *module.net.buffers()]]


def bound(method: Any, group: int, **options: Any) -> nn.Module:
    """Train by hand: the same batches, ``group`` of them in a step."""
    net = small_net(dropout=0.0)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    batches = list(loader())
    step = method.bind(net, optimizer, **options)
    for _ in range(2):
        for i in range(0, len(batches), group):
            step([tuple(pair) for pair in batches[i : i + group]])
            scheduler.step()
    return Module(net)


def same(a: nn.Module, b: nn.Module, atol: float = 1e-6) -> bool:
    return all(torch.allclose(s, t, atol=atol) for s, t in zip(weights(a), weights(b), strict=True))


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": 0.5}, {"precision": "bf16-mixed"}], ids=str)
def test_plain_is_lightning_s_own_loop(settings, as_dict):
    own, mine = Module(as_dict=as_dict), Module(as_dict=as_dict)
    theirs = fit(own, **settings)
    trainer = fit(mine, SteppeCallback(steppe.Plain()), **settings)
    assert same(own, mine)
    assert trainer.global_step == theirs.global_step == 12
    assert trainer.optimizers[0].param_groups[0]["lr"] == theirs.optimizers[0].param_groups[0]["lr"]
    for name, value in theirs.callback_metrics.items():
        assert torch.allclose(trainer.callback_metrics[name], value, atol=1e-5), name


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_sam_is_the_bound_loop_with_its_micro_batches_replayed(group, precision):
    module = Module()
    settings = {"accumulate_grad_batches": group, "gradient_clip_val": 0.5, "precision": precision}
    trainer = fit(module, SteppeCallback(steppe.SAM(rho=0.2)), **settings)
    usual = {"32-true": "fp32", "bf16-mixed": "bf16"}[precision]
    assert same(module, bound(steppe.SAM(rho=0.2), group, clip=0.5, precision=usual))
    assert trainer.global_step == 2 * -(-6 // group)
    assert module.calls == 2 * 12
    assert not same(module, bound(steppe.Plain(), group, clip=0.5, precision=usual), atol=1e-3)


@pytest.mark.parametrize(
    ("method", "m"),
    [
        (steppe.SAM(rho=0.5), None),
        (steppe.SAM(rho=0.5), 4),
        (steppe.RWP(gamma=0.1), None),
        (steppe.RWP(gamma=0.1), 4),
        (steppe.TwoStep(), None),
    ],
    ids=str,
)
def test_training_step_logs_each_sample_once(method, m):
    module, usual = Module(), steppe.Plain()
    trainer = fit(module, SteppeCallback(method, bind={"m": m}), max_epochs=1)
    assert trainer.callback_metrics["samples"] == 44
    assert module.calls == 2 * (6 if m is None else 11)
    # at a learning rate of 0 the clean passes are those of plain training, whatever else the method looked at
    still = [Module(), Module()]
    for one in still:
        one.configure_optimizers = lambda one=one: torch.optim.SGD(one.parameters(), 0.0)
    found = [
        fit(one, SteppeCallback(kind, bind={"m": m}), max_epochs=1).callback_metrics
        for one, kind in zip(still, (method, usual), strict=True)
    ]
    for name in ("loss", "accuracy"):
        assert torch.allclose(found[0][name], found[1][name], atol=1e-6), name


@pytest.mark.parametrize("method", [steppe.RWP(gamma=0.05), steppe.LookSAM(rho=0.1, k=3)], ids=str)
def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path, method):
    whole, first, second = Module(), Module(), Module()
    fit(whole, SteppeCallback(method), max_epochs=3)
    saver = ModelCheckpoint(tmp_path, filename="last")
    fit(first, SteppeCallback(method), saver, max_epochs=1, enable_checkpointing=True)
    resumed = SteppeCallback(method)
    fit(second, resumed, max_epochs=3, resume=tmp_path / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    assert resumed.step.passes.steps == 18
    with pytest.raises(steppe.InputError, match="belongs to"):
        fit(Module(), SteppeCallback(steppe.SAM()), max_epochs=3, resume=tmp_path / "last.ckpt")


def test_a_method_with_losses_of_its_own_takes_forward():
    module = Module()
    fit(module, SteppeCallback(steppe.make("sadt-v1"), loss=F.cross_entropy))
    assert module.calls == 0
    assert same(module, bound(steppe.make("sadt-v1"), 1, loss=F.cross_entropy))
    for name in ("saf", "sadt-v1", "esam"):
        for as_dict in (False, True):
            with pytest.raises(steppe.InputError, match="computes losses itself.*give the callback loss="):
                fit(Module(as_dict=as_dict), SteppeCallback(name))


class Validated(Module):
    """Remembers which weights it was looked at with."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, list[Tensor]] = {}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["validation"] = weights(self)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["test"] = weights(self)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen["predict"] = weights(self)
        return self(batch[0])


def test_what_is_evaluated_is_what_the_method_deploys():
    """The mean of EMA, as a bound loop has it; after each look training goes on with its own weights."""
    module, plain = Validated(), Module()
    fit(plain)
    callback = SteppeCallback("ema:decay=0.5")
    quiet = {"enable_checkpointing": False, "logger": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[callback], enable_model_summary=False, **quiet
    )
    trainer.fit(module, loader(), loader())
    trainer.test(module, loader(), verbose=False)
    found = torch.cat(trainer.predict(module, loader()))
    assert same(module, plain, atol=0)
    with callback.step.deployed_weights():
        mean = weights(module)
    assert not same(module, nn_with(mean), atol=1e-3)
    for where in ("validation", "test", "predict"):
        assert all(torch.equal(a, b) for a, b in zip(module.seen[where], mean, strict=True)), where
    assert torch.allclose(found, callback.step.predict(loader().dataset.tensors[0]), atol=1e-6)


def nn_with(values: list[Tensor]) -> Module:
    other = Module()
    with torch.no_grad():
        for t, value in zip([*other.net.parameters(), *other.net.buffers()], values, strict=True):
            t.copy_(value)
    return other


def test_a_method_that_builds_what_is_trained_is_refused_at_once():
    with pytest.raises(steppe.InputError, match="DML builds what is trained.*use steppe train"):
        SteppeCallback(steppe.DML())
    with pytest.raises(steppe.InputError, match="method is of type dict; give steppe.SAM"):
        SteppeCallback({"rho": 0.1})


def test_the_module_is_left_as_it_was():
    module = Module()
    names = set(vars(module))
    fit(module, SteppeCallback(steppe.SAM()))
    assert set(vars(module)) <= names | {"_hparams"}  # Lightning's own
    before = weights(module)
    again = copy.deepcopy(module)
    fit(again, max_epochs=1)
    assert again.calls == module.calls + 6
    assert all(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))


class Named(Module):
    """Takes batches of another structure, and no number with them."""

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(self(batch["images"]["left"]), batch["y"])


def test_any_structure_of_batches_is_cut_into_rows():
    data = loader().dataset
    named = [{"images": {"left": x}, "y": y} for x, y in data]
    module = Named()
    options = {"microbatch": 3, "m": None}
    fit(module, SteppeCallback(steppe.SAM(rho=0.2), bind=options), data=torch.utils.data.DataLoader(named, 8))
    assert same(module, bound(steppe.SAM(rho=0.2), 1, microbatch=3))


def test_a_loss_scale_of_lightning_s_is_the_step_s(tmp_path):
    def plugin() -> Any:
        return MixedPrecision(
            "16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=4)
        )

    module, callback = Module(), SteppeCallback(steppe.SAM(rho=0.2))
    trainer = fit(module, callback, ModelCheckpoint(tmp_path), plugins=[plugin()], enable_checkpointing=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=4)
    assert same(module, bound(steppe.SAM(rho=0.2), 1, precision="fp16", scaler=scaler))
    held = trainer.precision_plugin.scaler
    assert held is callback.step.scaler
    assert held.get_scale() == scaler.get_scale() < 2.0**40  # steps that overflowed were skipped
    assert callback.step.passes.updates < 12


def of_process(rank: int, folder: str) -> tuple[list[Tensor], int, int]:
    """Train, and go on from the middle; return the weights, the steps and the calls of the first part."""
    warnings.simplefilter("ignore")
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    data = loader(48, 4).dataset
    rows = torch.utils.data.DistributedSampler(data, 2, rank, shuffle=False)
    settings: dict[str, Any] = {"strategy": "ddp", "devices": 2, "plugins": [TorchElasticEnvironment()]}
    settings |= {"data": torch.utils.data.DataLoader(data, 4, sampler=rows), "use_distributed_sampler": False}
    sam, whole, first, second = (Module(smooth_net()) for _ in range(4))
    trainer = fit(sam, SteppeCallback(steppe.SAM(rho=0.2), bind={"sync": "global"}), **settings)
    rwp = steppe.RWP(gamma=0.05)
    fit(whole, SteppeCallback(rwp), **settings)
    saver = ModelCheckpoint(folder, filename="last")
    fit(first, SteppeCallback(rwp), saver, **settings | {"max_epochs": 1, "enable_checkpointing": True})
    fit(second, SteppeCallback(rwp), resume=Path(folder) / "last.ckpt", **settings)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    return weights(sam), trainer.global_step, sam.calls


def test_two_processes_train_as_one_and_go_on(tmp_path):
    found = together(2, of_process, str(tmp_path))
    alone = Module(smooth_net())
    fit(alone, SteppeCallback(steppe.SAM(rho=0.2)), data=loader(48, 8))
    for weights_of_process, steps, calls in found:
        assert farthest(weights_of_process, weights(alone)) < 1e-6
        assert steps == 12 and calls == 24
    # one process cannot take up what two remember
    with pytest.raises(steppe.InputError, match="written by 2 processes"):
        fit(Module(smooth_net()), SteppeCallback(steppe.RWP(gamma=0.05)), resume=tmp_path / "last.ckpt")


class Two(Module):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(p, 0.1) for p in (self.net[0].parameters(), self.net[1].parameters())]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("refused before the first step")


class Manual(Module):
    automatic_optimization = False


class Watching(Module):
    def on_after_backward(self) -> None:
        pass


class Silent(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Manual, {}, "automatic_optimization is False"),
        (Watching, {}, "on_after_backward is overridden"),
        (Silent, {}, "this one returned NoneType"),
        (Module, {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, "gradient_clip_algorithm is"),
        (Module, {"precision": "16-true"}, "precision is '16-true'"),
    ],
)
def test_what_cannot_be_trained_is_said(kind, settings, message):
    with pytest.raises(steppe.InputError, match=message):
        fit(kind(), SteppeCallback(steppe.SAM()), **settings)


def test_several_optimizers_are_refused():
    with pytest.raises(Exception, match="optimizers") as refused:
        fit(Two(), SteppeCallback(steppe.SAM()))
    assert isinstance(refused.value, steppe.InputError) or "multiple optimizers" in str(refused.value)
