"""A Lightning module that calls ``self.step``: a bound loop with Lightning's logs and checkpoints."""

import contextlib
import os
import pickle
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

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins.environments import TorchElasticEnvironment  # noqa: E402

from steppe.integrations import load_deployed  # noqa: E402
from steppe.integrations.lightning import SteppeMixin  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Usual(lightning.LightningModule):
    """A classifier trained by Lightning; it remembers the weights that it is evaluated with."""

    def __init__(self, net: nn.Module | None = None):
        super().__init__()
        self.net = small_net(dropout=0.0) if net is None else net
        self.evaluated: list[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def log_step(self, loss: Tensor, batch: list[Tensor]) -> Tensor:
        self.log_dict(
            {"loss": loss, "samples": 1.0 * len(batch[1])}, on_epoch=True, on_step=False, reduce_fx="sum"
        )
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.log_step(F.cross_entropy(self(batch[0]), batch[1]), batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int = 0) -> None:
        self.evaluated.append(weights(self))

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9), "interval": "step"}]


class Ours(SteppeMixin, Usual):
    """The same, trained by a method."""

    def __init__(self, method: Any, net: nn.Module | None = None, **bind_options: Any):
        super().__init__(net)
        self.method, self.bind_options = method, bind_options

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log_step(self.step(*batch).loss, batch)
        self.lr_schedulers().step()


def loader(count: int = 44, size: int = 8) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*small_batch(count=count)), size)


def fit(module: Any, resume: Path | None = None, data: Any = None, val: Any = None, **settings: Any) -> Any:
    trainer = lightning.Trainer(**QUIET | {"max_epochs": 2, "accelerator": "cpu", "devices": 1} | settings)
    trainer.fit(module, data or loader(), val, ckpt_path=resume)
    return trainer


def saving(folder: Any, **when: Any) -> dict[str, Any]:
    return {"callbacks": [ModelCheckpoint(folder, filename="last", **when)], "enable_checkpointing": True}


def weights(module: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in module.state_dict().values()]


def test_plain_is_lightning_s_own_loop():
    usual, ours = Usual(), Ours("plain", clip=0.5)
    theirs, trainer = fit(usual, gradient_clip_val=0.5), fit(ours)
    assert farthest(weights(usual), weights(ours)) < 1e-6
    assert trainer.global_step == theirs.global_step == 12
    assert trainer.optimizers[0].param_groups[0]["lr"] == theirs.optimizers[0].param_groups[0]["lr"]
    for name, value in theirs.callback_metrics.items():
        assert torch.allclose(trainer.callback_metrics[name], value, rtol=1e-5), name


def test_steps_are_those_of_a_bound_loop_and_each_fit_binds_anew():
    options: dict[str, Any] = {"microbatch": 3, "clip": 0.5, "precision": "bf16"}
    method, module, other = steppe.SADT(), Ours(steppe.SADT(), **options), Usual()
    trainer = fit(module)
    [optimizer], [schedule] = other.configure_optimizers()
    step = method.bind(other.net, optimizer, **options)
    for batch in [*loader(), *loader()]:
        step(*batch)
        schedule["scheduler"].step()
    assert farthest(weights(module), weights(other)) == 0
    assert trainer.callback_metrics["samples"] == 44  # logged once, whatever the number of passes
    assert trainer.global_step == module.step.passes.updates == step.passes.updates == 24
    for again in (pickle.loads(pickle.dumps(module)), module):
        fit(again, max_epochs=1)
        assert again.step.passes.steps == 6


@pytest.mark.parametrize("method", [steppe.RWP(gamma=0.05), steppe.EMA(decay=0.9)], ids=repr)
def test_a_checkpoint_resumes_bitwise(tmp_path, method):
    whole, second = Ours(method), Ours(method)
    fit(whole, max_epochs=3)
    fit(Ours(method), max_epochs=1, **saving(tmp_path))
    fit(second, max_epochs=3, resume=tmp_path / "last.ckpt")
    assert farthest(weights(whole), weights(second)) == 0 and second.step.passes.steps == 18
    with pytest.raises(steppe.InputError, match="belongs to"):
        fit(Ours("sam"), max_epochs=3, resume=tmp_path / "last.ckpt")


