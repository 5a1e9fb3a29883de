"""The loop of one run: train on each epoch's batches, validate, record, save, resume, and at the end test.

Everything random is derived from the run's seed and the epoch, so a run killed at any moment and started
again from its last checkpoint ends with the same bits. The test images are read twice, after training: with
the last weights and with those of the best validation epoch. No method is named here.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from steppe import checkpoint, machine, methods, models, records
from steppe.checkpoint import Checkpoint
from steppe.config import Run
from steppe.data.images import DataSet, Images
from steppe.data.loader import Loader, Normalizer, evaluation_batches
from steppe.errors import InputError
from steppe.method import Method
from steppe.step import Step

METRICS, TIMING, CHECKPOINT = "metrics.jsonl", "timing.jsonl", "checkpoint.safetensors"
EVALUATION_BATCH = 500
_SILENCE = 0.25  # seconds between two progress reports


@dataclass(frozen=True)
class Progress:
    """What a run tells while it trains; ``share`` is the part of its budget that is spent, 0 to 1."""

    epoch: int
    share: float
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float
    val_accuracy: float | None = None


Listener = Callable[[Progress], None]


class Failed(Exception):  # noqa: N818 - an outcome of training, caught in this file
    """Training cannot go on; the message goes into the table."""


@dataclass
class Trainer:
    """The state of one run between two checkpoints."""

    run: Run
    folder: Path
    images: DataSet
    epoch: int = 0
    seconds: float = 0.0
    skipped: int = 0
    best: dict[str, Any] | None = None
    val: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run = self.run
        self.loader = new_loader(run, self.images)
        self.normalize = Normalizer.of(run.data.normalize, self.images.train)
        self.method = methods.parse(run.method)
        torch.manual_seed(derive(run.seed, "init"))
        net = self.method.build(lambda: new_model(run, self.images)).to(machine.device())
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net.train()
        self.optimizer = _optimizer(run, self.net)
        self.step = self.method.bind(
            self.net,
            self.optimizer,
            clip=run.optim.clip,
            precision=run.precision,
            seed=derive(run.seed, "method"),
        )

    # -- training ----------------------------------------------------------------------------------------

    def train(self, listen: Listener) -> None:
        """Train until the budget is spent; raises Failed if a loss is not finite."""
        started, share_at_start = time.perf_counter(), self.share
        while self.share < 1:
            self.epoch += 1
            train = self._train_epoch(listen, started, share_at_start)
            self.val = evaluate(self.method, self.step, self.images.val, self.normalize)
            if not math.isfinite(self.val["loss"]):
                raise Failed(f"validation loss is not finite after step {self.steps} (epoch {self.epoch})")
            improved = self.best is None or _rank(self.val) > _rank(self.best)
            if improved:
                self.best = {"epoch": self.epoch, **self.val}
            self._record(train)
            self._save(improved)
            listen(self._progress(train, started, share_at_start, self.val["accuracy"]))

    def _train_epoch(self, listen: Listener, started: float, share_at_start: float) -> dict[str, float]:
        """Train on each batch once, or until the budget is spent; return the epoch's means."""
        torch.manual_seed(derive(self.run.seed, f"dropout {self.epoch}"))
        device = self.step.runtime.params[0].device
        loss, correct, count, spoke = 0.0, 0, 0, time.perf_counter()
        lr = self._set_lr()
        clock = time.perf_counter()
        for batch in self.loader.epoch(self.epoch):
            lr = self._set_lr()
            batch = batch.to(device)
            x = _layout(batch.x)
            out = self.step(type(batch)(x, batch.y, batch.index))
            if out.skipped:
                raise Failed(f"loss or gradient is not finite at step {self.steps} (epoch {self.epoch})")
            target = batch.y.argmax(1) if batch.y.ndim > 1 else batch.y
            loss += float(out.loss) * len(batch)
            correct += int((out.logits.argmax(1) == target).sum())
            count += len(batch)
            now = time.perf_counter()
            self.seconds, clock = self.seconds + now - clock, now
            if now - spoke > _SILENCE:
                spoke = now
                means = {"train_loss": loss / count, "train_accuracy": correct / count}
                listen(self._progress(means, started, share_at_start))
            if self.share >= 1:
                break
        return {"lr": lr, "train_loss": loss / count, "train_accuracy": correct / count}

    @property
    def steps(self) -> int:
        """Batches trained on."""
        return self.step.passes.steps

    @property
    def share(self) -> float:
        """The part of the budget that is spent: of epochs, of gradient evaluations or of seconds."""
        if self.run.match == "seconds":
            return self.seconds / (self.run.seconds or 1)
        spent = self.step.passes.backward if self.run.match == "gradients" else self.steps
        return spent / (self.run.epochs * len(self.loader))

    def _set_lr(self) -> float:
        lr = self.run.optim.lr
        if self.run.optim.schedule == "cosine":
            lr *= 0.5 * (1 + math.cos(math.pi * min(self.share, 1)))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _progress(
        self, means: dict[str, float], started: float, share_at_start: float, val: float | None = None
    ) -> Progress:
        gained = max(self.share - share_at_start, 1e-9)
        elapsed = time.perf_counter() - started
        rate = self.steps * self.run.batch / max(self.seconds, 1e-9)
        left = elapsed * (1 - min(self.share, 1)) / gained
        return Progress(
            self.epoch, min(self.share, 1), means["train_loss"], means["train_accuracy"], rate, left, val
        )

    # -- record, save, resume ----------------------------------------------------------------------------

    def _record(self, train: dict[str, float]) -> None:
        val = {f"val_{k}": v for k, v in self.val.items()}
        passes = self.step.passes
        counts = {"steps": passes.steps, "gradients": passes.backward, "skipped": self.skipped}
        line = {"epoch": self.epoch, "progress": min(self.share, 1), **train, **val, **counts}
        records.append_line(self.folder / METRICS, line)
        rate = self.steps * self.run.batch / max(self.seconds, 1e-9)
        times = {"epoch": self.epoch, "seconds": self.seconds, "images_per_second": rate}
        records.append_line(self.folder / TIMING, times)

    def _weights(self) -> dict[str, torch.Tensor]:
        net = checkpoint.prefixed("net", self.net.state_dict())
        return net | checkpoint.prefixed("state", self.step.state.state_dict())

    def _save(self, improved: bool) -> None:
        """Save the best weights, then the checkpoint that names them, then drop older best weights."""
        assert self.best is not None
        best = self.folder / _best_name(self.best["epoch"])
        if improved:
            checkpoint.write(best, Checkpoint(self._weights(), {"epoch": self.epoch}))
        own = self.step.state_dict()
        optimizer, optimizer_data = checkpoint.pack_optimizer(self.optimizer)
        tensors = (
            self._weights()
            | checkpoint.prefixed("optimizer", optimizer)
            | checkpoint.prefixed("generators", own["generators"])
        )
        content = {
            "digest": self.folder.name,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "best": self.best,
            "val": self.val,
            "method": own["method"],
            "passes": own["passes"],
            "optimizer": optimizer_data,
        }
        checkpoint.write(self.folder / CHECKPOINT, Checkpoint(tensors, content))
        for old in self.folder.glob(_best_name("*")):
            if old != best:
                old.unlink(missing_ok=True)

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if it has one, and forget what was recorded after it."""
        path = self.folder / CHECKPOINT
        if path.exists():
            saved = checkpoint.read(path)
            if saved.data["digest"] != self.folder.name:
                raise InputError(
                    f"checkpoint {path} belongs to run {saved.data['digest']}; delete it to start this run anew"
                )
            self._load_weights(saved)
            checkpoint.unpack_optimizer(self.optimizer, saved.part("optimizer"), saved.data["optimizer"])
            self.step.load_state_dict(
                {
                    "method": saved.data["method"],
                    "state": saved.part("state"),
                    "generators": saved.part("generators"),
                    "passes": saved.data["passes"],
                }
            )
            for name in ("epoch", "seconds", "skipped", "best", "val"):
                setattr(self, name, saved.data[name])
        for name in (METRICS, TIMING):
            records.keep_lines(self.folder / name, self.epoch)

    def _load_weights(self, saved: Checkpoint) -> None:
        self.net.load_state_dict(saved.part("net"))
        self.step.state.load_state_dict(saved.part("state"))

    def result(self, message: str | None = None) -> dict[str, Any]:
        """Return the run's result: test accuracy at the last and at the best validation epoch, and its cost."""
        test = None
        if message is None and self.best is not None:
            last = evaluate(self.method, self.step, self.images.test, self.normalize)
            self._load_weights(checkpoint.read(self.folder / _best_name(self.best["epoch"])))
            best = evaluate(self.method, self.step, self.images.test, self.normalize)
            test = {"last": last, "best": {"epoch": self.best["epoch"], **best}}
        forward, backward, updates = self.step.passes.per_step()
        return {
            "format": 1,
            "status": "failed" if message else "ok",
            "message": message,
            "epochs": self.epoch,
            "steps": self.steps,
            "test": test,
            "val": {"last": self.val, "best": self.best},
            "passes": {"forward": forward, "backward": backward, "updates": updates},
            "seconds": self.seconds,
            "peak_memory_mb": machine.peak_memory_mb(),
            "parameters": sum(p.numel() for p in self.step.runtime.params),
            "environment": machine.environment(),
        }


