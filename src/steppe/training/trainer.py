"""The training loop of one run: train on each epoch's batches, validate, record, save, resume, and finally test.

All seeds are derived from the run's seed, the epoch and the rank, so a run that is killed at any moment and
resumed from its last checkpoint ends with the same bits. Several processes train one run together, each on its
rows of every batch; the main process alone decides whatever depends on a clock. The test images choose nothing:
they are evaluated after training, at the last weights and at those of the best validation epoch, and after each
epoch only with ``watch.test``. No method is named here.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from steppe import hardware, records
from steppe.config import Run
from steppe.core.method import Method
from steppe.core.optimizers.joint import evaluation_weights, switch
from steppe.data.dataset import DataSet, Images, Samples
from steppe.data.prefetch import PrefetchLoader
from steppe.distributed import collectives
from steppe.tasks.metric import ACCURACY
from steppe.training._skips import Skips
from steppe.training.checkpoint.save_and_resume import CheckpointStore, derive, save_seconds
from steppe.training.evaluation import evaluate, network_input
from steppe.training.factories import (
    bind_options,
    make_loader,
    make_network,
    make_objective,
    make_optimizer,
    wrap_parallel,
)
from steppe.training.monitor import Monitor
from steppe.training.optimizers import learning_rate

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
PATIENCE = 20  # skipped steps in a row after which a run has failed
_INTERVAL = 0.25  # seconds between two progress reports


@dataclass(frozen=True)
class TrainingStatus:
    """Progress of a run, as plain data.

    ``share`` is the part of its budget that is spent, 0 to 1; ``val_accuracy`` is the value of ``metric``, which
    is None for accuracy; ``samples`` is what is trained on; ``images`` is how many were trained on.
    """

    epoch: int
    share: float
    loss: float
    accuracy: float | None
    images_per_second: float
    seconds_left: float
    val_accuracy: float | None = None
    metric: dict[str, Any] | None = None
    samples: str = "images"
    images: int = 0


ProgressCallback = Callable[[TrainingStatus], None]


class TrainingFailed(Exception):  # noqa: N818 - an outcome of training, caught by train_run
    """Training cannot continue; the message is recorded in the result."""


@dataclass
class Trainer:
    """The state of one run between two checkpoints; on several processes, the same on each."""

    run: Run
    folder: Path
    images: DataSet
    epoch: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: dict[str, Any] | None = None
    val: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run = self.run
        self.world = collectives.current_world()
        self.goal = make_objective(run, self.images)
        self.method = cast(Method, run.method)
        self.loader = make_loader(run, self.images, self.method)
        self.batches = PrefetchLoader(self.loader, run.workers) if run.workers else self.loader
        self.net = make_network(run, self.method, self.images)
        model = wrap_parallel(self.net, run.parallel)
        optimizer = make_optimizer(run, self.net)
        self.lr_at = learning_rate(run, run.epochs * len(self.loader))
        compiled = cast(nn.Module, torch.compile(model)) if run.compile else model
        options = bind_options(run) | {
            "loss": self.goal.loss,
            "weigh": self.goal.weigh,
            "outputs": self.goal.outputs,
            "steps": run.epochs * len(self.loader) if run.match == "epochs" else lambda: self.share,
            "epoch": len(self.loader),
            "seed": derive(run.seed, "method"),
        }
        self.step = self.method.bind(compiled, optimizer, **options)
        self.optimizer = self.step.runtime.optimizer
        self.method.allocate(self.step.state, len(self.images.train), self.images.outputs)
        self.method.observe_targets(self.step.state, self.images.train.y)
        self.store = CheckpointStore(self.folder, self.net, self.step, self.optimizer, run.seed)
        self.monitor = Monitor(run, self.folder, self.images, self.method, self.net, self.step)
        self._next_save = 0.0

    # -- training ----------------------------------------------------------------------------------------

    def train(self, progress: ProgressCallback) -> None:
        """Train until the budget is spent; raises TrainingFailed if training or validation is no longer finite."""
        started, share_at_start = time.perf_counter(), self.share
        if not self.epoch:
            self.monitor.start()
        while self.share < 1:
            self.epoch += 1
            train = self._train_epoch(progress, started, share_at_start)
            if self.share >= 1:
                switch(self.optimizer, "eval")  # a finished run has the weights that are evaluated
            self.val = self._chosen(self._evaluate(self.images.val))
            if not math.isfinite(self.val["loss"]):
                raise TrainingFailed(f"validation loss is not finite after step {self.steps} (epoch {self.epoch})")
            improved = self.best is None or self._rank(self.val) > self._rank(self.best)
            if improved:
                self.best = {"epoch": self.epoch, **self.val}
            monitored, due = self._monitored(), self._due()
            self.world.on_main_process(partial(self._record, train, monitored, due))
            if due:
                self._save(improved)
            elif improved:
                self.store.hold_best(self.epoch)
            progress(self._status(train, started, share_at_start, self.val[self.goal.key]))

    def _chosen(self, val: dict[str, Any]) -> dict[str, Any]:
        """Let the method choose what it deploys by the validation of its outputs."""
        outputs = val.get("outputs", {})
        name = (
            self.method.choose(self.step.state, {k: self._rank(v) for k, v in outputs.items()})
            if outputs
            else None
        )
        return val if name is None else val | outputs[name]

    def _train_epoch(self, progress: ProgressCallback, started: float, share_at_start: float) -> dict[str, float]:
        """Train on each batch once, or until the budget is spent; return the epoch's means."""
        rank = f" rank {self.world.rank}" if self.world.rank else ""
        hardware.seed_all(derive(self.run.seed, f"dropout {self.epoch}{rank}"))
        # summed on the network's device: reading a number from a GPU would synchronise in every step
        loss = torch.zeros((), dtype=torch.float64, device=self.step.runtime.device)
        correct, count, reported = torch.zeros_like(loss), cast(Any, 0), time.perf_counter()
        skips = Skips()
        lr = self._set_lr()
        clock = time.perf_counter()
        for batch in self.batches.epoch(self.epoch):
            lr = self._set_lr()
            batch = network_input(self.run, batch, self.step.runtime.params[0])
            out = self.step(batch)
            if isinstance(out.skip_flag, Tensor):
                skips.add(out.skip_flag)
            else:
                self._count_skips(out.skipped)
            if isinstance(out.skip_flag, Tensor) or not out.skipped:
                rows = len(batch)
                if self.goal.counts_hits:
                    rows = len(out.logits)  # half of the batch if the method's clean pass is over its first half
                    target = (batch.y.argmax(1) if batch.y.ndim > 1 else batch.y)[:rows]
                    correct += skips.masked((out.logits.argmax(1) == target).sum())
                loss += skips.masked(out.loss.double() * rows)
                count += skips.rows(rows)
            now = time.perf_counter()
            self.seconds, clock = self.seconds + now - clock, now
            self._broadcast_budget()
            if now - reported > _INTERVAL:
                reported = now
                progress(
                    self._status(self._means(float(loss), float(correct), int(count)), started, share_at_start)
                )
            if self.share >= 1:
                break
        for skipped in skips.read():
            self._count_skips(skipped)
        if self.share >= 1 and self.skipped_in_a_row >= len(self.loader):
            raise self._diverged()
        sums = float(loss), float(correct), int(count)
        self.seconds += time.perf_counter() - clock  # the sums above waited for the GPU
        return {"lr": lr, **self._means(*self.world.all_reduce_sum(*sums))}

    def _means(self, loss: float, correct: float, count: float) -> dict[str, float]:
        """Return the mean loss, and of classes the accuracy; NaN if every step was skipped."""
        n = count or math.nan
        return {"train_loss": loss / n} | ({"train_accuracy": correct / n} if self.goal.counts_hits else {})

    def _rank(self, val: dict[str, Any]) -> tuple[float, float]:
        """Order validation results: by the metric, ties by the lower loss."""
        value = val[self.goal.key]
        value = value if math.isfinite(value) else -math.inf if self.goal.metric.higher else math.inf
        return value if self.goal.metric.higher else -value, -val["loss"]

    def _count_skips(self, skipped: bool) -> None:
        """Count a skipped step, which is how fp16 finds its loss scale; too many in a row are a failure."""
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row >= PATIENCE:
            raise self._diverged()

    def _diverged(self) -> TrainingFailed:
        return TrainingFailed(
            f"loss or gradient was not finite in {self.skipped_in_a_row} steps in a row, up to step {self.steps} "
            f"(epoch {self.epoch})"
        )

    def _broadcast_budget(self) -> None:
        """Use rank 0's measurement of what is spent, so that all processes stop together."""
        if self.run.match == "seconds":
            self.seconds = self.world.broadcast(self.seconds)
        elif self.run.match == "gradients":
            # fractions of batches of unequal size may sum to different last digits
            self.step.passes.backward = self.world.broadcast(self.step.passes.backward)

    @property
    def steps(self) -> int:
        """Training steps made."""
        return self.step.passes.steps

    @property
    def share(self) -> float:
        """The spent part of the budget of epochs, gradient evaluations or seconds."""
        if self.run.match == "seconds":
            return self.seconds / (self.run.seconds or 1)
        spent = self.step.passes.backward if self.run.match == "gradients" else self.steps
        return spent / (self.run.epochs * len(self.loader))

    def _set_lr(self) -> float:
        lr = self.lr_at(self.share)
        scales = [group.get("lr_scale", 1.0) for group in self.optimizer.param_groups]
        for group, scale in zip(self.optimizer.param_groups, scales, strict=True):
            group["lr"] = lr * scale
        return lr * scales[0] if len(set(scales)) == 1 else lr

    def _status(
        self, means: dict[str, float], started: float, share_at_start: float, val: float | None = None
    ) -> TrainingStatus:
        share = min(self.share, 1)
        left = (time.perf_counter() - started) * (1 - share) / max(self.share - share_at_start, 1e-9)
        rate, images = self._images_per_second(), self.steps * self.run.batch
        return TrainingStatus(
            self.epoch,
            share,
            means["train_loss"],
            means.get("train_accuracy"),
            rate,
            left,
            val,
            self.metric,
            "images" if isinstance(self.images.train, Images) else "samples",
            images,
        )

    @property
    def metric(self) -> dict[str, Any] | None:
        """Return the metric as plain data; None for accuracy."""
        return None if self.goal.metric == ACCURACY else self.goal.metric.to_dict()

    def _images_per_second(self) -> float:
        return self.steps * self.run.batch / max(self.seconds, 1e-9)

    def _evaluate(self, samples: Samples) -> dict[str, Any]:
        with evaluation_weights(self.optimizer):
            return evaluate(self.run, self.method, self.step, self.images, samples, self.goal)

    def _monitored(self) -> dict[str, Any]:
        """Return what the run's monitors measure after an epoch; training is unchanged by it."""
        test = self._evaluate(self.images.test) if self.run.watch.test else {}
        with evaluation_weights(self.optimizer):
            return {f"test_{k}": v for k, v in test.items()} | self.monitor.measure(self.epoch, self.share >= 1)

    # -- record, save, resume ----------------------------------------------------------------------------

    def _due(self) -> bool:
        """Return whether this epoch is saved: the first and the last one are, and others at intervals."""
        due = self.share >= 1 or time.monotonic() >= self._next_save
        return bool(self.world.broadcast(float(due)))

    def _record(self, train: dict[str, float], monitored: dict[str, Any], sync: bool) -> None:
        val = {f"val_{k}": v for k, v in self.val.items()}
        passes = self.step.passes
        counts = {"steps": passes.steps, "gradients": passes.backward, "skipped": self.skipped}
        line = {"epoch": self.epoch, "progress": min(self.share, 1), **train, **val, **monitored, **counts}
        records.append_line(self.folder / METRICS, line, sync=sync)
        rate = self._images_per_second()
        times = {"epoch": self.epoch, "seconds": self.seconds, "images_per_second": rate}
        records.append_line(self.folder / TIMING, times, sync=sync)

    def _save(self, improved: bool) -> None:
        content = {name: getattr(self, name) for name in _SAVED}
        self.store.save(content, improved=improved, weights_only=self.share >= 1 and not self.run.keep)
        self._next_save = time.monotonic() + save_seconds()

    def resume(self) -> None:
        """Resume from the folder's checkpoint, if there is one, and drop the records of later epochs."""
        saved = self.store.resume(_SAVED)
        if saved is not None:
            for name in _SAVED:
                setattr(self, name, saved[name])

        def truncate() -> None:
            for name in (METRICS, TIMING):
                records.keep_lines(self.folder / name, self.epoch)

        self.world.on_main_process(truncate)

    def result(self, message: str | None = None) -> dict[str, Any]:
        """Return the run's result: test accuracy at the last and at the best validation epoch, and its cost."""
        test = None
        if message is None and self.best is not None:
            last = self._evaluate(self.images.test)
            self.store.load_best(self.best["epoch"])
            best = self._evaluate(self.images.test)
            test = {"last": last, "best": {"epoch": self.best["epoch"], **best}}
        forward, backward, updates = self.step.passes.per_step()
        return {
            "format": 1,
            "status": "failed" if message else "ok",
            "message": message,
            "epochs": self.epoch,
            "steps": self.steps,
            "skipped": self.skipped,
            "test": test,
            "val": {"last": self.val, "best": self.best},
            "passes": {"forward": forward, "backward": backward, "updates": updates},
            "seconds": self.seconds,
            "peak_memory_mb": hardware.peak_memory_mb(),
            "parameters": sum(p.numel() for p in self.step.runtime.params),
            "environment": hardware.environment(),
        } | ({"metric": self.metric} if self.metric else {})


_SAVED = ("epoch", "seconds", "skipped", "skipped_in_a_row", "best", "val")