def test_the_deployed_weights_are_evaluated_and_saved_with_the_trained_ones(tmp_path):
    module, plain = Ours("ema:decay=0.5"), Usual()
    fit(plain)
    trainer = fit(module, val=loader(8), **saving(tmp_path, save_on_train_epoch_end=False))  # after validation
    trainer.test(module, loader(8))
    trainer.predict(module, loader(8))
    assert farthest(weights(module), weights(plain)) < 1e-6
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert farthest(list(saved["steppe_trained"].values()), weights(module)) == 0
    with module.step.deployed_weights():
        mean = weights(module)
    assert farthest(list(saved["state_dict"].values()), mean) == 0
    assert farthest(mean, weights(module)) > 1e-3
    assert all(farthest(evaluated, mean) == 0 for evaluated in module.evaluated[-3:])
    fit(module, max_epochs=1)  # another training; the checkpoint has the mean of its own
    trainer.test(module, loader(8), ckpt_path=tmp_path / "last.ckpt")
    assert farthest(module.evaluated[-1], mean) == 0


def test_a_checkpoint_s_mean_is_evaluated_and_loaded_by_a_module_that_never_trained(tmp_path):
    method = "sam+ema:decay=0.9"
    module = Ours(method)
    fit(module, val=loader(8), **saving(tmp_path))
    with module.step.deployed_weights():
        mean = weights(module)
    path, processes = tmp_path / "last.ckpt", tmp_path / "two.ckpt"
    content = torch.load(path, weights_only=True)
    torch.save(content | {"steppe": content["steppe"] * 2}, processes)  # of two processes, evaluated by one
    trainer = lightning.Trainer(**QUIET, accelerator="cpu")
    for checkpoint in (path, processes):
        fresh = Ours(method)
        trainer.test(fresh, loader(8), ckpt_path=checkpoint)
        loaded = Ours.load_from_checkpoint(checkpoint, method=method)
        trainer.validate(loaded, loader(8))
        assert farthest(fresh.evaluated[-1], mean) == farthest(loaded.evaluated[-1], mean) == 0
        assert farthest(weights(loaded), mean) == 0 < farthest(weights(loaded), weights(module))
    load_deployed(loaded, method, path)
    assert farthest(weights(loaded), mean) == 0
    fit(fresh, max_epochs=1)  # starts anew, although the module has a checkpoint's state
    assert fresh.step.passes.steps == 6


class Failing(Ours):
    """Cannot evaluate."""

    def validation_step(self, batch: list[Tensor], batch_idx: int = 0) -> None:
        super().validation_step(batch)
        raise KeyError("here")

    test_step = predict_step = validation_step


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_an_exception_in_evaluation_restores_the_trained_weights(stage):
    module, plain = Failing("ema:decay=0.5"), Usual()
    fit(plain, max_epochs=1)
    with contextlib.ExitStack() as stack:
        if stage == "fit":
            stack.enter_context(pytest.raises(KeyError))
        trainer = fit(module, max_epochs=1, val=loader(8) if stage == "fit" else None, num_sanity_val_steps=0)
    if stage != "fit":
        with pytest.raises(KeyError):
            getattr(trainer, stage)(module, loader(8))
    assert farthest(module.evaluated[-1], weights(plain)) > 1e-3
    assert farthest(weights(module), weights(plain)) < 1e-6


class SavesFirst(lightning.Callback):
    """Saves a checkpoint before the first step."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.path)


def test_a_checkpoint_before_the_first_step_has_the_state_it_resumed_from(tmp_path):
    fit(Ours("ema"), max_epochs=1, **saving(tmp_path))
    again = tmp_path / "again.ckpt"
    module = Ours("ema")
    fit(module, resume=tmp_path / "last.ckpt", callbacks=[SavesFirst(again)])
    first, second = (torch.load(path, weights_only=True)["steppe"][0] for path in (tmp_path / "last.ckpt", again))
    assert first["passes"] == second["passes"] and first["passes"]["steps"] == 6
    assert all(torch.equal(first["state"][k], v) for k, v in second["state"].items())
    fit(module, max_epochs=1, callbacks=[SavesFirst(again)])
    assert "steppe" not in torch.load(again, weights_only=True)  # another training, which resumes nothing


class Skips(Ours):
    """Leaves out a batch, as Lightning lets it."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        if batch_idx != 2:
            super().training_step(batch, batch_idx)


def test_a_batch_may_be_skipped():
    module = Skips("sam")
    fit(module, max_epochs=1)
    assert module.step.passes.updates == 5


class Tuned(Ours):
    batch_size, lr = 4, 0.1

    def train_dataloader(self) -> Any:
        return loader(size=self.batch_size)

    def val_dataloader(self) -> Any:
        return loader()