def evaluate(method: Method, step: Step, images: Images, normalize: Normalizer) -> dict[str, float]:
    """Return accuracy (fraction) and mean cross-entropy over ``images`` of what the method deploys."""
    net, device = step.runtime.net, step.runtime.params[0].device
    net.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for batch in evaluation_batches(images, EVALUATION_BATCH, normalize):
            batch = batch.to(device)
            logits = step.predict(_layout(batch.x)).float()
            correct += int((logits.argmax(1) == batch.y).sum())
            loss += float(F.cross_entropy(logits, batch.y, reduction="sum"))
    net.train()
    return {"accuracy": correct / len(images.y), "loss": loss / len(images.y)}


def derive(seed: int, purpose: str) -> int:
    """Return a 62-bit seed for one purpose of a run; seeds of different purposes are unrelated."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "big") >> 2


def new_model(run: Run, images: DataSet) -> nn.Module:
    """Return the run\'s freshly initialised network; draws from the global generator."""
    return models.build(run.model, classes=len(images.classes), channels=images.channels, size=images.size)


def new_loader(run: Run, images: DataSet) -> Loader:
    """Return the run\'s training batches; raises InputError if a batch is larger than the training set."""
    return Loader(
        images.train,
        classes=len(images.classes),
        batch=run.batch,
        augment=run.data.augment,
        normalize=Normalizer.of(run.data.normalize, images.train),
        seed=derive(run.seed, "data"),
    )


def _optimizer(run: Run, net: nn.Module) -> torch.optim.Optimizer:
    o, params = run.optim, list(net.parameters())
    if o.name == "sgd":
        return torch.optim.SGD(params, o.lr, momentum=o.momentum, weight_decay=o.weight_decay, fused=True)
    cls = torch.optim.Adam if o.name == "adam" else torch.optim.AdamW
    return cls(params, o.lr, weight_decay=o.weight_decay, fused=True)


def _layout(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _rank(val: dict[str, Any]) -> tuple[float, float]:
    """Order validation results: by accuracy, ties by the lower loss."""
    return val["accuracy"], -val["loss"]


def _best_name(epoch: int | str) -> str:
    return f"best-{epoch}.safetensors"