@pytest.mark.slow
def test_the_tuner_finds_a_batch_size_and_no_learning_rate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the tuner writes a checkpoint
    module = Tuned("sam:rho=0.1")
    before = weights(module)
    tuner = lightning.pytorch.tuner.Tuner(lightning.Trainer(**QUIET | {"accelerator": "cpu", "max_epochs": 1}))
    assert tuner.scale_batch_size(module, max_trials=2, steps_per_trial=1) == 8
    assert all(map(torch.equal, before, weights(module)))
    with pytest.raises(steppe.InputError, match="^lr_find varies no learning rate"):
        tuner.lr_find(Tuned("sam"))


def of_process(rank: int, folder: str) -> tuple[list[Tensor], int]:
    """Train, and resume in the middle; return the weights and the updates."""
    warnings.simplefilter("ignore")
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    data = loader(48, 4).dataset
    rows = torch.utils.data.DistributedSampler(data, 2, rank, shuffle=False)
    settings: dict[str, Any] = {"strategy": "ddp", "devices": 2, "plugins": [TorchElasticEnvironment()]}
    settings |= {"data": torch.utils.data.DataLoader(data, 4, sampler=rows), "use_distributed_sampler": False}
    sam = Ours(steppe.SAM(rho=0.2), smooth_net(), sync="global")
    trainer = fit(sam, **settings)
    whole, first, second = (Ours(steppe.RWP(gamma=0.05), smooth_net()) for _ in range(3))
    fit(whole, **settings)
    fit(first, **settings | {"max_epochs": 1} | saving(folder))
    fit(second, resume=Path(folder) / "last.ckpt", **settings)
    assert farthest(weights(whole), weights(second)) == 0
    return weights(sam), trainer.global_step


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(tmp_path):
    alone = Ours(steppe.SAM(rho=0.2), smooth_net())
    fit(alone, data=loader(48, 8))
    for weights_of_process, updates in together(2, of_process, str(tmp_path)):
        assert farthest(weights_of_process, weights(alone)) < 1e-6 and updates == 12
    with pytest.raises(steppe.InputError, match="the checkpoint has 2 processes"):
        fit(Ours(steppe.RWP(gamma=0.05), smooth_net()), resume=tmp_path / "last.ckpt")


class TwoOptimizers(Ours):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(p, 0.1) for p in (self.net[0].parameters(), self.net[1].parameters())]


class WithHook(Ours):
    def on_after_backward(self) -> None:
        pass


class WithStep(Ours):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)


class WithBackward(Ours):
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()


class OnGradients(lightning.Callback):
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        pass


class Automatic(Ours):
    def __init__(self, method: Any):
        super().__init__(method)
        self.automatic_optimization = True


class WithModes(torch.optim.SGD):
    def eval(self) -> None:
        pass


class ScheduleFree(Ours):
    def configure_optimizers(self) -> Any:
        return WithModes(self.parameters(), 0.1)


class NeverSteps(Ours):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return Usual.training_step(self, batch, batch_idx)


class OwnCallbacks(Ours):
    def configure_callbacks(self) -> Any:
        return [OnGradients()]


@pytest.mark.parametrize(
    ("kind", "method", "settings", "message"),
    [
        (TwoOptimizers, "sam", {}, "configure_optimizers gives 2 optimizers"),
        (WithHook, "sam", {}, "on_after_backward is overridden in WithHook"),
        (WithStep, "sam", {}, "optimizer_step is overridden in WithStep"),
        (WithBackward, "sam", {}, "backward is overridden in WithBackward"),
        (Ours, "sam", {"callbacks": [OnGradients()]}, "on_after_backward is overridden in OnGradients"),
        (Automatic, "sam", {}, "automatic_optimization is True"),
        (ScheduleFree, "sam+ema", {}, "the optimizer averages the weights itself"),
        (NeverSteps, "sam", {}, "training_step returned a loss and did not call self.step"),
        (OwnCallbacks, "sam", {}, r"configure_callbacks is overridden; return \[\*super"),
        (Ours, None, {}, r"method is not set; set method = steppe.SAM\("),
        (Ours, "sam", {"precision": "bf16-mixed"}, "precision is 'bf16-mixed'.*bind_options"),
        (Ours, "dml", {}, "DML trains several networks"),
    ],
)
def test_what_cannot_be_trained_is_an_error(kind, method, settings, message):
    with pytest.raises(steppe.InputError, match=message):
        fit(kind(method), **settings)
